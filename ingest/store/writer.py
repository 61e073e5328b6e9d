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

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from random import Random
from typing import NamedTuple

import asyncpg
import structlog

from ingest.backoff import Backoff
from ingest.batch import Batch, DeadLetter, Description, More, Written, dead_letter
from ingest.budget import Budget
from ingest.config import Settings
from ingest.errors import IngestError, Refused, TooMuch, Unavailable, Unforeseen
from ingest.metrics import Metrics
from ingest.model import OTHER, Delivery, Reason, Rejected, Row
from ingest.schema import Catalogue
from ingest.schema.layout import in_key_order, sort
from ingest.schema.table import quoted
from ingest.store import pooler
from ingest.store.connect import commit_durably, connect, expect_migrated
from ingest.store.copy import copy
from ingest.store.devices import DeviceIds, describe
from ingest.store.failures import (
    DuplicateKey,
    Locked,
    NoPartition,
    away,
    meaning,
    translated,
)
from ingest.store.halves import halves, write_what_can_be
from ingest.store.partitions import make_partitions, missing
from ingest.store.staging import Refusal, merge, refusal_of
from ingest.trouble import Trouble

_FIRST_DELAY_S, _MOST_DELAY_S = 0.1, 10.0
CLOSED_S = 60.0
"""How long a day that cannot be written is left alone: each attempt may hold up the rest."""
PARTITIONS_PER_MINUTE = 120
"""Made on demand for one device: as many days of four streams as are accepted by default."""
_WAITS = 3
"""Times a day's partition is waited for, 2 s each, before the day is closed."""
_DETACHING = "55006"
"""SQLSTATE that our function raises if a detach is pending."""
_WAIT_LITTLE = "SET LOCAL lock_timeout = '1s'"
_IDLE_S, _ANSWER_S = 1.0, 2.0
"""Seconds without use after which a connection is tried first, and seconds it has to answer."""
_LOG_EVERY, _SAY_EVERY_S = 30, 10.0
_END_GHOSTS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE application_name = $1 AND usename = current_user AND datname = current_database()
  AND pid <> pg_backend_pid()
"""

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


@dataclass(slots=True)
class Part:
    """What is committed in one transaction: a batch, or a half of one that was too much."""

    rows: dict[str, list[Row]]
    letters: list[DeadLetter]
    described: list[Description]
    past: tuple[str, date] | None = None
    """The one stream and day of its rows, which somebody has locked."""
    hopeless: Refusal | None = None
    """Refusal of its one row, which took too long or too much `_WAITS` times, alone."""
    failed_alone: int = 0
    """Times that its one row was too much for a server that stored others."""

    @property
    def size(self) -> int:
        """Number of what would be written."""
        return sum(map(len, self.rows.values())) + len(self.letters) + len(self.described)

    def halves(self) -> list[Part]:
        """Two parts, the first of what came first."""
        parts = [Part({}, [], []), Part({}, [], [])]
        for name, rows in self.rows.items():
            for half, some in zip(parts, halves(rows), strict=True):
                if some:
                    half.rows[name] = some
        for half, letters in zip(parts, halves(self.letters), strict=True):
            half.letters = letters
        for half, described in zip(parts, halves(self.described), strict=True):
            half.described = described
        return [half for half in parts if half.size]

    def by_past_day(self) -> list[Part]:
        """A part for each day that is past, and last what cannot be told apart from the present."""
        present = datetime.now(UTC).date() - timedelta(days=1)
        rest = Part({}, self.letters, self.described)
        days: dict[tuple[str, date], list[Row]] = {}
        for name, rows in self.rows.items():
            for row in rows:
                day = row.ts.date()
                if day < present:
                    days.setdefault((name, day), []).append(row)
                else:
                    rest.rows.setdefault(name, []).append(row)
        parts = [Part({of[0]: rows}, [], [], of) for of, rows in days.items()]
        return [*parts, rest] if rest.size else parts


class Closed(NamedTuple):
    """A day of a stream that cannot be written, by anybody or by one device."""

    until_s: float
    """Monotonic time when it is tried again."""
    why: str


def _no_more() -> None:
    return None


class Writer:
    """The one writer of a worker. It holds one connection, and a new one after every failure."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        metrics: Metrics,
        samples_json: Callable[[Delivery, Sequence[int]], list[bytes]],
        budget: Budget,
        random: Random,
        name: str | None = None,
    ) -> None:
        """`name` is the connection's at the database: the worker's own, but for who stands in."""
        self.trouble = Trouble(f"database {settings.database.address}", "not connected yet")
        self._settings = settings
        self._name = name or settings.broker.application_name
        self._catalogue = catalogue
        self._metrics = metrics
        self._samples_json = samples_json
        self._budget = budget
        self._backoff = Backoff(_FIRST_DELAY_S, _MOST_DELAY_S, random)
        self._connection: asyncpg.Connection | None = None
        self._devices: DeviceIds | None = None
        self._connections = 0
        self._failures = 0
        self._careful = False
        self._slow = False
        self._used_s = 0.0
        self._warning: str | None = None
        self._closed: dict[tuple[str, date, str | None], Closed] = {}
        self._misplaced = False
        self._said_s: dict[str, float] = {}
        self._waited: Counter[tuple[str, date]] = Counter()
        self._partitions = Budget(PARTITIONS_PER_MINUTE, 0)
        self._stale = False
        self._lock = asyncio.Lock()
        self._limit: asyncio.Timeout | None = None
        self._batch_waits = False

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
                with translated():
                    async with self._lock, self._deadline():
                        written = await self._attempt(parts[-1], kept, proven=total.good)
            except IngestError as failure:
                await self._recover(failure, parts, proven=total.good)
                whole = len(parts) == 1 and not total.good
                alone = isinstance(failure, Unforeseen | TooMuch)
                if whole and alone and (another := more()) is not None:
                    batch.absorb(another)
                    parts = [Part(batch.rows, batch.dead_letters, batch.described)]
            except Exception:
                self._drop()
                raise
            else:
                parts.pop()
                total.add(written)
                self._batch_waits = False
                self._works()
                self._careful = written.duplicate.total() > 0
                self._misplaced = False
        return total

    async def _attempt(self, part: Part, kept: dict[int, bool], *, proven: bool) -> Written:
        """Try one transaction.

        `kept` says of rows that were refused, by identity, if their letter is kept. That is decided
        once, so that a retry does not charge a device's budget again. `proven`: another part could
        be stored, so what fails here is at fault itself.
        """
        connection, ids_of = await self._connected()
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
        self._warning = None
        await transaction.commit()
        if self._warning is not None:
            # Cancelled while it waited for a standby, a commit is there on this server only.
            raise Unavailable(f"the commit may not be durable: {self._warning}")
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
        if part.hopeless is not None or strangers or self._closed:
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
            refusal = refusal or self._closed_to(table, row, now_s)
            if refusal is None:
                kept.append(row)
            else:
                refused.append((row, refusal))
        return kept, refused

    def _closed_to(self, table: str, row: Row, now_s: float) -> Refusal | None:
        """Say why a row's day cannot be written for now; None if it can."""
        day = row.ts.date()
        for whose in (None, row.device):
            closed = self._closed.get((table, day, whose))
            if closed is not None and closed.until_s > now_s:
                # That a day cannot be had is not the device's fault, and is kept for certain.
                why = closed.why if whose is None else None
                return Refusal("its day cannot be written", why, closed=True)
        return None

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
        if gone and self._seldom("letters"):
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
        if refused and self._seldom("descriptions"):
            place, failure = next(iter(refused.items()))
            device = described[place].device
            log.error("descriptions refused", why=str(failure), number=len(refused), one_of=device)

    async def _recover(self, failure: IngestError, parts: list[Part], *, proven: bool) -> None:
        """Bring about what the next attempt needs.

        `proven`: another part could be stored, so what fails alone is at fault itself.
        """
        slow, self._slow = self._slow, False
        past = parts[-1].past
        apart = parts[-1].by_past_day() if isinstance(failure, Locked) and not past else []
        match failure:
            case DuplicateKey() | Refused() | Unforeseen() if not self._careful:
                self._careful = True
            case NoPartition():
                await self._make_partitions(parts[-1])
            case Locked() if past and not await self._is_locked(self._catalogue[past[0]].table):
                self._close_day(self._catalogue[past[0]].table, past[1], str(failure))
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
                self._batch_waits = True
                holder = await self._holder() if isinstance(failure, Locked) else None
                self._drop()
                self._away(f"{failure}: {holder}" if holder else str(failure))
                await asyncio.sleep(self._backoff.delay_s())

    async def _holder(self) -> str | None:
        """Say who has locked one of our tables, or waits to; None if nobody knows."""
        try:
            with translated():
                async with self._lock, self._deadline():
                    connection, _ = await self._connected()
                    holder: str | None = await connection.fetchval(_HOLDER)
        except IngestError:
            return None
        return holder

    def _refuse_if_hopeless(self, part: Part, failure: IngestError) -> None:
        """Refuse the one row of a part if the server has said often enough that it is too much.

        That the server is silent, so that we cut the connection, says nothing about a row.
        """
        part.failed_alone += isinstance(failure, TooMuch)
        if part.failed_alone >= _WAITS:
            part.hopeless = refusal_of(Unforeseen(str(failure)))

    async def _is_locked(self, table: str) -> bool:
        """Tell if a whole table is locked, or nobody knows; then its days are not to blame."""
        lock = f"LOCK TABLE ONLY iov.{quoted(table)} IN ROW EXCLUSIVE MODE NOWAIT"
        try:
            with translated():
                async with self._lock, self._deadline():
                    connection, _ = await self._connected()
                    async with connection.transaction():
                        await connection.execute(lock)
        except IngestError:
            return True
        return False

    async def _make_partitions(self, part: Part) -> None:
        """Make what a part needs; a day that cannot be had is closed for a while."""
        wanted: dict[tuple[str, date], dict[str, None]] = {}
        for name, rows in part.rows.items():
            for row in rows:
                place = self._catalogue[name].table, row.ts.date()
                wanted.setdefault(place, {})[row.device] = None
        try:
            with translated():
                async with self._lock, self._deadline():
                    connection, _ = await self._connected()
                    lacking = await missing(connection, wanted)
                    made = [
                        place
                        for place in lacking
                        if await self._make_partition(connection, *place, wanted[place])
                    ]
        except IngestError as failure:
            self._drop()
            self._away(str(failure))
            await asyncio.sleep(self._backoff.delay_s())
            return
        if made:
            log.info("partitions made for late data", made=len(made))
        elif not lacking:
            # Another worker was quicker; or one by one will tell. If it does not, what bears the
            # name of a day does not take its rows.
            self._misplaced = self._careful
            self._careful = True
            self._away("a partition is there and does not take the rows of its day")
            await asyncio.sleep(self._backoff.delay_s())

    async def _make_partition(
        self, connection: asyncpg.Connection, table: str, day: date, devices: Mapping[str, None]
    ) -> bool:
        """Make one and say so; if that cannot be, close the day, to all or to these devices."""
        now_s = time.monotonic()
        payer = next((d for d in devices if not self._partitions.exhausted(d, now_s)), None)
        if payer is None:
            why = f"{PARTITIONS_PER_MINUTE} days were made for the device in this minute"
            if self._seldom("days used up"):
                log.warning("days used up", device=next(iter(devices)), table=table, why=why)
            for device in devices:
                self._closed[table, day, device] = Closed(now_s + CLOSED_S, why)
            return False
        try:
            await make_partitions(connection, [(table, day)])
        except asyncpg.PostgresError as exc:
            if connection.is_closed() or not self._is_about(table, day, exc):
                raise
            self._close_day(table, day, f"{exc.sqlstate}: {exc}")
            return False
        self._partitions.allows(payer, 0, now_s)
        self._waited.pop((table, day), None)
        return True

    def _is_about(self, table: str, day: date, exc: asyncpg.PostgresError) -> bool:
        """Tell if it is that day that cannot be had, rather than the server that is in trouble."""
        failure = meaning(exc)
        if isinstance(failure, Locked):
            self._waited[table, day] += 1
            return self._waited[table, day] % _WAITS == 0
        return exc.sqlstate == _DETACHING or type(failure) not in {Unavailable, TooMuch}

    def _seldom(self, what: str) -> bool:
        """Tell if it is time to say something again that may be so for every batch."""
        now_s = time.monotonic()
        if now_s < self._said_s.get(what, 0.0) + _SAY_EVERY_S:
            return False
        self._said_s[what] = now_s
        return True

    def _close_day(self, table: str, day: date, why: str) -> None:
        told = f"iov.{table} of {day} cannot be written: {why}"
        if self._seldom(f"day {table}"):
            hint = "its samples are kept in iov.dead_letter; FINALIZE ends a detach that is pending"
            log.error("day cannot be written", why=told, for_s=CLOSED_S, hint=hint)
        self._closed[table, day, None] = Closed(time.monotonic() + CLOSED_S, told)

    @property
    def problem(self) -> str | None:
        """Reason why no batch can be committed right now; None while one can."""
        return self.trouble.text

    @property
    def closed(self) -> str | None:
        """Which day cannot be written for now, and why; None if all can."""
        now_s = time.monotonic()
        self._closed = {d: closed for d, closed in self._closed.items() if closed.until_s > now_s}
        return next((closed.why for of, closed in self._closed.items() if of[2] is None), None)

    async def _connected(self) -> tuple[asyncpg.Connection, DeviceIds]:
        if self._connection is not None and (self._stale or self._connection.is_closed()):
            self._drop()
        idle_s = time.monotonic() - self._used_s
        self._used_s = time.monotonic()
        if self._connection is not None and idle_s > _IDLE_S and not await self._answers():
            self._drop()
        if self._connection is None or self._devices is None:
            self._connection = connection = await connect(self._settings.database, self._name)
            # What is left of this worker's earlier connection may still hold keys locked: a
            # client that fell silent in mid-COPY does so past every timeout.
            await connection.execute(_END_GHOSTS, self._name)
            await commit_durably(connection)
            await pooler.expect_own_session(
                connection, partial(connect, self._settings.database, pooler.NAME)
            )
            await expect_migrated(connection, self._catalogue)
            self._devices = DeviceIds(connection)
            self._stale = False
            connection.add_termination_listener(self._terminated)
            connection.add_log_listener(self._heard)
            self._connections += 1
            if self._connections > 1:
                self._metrics.reconnects.labels("database").inc()
        return self._connection, self._devices

    async def _answers(self) -> bool:
        """Whether the connection still works; a network may forget one that is idle."""
        connection = self._connection
        assert connection is not None
        # Dropped, not cancelled: asyncpg would ask a server that is silent to cancel.
        timer = asyncio.get_running_loop().call_later(_ANSWER_S, self._drop)
        try:
            with translated():
                await connection.fetchval("SELECT 1")
        except IngestError as failure:
            log.warning("the connection was dead", why=str(failure))
            return False
        finally:
            timer.cancel()
        return True

    async def try_idle(self) -> None:
        """Try the connection if nothing uses it, and make a new one if it is dead.

        So the next sample does not wait until it is noticed.
        """
        if not self._lock.locked() and time.monotonic() - self._used_s > _IDLE_S:
            await self.connect()

    async def connect(self, *, anew: bool = False) -> None:
        """Connect now rather than with the next batch; a failure shows in `problem`.

        `anew` gives up a connection that works, for one that sees changed server settings.
        """
        self._stale = self._stale or anew
        if self._batch_waits:
            # Connecting may well work; whether committing does, the next attempt will tell.
            return
        try:
            with translated(away):
                async with self._lock, self._deadline():
                    await self._connected()
        except Unavailable as failure:
            self._drop()
            self._away(str(failure))
        else:
            self._works()

    def _heard(self, _: asyncpg.Connection, message: asyncpg.PostgresLogMessage) -> None:
        # One that has a context is of a trigger's, not of the commit's.
        if message.severity_en == "WARNING" and not message.context:
            self._warning = f"{message.sqlstate}: {message.message}"

    def _terminated(self, connection: asyncpg.Connection) -> None:
        if connection is self._connection:
            self.trouble.text = "the database closed the connection"
            self._interrupt()

    def _works(self) -> None:
        if self.problem is not None:
            log.info("database ready", database=self._settings.database.address)
        self.trouble.text = None
        self._failures = 0
        self._backoff.reset()

    def _away(self, why: str) -> None:
        self._failures = self._failures + 1 if why == self.problem else 1
        self.trouble.text = why
        if self._failures % _LOG_EVERY == 1:
            log.warning(
                "cannot commit",
                why=why,
                database=self._settings.database.address,
                attempts=self._failures,
            )

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Cut the connection where the block takes too long, then interrupt the block.

        In this order: interrupted first, asyncpg would ask the server to cancel and to roll back,
        and a silent one answers neither.
        """
        timer = asyncio.get_running_loop().call_later(self._settings.commit_timeout_s, self.cut)
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
                # An interruption that is under way lands here, not in what comes after the block.
                await asyncio.sleep(0)
        finally:
            timer.cancel()
            self._limit = None

    def cut(self) -> None:
        """Give up the connection and whatever waits for it."""
        if self._connection is not None:
            self.trouble.text = "the database does not answer"
            self._slow = True
        self._drop()
        self._interrupt()

    def _interrupt(self) -> None:
        # asyncpg's COPY waits for the socket to take more and is not told that it is gone.
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(0)

    def _drop(self) -> None:
        """Let go of the connection without a word to a server that may not answer."""
        connection, self._connection, self._devices = self._connection, None, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Leave the database in order, within a second."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError):
                await connection.close(timeout=1.0)
        self.trouble.text = "closed"


def _expect_foreseen(refusals: list[Refusal]) -> None:
    """Raise Unforeseen if one of the rows was refused for a reason that nobody foresaw."""
    for refusal in refusals:
        if refusal.unforeseen is not None and not refusal.closed:
            raise Unforeseen(refusal.unforeseen)
