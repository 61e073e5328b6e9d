"""Writes batches: all of one batch in one transaction, for ever until it is committed.

The fast way is COPY straight into the stream's table. Where a key is there already or a row is
refused, the batch is rolled back and goes the careful way: through a staging table, where
duplicates fall out and a refused row is found by halves. Whatever the failure, the batch is never
given up; only an error that is none of the database's ends the process, and the broker still has
the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from random import Random

import asyncpg
import structlog

from ingest.backoff import Backoff
from ingest.batch import Batch, DeadLetter, dead_letter
from ingest.budget import Budget
from ingest.config import Settings
from ingest.errors import IngestError, Refused, Unavailable
from ingest.metrics import Metrics
from ingest.model import Delivery, Reason, Rejected, Row
from ingest.schema import Catalogue, Stream
from ingest.store.connect import connect, expect_migrated
from ingest.store.copy import copy
from ingest.store.devices import DeviceIds, describe
from ingest.store.failures import DuplicateKey, NoPartition, meaning, unless_cancelled
from ingest.store.partitions import make_partitions
from ingest.store.staging import merge

_FIRST_DELAY_S, _MOST_DELAY_S = 0.1, 10.0
_LOG_EVERY = 30
_END_GHOSTS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE application_name = $1 AND usename = current_user AND datname = current_database()
  AND pid <> pg_backend_pid()
"""

log = structlog.get_logger("store")


@dataclass(slots=True)
class Written:
    """What one committed batch came to."""

    stored: dict[str, int] = field(default_factory=dict)
    duplicate: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    suppressed: dict[str, int] = field(default_factory=dict)
    """Of these, dead letters beyond their device's budget."""
    letters: list[DeadLetter] = field(default_factory=list)
    """All that are kept."""


class Writer:
    """The one writer of a worker. It holds one connection, and a new one after every failure."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        metrics: Metrics,
        sample_json: Callable[[Delivery, int], bytes],
        budget: Budget,
        random: Random,
        name: str | None = None,
    ) -> None:
        """`name` is the connection's at the database: the worker's own, but for who stands in."""
        self.problem: str | None = "not connected to the database yet"
        """Why no batch can be committed right now; None while it can."""
        self._settings = settings
        self._name = name or settings.application_name
        self._catalogue = catalogue
        self._metrics = metrics
        self._sample_json = sample_json
        self._budget = budget
        self._backoff = Backoff(_FIRST_DELAY_S, _MOST_DELAY_S, random)
        self._connection: asyncpg.Connection | None = None
        self._devices: DeviceIds | None = None
        self._connections = 0
        self._failures = 0
        self._careful = False
        self._stale = False
        self._lock = asyncio.Lock()
        self._limit: asyncio.Timeout | None = None
        self._batch_waits = False

    async def write(self, batch: Batch) -> Written:
        """Commit the batch, however often that has to be tried."""
        while True:
            try:
                async with self._lock, self._deadline():
                    written = await self._attempt(batch)
            except Exception as exc:
                unless_cancelled(exc)
                failure = meaning(exc)
                if failure is None:
                    self._drop()
                    raise
                await self._recover(failure, batch)
            else:
                self._batch_waits = False
                self._works()
                self._careful = any(written.duplicate.values())
                return written

    async def _attempt(self, batch: Batch) -> Written:
        connection, ids_of = await self._connected()
        ids = await ids_of.resolve({row.device for rows in batch.rows.values() for row in rows})
        for rows in batch.rows.values():
            # In place: a copy of every row was 4 % of all CPU time.
            for row in rows:
                row.values[0] = ids[row.device]
        written = Written(letters=list(batch.dead_letters))
        async with connection.transaction():
            for name, rows in batch.rows.items():
                stream = self._catalogue[name]
                columns = _columns(stream, rows)
                records = [row.values for row in rows]
                if self._careful:
                    stored, refused = await merge(connection, stream, columns, records)
                    kept = self._refused(batch, name, refused)
                    written.letters += kept
                    written.stored[name] = stored
                    written.refused[name] = len(refused)
                    written.suppressed[name] = len(refused) - len(kept)
                    written.duplicate[name] = len(records) - stored - len(refused)
                else:
                    await copy(connection, "iov", stream.table, columns, records)
                    written.stored[name] = len(records)
            if written.letters:
                await copy(connection, "iov", "dead_letter", DeadLetter._fields, written.letters)
            if batch.described:
                await describe(connection, ids, batch.described)
        return written

    def _refused(self, batch: Batch, name: str, refused: dict[int, str]) -> list[DeadLetter]:
        """The dead letters of what the store refused, as far as its devices' budgets go."""
        letters, now_s = [], time.monotonic()
        for position, detail in refused.items():
            row = batch.rows[name][position]
            rejected = Rejected(
                name,
                name,
                row.device,
                Reason.REFUSED_BY_STORE,
                detail,
                self._sample_json(row.delivery, row.position),
            )
            place = name, position
            if place not in batch.kept:
                size = len(rejected.payload)
                batch.kept[place] = self._budget.allows(rejected.device, size, now_s)
            if batch.kept[place]:
                letters.append(dead_letter(row.delivery, rejected))
        return letters

    async def _recover(self, failure: IngestError, batch: Batch) -> None:
        """Bring about what the next attempt needs."""
        match failure:
            case DuplicateKey() | Refused() if not self._careful:
                self._careful = True
            case NoPartition():
                await self._make_partitions(batch)
            case Unavailable():
                self._batch_waits = True
                self._drop()
                self._away(str(failure))
                await asyncio.sleep(self._backoff.delay_s())
            case _:
                # The careful way leaves nothing to refuse: this is a bug, not a bad sample.
                self._drop()
                raise failure

    async def _make_partitions(self, batch: Batch) -> None:
        wanted = {
            (self._catalogue[name].table, row.values[1].date())
            for name, rows in batch.rows.items()
            for row in rows
        }
        try:
            async with self._lock, self._deadline():
                connection, _ = await self._connected()
                made = await make_partitions(connection, wanted)
        except Exception as exc:
            unless_cancelled(exc)
            failure = meaning(exc)
            if not isinstance(failure, Unavailable):
                raise
            await self._recover(failure, batch)
            return
        log.info("partitions made for late data", made=made)
        if not made:
            await asyncio.sleep(self._backoff.delay_s())

    async def _connected(self) -> tuple[asyncpg.Connection, DeviceIds]:
        if self._connection is not None and (self._stale or self._connection.is_closed()):
            self._drop()
        if self._connection is None or self._devices is None:
            self._connection = connection = await connect(self._settings, self._name)
            # What is left of this worker's earlier connection may still hold keys locked: a
            # client that fell silent in mid-COPY does so past every timeout.
            await connection.execute(_END_GHOSTS, self._name)
            await expect_migrated(connection, self._catalogue)
            self._devices = DeviceIds(connection)
            self._stale = False
            connection.add_termination_listener(self._terminated)
            self._connections += 1
            if self._connections > 1:
                self._metrics.reconnects.labels("database").inc()
        return self._connection, self._devices

    async def connect(self, *, anew: bool = False) -> None:
        """Connect now rather than with the next batch; a failure shows in `problem`.

        `anew` gives up a connection that works, for one that sees changed server settings.
        """
        self._stale = self._stale or anew
        if self._batch_waits:
            # Connecting may well work; whether committing does, the next attempt will tell.
            return
        try:
            async with self._lock, self._deadline():
                await self._connected()
        except Exception as exc:
            unless_cancelled(exc)
            failure = meaning(exc)
            if not isinstance(failure, Unavailable):
                raise
            self._drop()
            self._away(str(failure))
        else:
            self._works()

    def _terminated(self, connection: asyncpg.Connection) -> None:
        if connection is self._connection:
            self.problem = "the database closed the connection"
            self._interrupt()

    def _works(self) -> None:
        if self.problem is not None:
            log.info("database ready")
        self.problem = None
        self._failures = 0
        self._backoff.reset()

    def _away(self, why: str) -> None:
        self._failures = self._failures + 1 if why == self.problem else 1
        self.problem = why
        if self._failures % _LOG_EVERY == 1:
            log.warning("cannot commit", why=why, attempts=self._failures)

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
            self.problem = "the database does not answer"
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
        self.problem = "closed"


def _columns(stream: Stream, rows: Sequence[Row]) -> list[str]:
    """The columns that rows have values for, all of them the same from now on."""
    kinds = {row.present for row in rows}
    wanted = reduce(or_, kinds)
    if len(kinds) > 1:
        for row in rows:
            if row.present != wanted:
                stream.layout.widen(row.values, row.present, wanted)
                row.present = wanted
    return stream.layout.columns(wanted)
