"""Writes batches: all of one batch in one transaction, tried again until it is committed.

The fast way is COPY straight into the stream's table. If a key is there already or a row is
refused, the batch is rolled back and goes the careful way: through a staging table, where
duplicates fall out and refused rows are found. A batch that is too much for the server is halved,
and a half that is committed is not tried again. No failure of the database makes the writer give a
batch up. Any other error ends the process, and the broker still has the messages.

Every worker writes streams in the order of their names and rows in the order of their keys.
Otherwise two workers that store the same samples would wait for each other in a circle.
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
from ingest.store.dead_letters import keep, take_out
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
"""Number of times that the server has to report a row as too much before it is refused."""
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
"""Query for a session whose lock keeps rows out (PostgreSQL, 13.3.1), without its statement."""

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
        """Prepare; `samples_json` splits a message again, `budget` limits devices' dead letters."""
        self.connection = connection
        self._catalogue = catalogue
        self._metrics = metrics
        self._samples_json = samples_json
        self._budget = budget
        self._days = Days()
        self._seldom = Seldom()
        self._careful = False
        """True to go through the staging table: a key was there already, or a row was refused."""
        self._misplaced = False
        """True if a partition has the name of a day and does not take the rows of that day."""

    @property
    def closed(self) -> str | None:
        """Sentence about a day that cannot be written for now, with the reason; otherwise None."""
        return self._days.closed

    async def write(self, batch: Batch, more: More = _no_more) -> Written:
        """Commit the batch, however often that has to be tried.

        If nothing of the batch can be stored and the cause is not known, `more` is called for the
        messages that have come meanwhile. If some of them can be stored, the batch is at fault,
        otherwise the server.
        """
        total = Written()
        parts = [Part(batch.rows, batch.dead_letters, batch.described)]
        kept: dict[int, bool] = {}
        while parts:
            last = len(parts) == 1
            # A letter that is replayed goes with the last part, when all of its content is written.
            parts[-1].replayed = batch.replayed - total.staying if last else frozenset()
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
        """Try to commit one part in one transaction; return its account.

        `kept` has an entry for each refused row, by identity: true if its dead letter is kept. That
        is decided once, so that a retry does not charge a device's budget again. `proven` is true
        if another part could be stored: a row that fails here is then at fault itself.
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
                # On a connection that was cut this raises InterfaceError, which `meaning` knows, in
                # place of what asyncpg raised before (an AttributeError in mid-COPY).
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
        """Write a part inside the transaction; return None if ids have to be resolved again."""
        if part.past is not None:
            await connection.execute(_WAIT_LITTLE)
        if self._careful:
            # A check that an operator has deferred to the commit then fails with its row.
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        described = [said for said in part.described if said.device in ids]
        if described:
            # This comes before `hold`: whoever deletes a device locks its row first, and waits
            # then for all that hold ids. In the other order the two could deadlock.
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
        if gone := part.replayed - written.staying:
            await take_out(connection, gone)
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
        """Write one stream's rows; return the refused rows with the reason.

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
        """Return the rows to try, and the rows that are known to be refused, with the reason."""
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
        """Return the dead letters of the rows that the store refused.

        If it is the sample's own fault, its letter counts against the device's budget and is
        dropped beyond it. All other letters are kept.
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
        """Write the dead letters; on the careful way, retry refused ones in ASCII or drop them."""
        letters = written.letters
        if not letters:
            return
        written.staying = {one.replayed for one in letters if one.same and one.replayed is not None}
        if not self._careful:
            await keep(connection, letters)
            return

        async def write(letters: Sequence[DeadLetter]) -> None:
            await keep(connection, letters)

        refused = await write_what_can_be(connection, letters, write)
        plainer = {place: letters[place].plain() for place in refused}
        lost = await write_what_can_be(connection, list(plainer.values()), write)
        places = list(plainer)
        gone = {places[index]: failure for index, failure in lost.items()}
        if gone and not (proven or written.good or len(gone) < len(letters)):
            raise Unforeseen(f"no dead letter can be stored: {next(iter(gone.values()))}")
        for place in gone:
            letter = letters[place]
            written.suppressed[letter.stream or OTHER] += 1
            if letter.replayed is not None:
                written.staying.add(letter.replayed)
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
        """Prepare the next attempt: change the way, divide the part, or wait.

        `proven` is true if another part could be stored: a row that fails alone is then at fault.
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
        """Refuse a part's only row once the server has reported it `_HOPELESS` times as too much.

        A connection cut because the server was silent does not count: it says nothing about a row.
        """
        part.failed_alone += isinstance(failure, TooMuch)
        if part.failed_alone >= _HOPELESS:
            part.hopeless = refusal_of(Unforeseen(str(failure)))

    async def _try_to_lock(self, table: str) -> bool:
        """Lock a whole table for a moment, as writing a row does; return true if that worked.

        If it did not, or the database is away, no single day of the table is to blame.
        """
        lock = f"LOCK TABLE ONLY iov.{quoted(table)} IN ROW EXCLUSIVE MODE NOWAIT"
        try:
            async with self.connection.use() as (connection, _), connection.transaction():
                await connection.execute(lock)
        except IngestError:
            return False
        return True

    async def _make_partitions(self, part: Part) -> None:
        """Make the partitions that a part lacks; close a day for a while if it cannot be made."""
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
            # Another worker may have made it: the careful way will show. If that fails too, a
            # partition has the name of a day and does not take its rows.
            self._misplaced = self._careful
            self._careful = True
            await self.connection.wait("a partition is there and does not take the rows of its day")


def _expect_foreseen(refusals: list[Refusal]) -> None:
    """Raise Unforeseen if one of the rows was refused for a reason that nobody foresaw."""
    for refusal in refusals:
        if refusal.unforeseen is not None and not refusal.closed:
            raise Unforeseen(refusal.unforeseen)
