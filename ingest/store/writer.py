"""Writes batches: all of one batch in one transaction, for ever until it is committed.

The fast way is COPY straight into the stream's table. Where a key is there already or a row is
refused, the batch is rolled back and goes the careful way: through a staging table, where
duplicates fall out and refused rows are found. What is too much for the server is halved, and what
a half has committed is not tried again. Whatever the failure, the batch is never given up; only an
error that is none of the database's ends the process, and the broker still has the messages.

Streams are written in the order of their names and rows in the order of their keys, by every
worker: two that store the same samples would else wait for each other in a circle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date

import asyncpg
import structlog

from ingest.batch import Batch, DeadLetter, Description, More, Written, dead_letter
from ingest.budget import Budget
from ingest.errors import IngestError, Refused, TooMuch, Unforeseen
from ingest.log import Seldom
from ingest.metrics import Metrics
from ingest.model import OTHER, Delivery, Reason, Rejected, Row
from ingest.schema import Catalogue
from ingest.schema.layout import in_key_order, sort
from ingest.schema.table import quoted
from ingest.store.connection import StoreConnection
from ingest.store.copy import copy
from ingest.store.days import Days
from ingest.store.devices import DeviceIds, describe
from ingest.store.failures import (
    DuplicateKey,
    Locked,
    NoPartition,
)
from ingest.store.halves import write_what_can_be
from ingest.store.part import Part
from ingest.store.partitions import missing
from ingest.store.staging import Refusal, merge, refusal_of

_HOPELESS = 3
"""Times that the server has to say that one row is too much before it is refused."""
_WAIT_LITTLE = "SET LOCAL lock_timeout = '1s'"
_HOLDER = """
SELECT format('process %s (%s) %s iov.%s', a.pid,
    coalesce(nullif(a.application_name, ''), 'unnamed'),
    CASE WHEN l.granted THEN 'has locked' ELSE 'waits to lock' END, c.relname)
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND a.datname = current_database() AND a.pid <> pg_backend_pid()
  AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND c.relnamespace = 'iov'::regnamespace
ORDER BY l.granted DESC, c.relname LIMIT 1
"""
"""Somebody whose lock keeps rows out (PostgreSQL, 13.3.1); what they do is not ours to see."""

log = structlog.get_logger(__name__)


def _no_more() -> None:
    return None


class Writer:
    """The one writer of a worker."""

    def __init__(
        self,
        connection: StoreConnection,
        catalogue: Catalogue,
        metrics: Metrics,
        samples_json: Callable[[Delivery, Sequence[int]], list[bytes]],
        budget: Budget,
    ) -> None:
        """`samples_json` takes a message apart again; `budget` is the devices' for dead letters."""
        self.connection = connection
        self._catalogue = catalogue
        self._metrics = metrics
        self._samples_json = samples_json
        self._budget = budget
        self._days = Days()
        self._seldom = Seldom()
        self._careful = False
        """Go through the staging table: a key was there already, or a row was refused."""
        self._misplaced = False
        """What bears the name of a day does not take its rows."""

    @property
    def closed(self) -> str | None:
        """Which day cannot be written for now, and why; None if all can."""
        return self._days.closed

    async def write(self, batch: Batch, more: More = _no_more) -> Written:
        """Commit the batch, however often that has to be tried.

        `more` is asked for what has come meanwhile where nothing of the batch can be stored and
        nobody knows why: whether that is the batch's fault or the server's, others will show.
        """
        total = Written()
        parts = [Part(batch.rows, batch.dead_letters, batch.described)]
        kept: dict[int, bool] = {}
        while parts:
            try:
                async with self.connection.use() as (connection, ids_of):
                    written = await self._attempt(
                        connection, ids_of, parts[-1], kept, proven=total.good
                    )
            except IngestError as failure:
                await self._recover(failure, parts, proven=total.good)
                whole = len(parts) == 1 and not total.good
                alone = isinstance(failure, Unforeseen | TooMuch)
                if whole and alone and (another := more()) is not None:
                    batch.absorb(another)
                    parts = [Part(batch.rows, batch.dead_letters, batch.described)]
            except Exception:
                self.connection.drop()
                raise
            else:
                parts.pop()
                total.add(written)
                self.connection.batch_waits = False
                self.connection.works()
                self._careful = written.duplicate.total() > 0
                self._misplaced = False
        return total

    async def _attempt(
        self,
        connection: asyncpg.Connection,
        ids_of: DeviceIds,
        part: Part,
        kept: dict[int, bool],
        *,
        proven: bool,
    ) -> Written:
        """Try one transaction.

        `kept` says of rows that were refused, by identity, if their letter is kept. That is decided
        once, so that a retry does not charge a device's budget again. `proven`: another part could
        be stored, so what fails here is at fault itself.
        """
        devices = {row.device for rows in part.rows.values() for row in rows}
        devices |= {said.device for said in part.described}
        written: Written | None = None
        while written is None:
            ids = await ids_of.resolve(devices)
            transaction = connection.transaction()
            await transaction.start()
            try:
                written = await self._write_part(connection, ids_of, ids, part, kept, proven=proven)
            except BaseException:
                # On a connection that was cut this raises InterfaceError in place of whatever
                # asyncpg stumbled over (an AttributeError in mid-COPY); that says what it means.
                await transaction.rollback()
                raise
            if written is None:
                await transaction.rollback()
        await self.connection.commit(transaction)
        return written

    async def _write_part(
        self,
        connection: asyncpg.Connection,
        ids_of: DeviceIds,
        ids: Mapping[str, int],
        part: Part,
        kept: dict[int, bool],
        *,
        proven: bool,
    ) -> Written | None:
        """Do what is inside of the transaction; None if an id is not to be trusted any more."""
        if part.past is not None:
            await connection.execute(_WAIT_LITTLE)
        if self._careful:
            # What an operator has deferred to the commit fails no later than its row.
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        described = [said for said in part.described if said.device in ids]
        if described:
            # First, for whoever deletes a device holds its row and then waits for those who hold
            # on to ids.
            await self._describe(connection, ids, described)
        if not await ids_of.hold():
            return None
        written = Written(letters=list(part.letters))
        refusals: list[Refusal] = []
        for name in sorted(part.rows):
            refused = await self._write_rows(connection, ids, ids_of.refused, name, part, written)
            refusals += [refusal for _, refusal in refused]
            written.letters += self._letters_of(name, refused, kept, written)
        if not proven and not written.good:
            _expect_foreseen(refusals)
        await self._write_letters(connection, written, proven=proven)
        return written

    async def _write_rows(
        self,
        connection: asyncpg.Connection,
        ids: Mapping[str, int],
        strangers: Mapping[str, IngestError],
        name: str,
        part: Part,
        written: Written,
    ) -> list[tuple[Row, Refusal]]:
        """Write one stream's rows; those that are refused, with why.

        `strangers` are devices that cannot be registered, and so have no id.
        """
        stream, rows = self._catalogue[name], part.rows[name]
        refused: list[tuple[Row, Refusal]] = []
        if part.hopeless is not None or strangers or self._days.any_closed:
            rows, refused = self._set_apart(stream.table, part, rows, strangers)
        if rows:
            columns, records = stream.layout.records(rows, ids)
            if self._careful:
                rows = sorted(rows, key=lambda row: in_key_order(row.record))
                merged = await merge(
                    connection,
                    stream,
                    columns,
                    [row.record for row in rows],
                    misplaced=self._misplaced,
                )
                refused += [(rows[place], refusal) for place, refusal in merged.refused.items()]
                written.stored[name] = merged.stored
                written.duplicate[name] = len(rows) - merged.stored - len(merged.refused)
            else:
                sort(records)
                await copy(connection, "iov", stream.table, columns, records)
                written.stored[name] = len(records)
        written.refused[name] = len(refused)
        return refused

    def _set_apart(
        self, table: str, part: Part, rows: list[Row], strangers: Mapping[str, IngestError]
    ) -> tuple[list[Row], list[tuple[Row, Refusal]]]:
        """The rows that can be written, and those of which is known that they cannot."""
        now_s, kept, refused = time.monotonic(), [], []
        for row in rows:
            refusal = part.hopeless
            if refusal is None and (why := strangers.get(row.device)) is not None:
                refusal = refusal_of(why, "its device: ")
            refusal = refusal or self._days.refusal(table, row, now_s)
            if refusal is None:
                kept.append(row)
            else:
                refused.append((row, refusal))
        return kept, refused

    def _letters_of(
        self,
        name: str,
        refused: list[tuple[Row, Refusal]],
        kept: dict[int, bool],
        written: Written,
    ) -> list[DeadLetter]:
        """The dead letters of what the store refused.

        What is a sample's own fault is kept as far as its device's budget goes; the rest always.
        """
        letters, now_s = [], time.monotonic()
        by_delivery: dict[int, list[tuple[Row, Refusal]]] = {}
        for row, refusal in refused:
            by_delivery.setdefault(id(row.delivery), []).append((row, refusal))
        for together in by_delivery.values():
            delivery = together[0][0].delivery
            # Taken apart once, however many of its samples are refused.
            own = self._samples_json(delivery, [row.position for row, _ in together])
            for (row, refusal), payload in zip(together, own, strict=True):
                rejected = Rejected(
                    name, name, row.device, Reason.REFUSED_BY_STORE, refusal.detail, payload
                )
                letter = dead_letter(delivery, rejected)
                if id(row) not in kept:
                    kept[id(row)] = refusal.unforeseen is not None or self._budget.allows(
                        row.device, letter.size_bytes, now_s
                    )
                if kept[id(row)]:
                    letters.append(letter)
                else:
                    written.suppressed[name] += 1
        return letters

    async def _write_letters(
        self, connection: asyncpg.Connection, written: Written, *, proven: bool
    ) -> None:
        """Write the dead letters; carefully, those that cannot be are found and made plainer."""
        if not written.letters:
            return
        if not self._careful:
            await copy(connection, "iov", "dead_letter", DeadLetter._fields, written.letters)
            return

        async def write(letters: Sequence[DeadLetter]) -> None:
            await copy(connection, "iov", "dead_letter", DeadLetter._fields, letters)

        letters = written.letters
        refused = await write_what_can_be(connection, letters, write)
        plainer = {place: letters[place].plain() for place in refused}
        lost = await write_what_can_be(connection, list(plainer.values()), write)
        places = list(plainer)
        gone = {places[index]: failure for index, failure in lost.items()}
        if gone and not (proven or written.good or len(gone) < len(letters)):
            raise Unforeseen(f"no dead letter can be stored: {next(iter(gone.values()))}")
        for place in gone:
            written.suppressed[letters[place].stream or OTHER] += 1
        if gone and self._seldom.allows("letters"):
            why = str(next(iter(gone.values())))
            log.error("dead letters refused", why=why, number=len(gone))
        written.letters = [
            plainer.get(place, letter) for place, letter in enumerate(letters) if place not in gone
        ]

    async def _describe(
        self, connection: asyncpg.Connection, ids: Mapping[str, int], described: list[Description]
    ) -> None:
        """Keep what devices say about themselves; what is refused harms no sample."""

        async def write(some: Sequence[Description]) -> None:
            await describe(connection, ids, some)

        refused = await write_what_can_be(connection, described, write)
        self._metrics.descriptions_refused.inc(len(refused))
        if refused and self._seldom.allows("descriptions"):
            place, failure = next(iter(refused.items()))
            device = described[place].device
            log.error("descriptions refused", why=str(failure), number=len(refused), one_of=device)

    async def _recover(self, failure: IngestError, parts: list[Part], *, proven: bool) -> None:
        """Bring about what the next attempt needs.

        `proven`: another part could be stored, so what fails alone is at fault itself.
        """
        slow = self.connection.was_cut
        past = parts[-1].past
        apart = parts[-1].by_past_day() if isinstance(failure, Locked) and not past else []
        match failure:
            case DuplicateKey() | Refused() | Unforeseen() if not self._careful:
                self._careful = True
            case NoPartition():
                await self._make_partitions(parts[-1])
            case Locked() if past and await self._try_to_lock(self._catalogue[past[0]].table):
                self._days.close(self._catalogue[past[0]].table, past[1], str(failure))
            case Locked() if any(part.past for part in apart):
                parts[-1:] = apart
            case _:
                # A server that takes too long, or has not enough, may do with less.
                if slow or isinstance(failure, TooMuch):
                    if parts[-1].size > 1:
                        parts[-1:] = reversed(parts[-1].halves())
                    elif proven and parts[-1].rows:
                        self._refuse_if_hopeless(parts[-1], failure)
                    else:
                        # Others may show whose fault it is.
                        parts.insert(0, parts.pop())
                self.connection.batch_waits = True
                holder = await self._holder() if isinstance(failure, Locked) else None
                await self.connection.lose(f"{failure}: {holder}" if holder else str(failure))

    async def _holder(self) -> str | None:
        """Say who has locked one of our tables, or waits to; None if nobody knows."""
        try:
            async with self.connection.use() as (connection, _):
                holder: str | None = await connection.fetchval(_HOLDER)
        except IngestError:
            return None
        return holder

    def _refuse_if_hopeless(self, part: Part, failure: IngestError) -> None:
        """Refuse the one row of a part if the server has said often enough that it is too much.

        That the server is silent, so that we cut the connection, says nothing about a row.
        """
        part.failed_alone += isinstance(failure, TooMuch)
        if part.failed_alone >= _HOPELESS:
            part.hopeless = refusal_of(Unforeseen(str(failure)))

    async def _try_to_lock(self, table: str) -> bool:
        """Lock a whole table as a row would, for a moment; return whether that was possible.

        If it was not, or nobody knows, the days of the table are not to blame.
        """
        lock = f"LOCK TABLE ONLY iov.{quoted(table)} IN ROW EXCLUSIVE MODE NOWAIT"
        try:
            async with self.connection.use() as (connection, _), connection.transaction():
                await connection.execute(lock)
        except IngestError:
            return False
        return True

    async def _make_partitions(self, part: Part) -> None:
        """Make what a part needs; a day that cannot be had is closed for a while."""
        wanted: dict[tuple[str, date], dict[str, None]] = {}
        for name, rows in part.rows.items():
            for row in rows:
                place = self._catalogue[name].table, row.ts.date()
                wanted.setdefault(place, {})[row.device] = None
        try:
            async with self.connection.use() as (connection, _):
                lacking = await missing(connection, wanted)
                made = [
                    place
                    for place in lacking
                    if await self._days.make(connection, *place, wanted[place])
                ]
        except IngestError as failure:
            await self.connection.lose(str(failure))
            return
        if made:
            log.info("partitions made for late data", made=len(made))
        elif not lacking:
            # Another worker was quicker; or one by one will tell. If it does not, what bears the
            # name of a day does not take its rows.
            self._misplaced = self._careful
            self._careful = True
            await self.connection.wait("a partition is there and does not take the rows of its day")


def _expect_foreseen(refusals: list[Refusal]) -> None:
    """Raise Unforeseen if one of the rows was refused for a reason that nobody foresaw."""
    for refusal in refusals:
        if refusal.unforeseen is not None and not refusal.closed:
            raise Unforeseen(refusal.unforeseen)
