"""The one connection that a worker writes over, from its opening to its end.

It is opened when it is needed, and a new one after every failure. Nobody waits for a silent server:
the connection is dropped without telling the server, and the task that uses it is interrupted.
`trouble` holds the reason why nothing can be committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from random import Random

import asyncpg
import structlog
from asyncpg.transaction import Transaction

from ingest.backoff import Backoff
from ingest.database import Database
from ingest.errors import IngestError, Unavailable
from ingest.metrics import Metrics
from ingest.schema import Catalogue
from ingest.store import pooler
from ingest.store.connect import commit_durably, connect, expect_migrated
from ingest.store.devices import DeviceIds
from ingest.store.failures import away, translated
from ingest.trouble import Trouble

_FIRST_DELAY_S, _MOST_DELAY_S = 0.1, 10.0
_IDLE_S, _ANSWER_S = 1.0, 2.0
"""Seconds without use after which a connection is tested before its use; seconds to answer."""
_LOG_EVERY = 30
"""Number of attempts per log entry while the failure stays the same: 1st, 31st, 61st …"""
_END_GHOSTS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE application_name = $1 AND usename = current_user AND datname = current_database()
  AND pid <> pg_backend_pid()
"""

log = structlog.get_logger(__name__)


class StoreConnection:
    """One connection at a time, for one user at a time."""

    def __init__(
        self,
        database: Database,
        name: str,
        catalogue: Catalogue,
        metrics: Metrics,
        random: Random,
        timeout_s: float,
    ) -> None:
        """Prepare without connecting; `name` is the application_name, `timeout_s` limits a use."""
        self.trouble = Trouble(f"database {database.address}", "not connected yet")
        self.batch_waits = False
        """True while a failed batch is not committed: being able to connect proves nothing then."""
        self.was_cut = False
        """True if the last use was cut."""
        self._database = database
        self._name = name
        self._catalogue = catalogue
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._backoff = Backoff(_FIRST_DELAY_S, _MOST_DELAY_S, random)
        self._connection: asyncpg.Connection | None = None
        self._ids: DeviceIds | None = None
        self._lock = asyncio.Lock()
        """Lock around each use, because a connection runs only one statement at a time."""
        self._limit: asyncio.Timeout | None = None
        """Timeout of the current use, to interrupt it."""
        self._used_s = 0.0
        self._connections = 0
        self._failures = 0
        self._stale = False
        """True if a working connection is to be replaced, in order to see changed settings."""
        self._warning: str | None = None

    @property
    def problem(self) -> str | None:
        """Reason why no batch can be committed right now; None while one can."""
        return self.trouble.text

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[tuple[asyncpg.Connection, DeviceIds]]:
        """Reserve the connection, and the device ids known over it, for the block.

        A database error is raised as the IngestError that it means (`failures.meaning`).
        """
        with translated():
            async with self._lock, self._deadline():
                self.was_cut = False
                try:
                    yield await self._connected()
                except AttributeError as exc:
                    # Between two steps of a statement asyncpg finds the connection dropped.
                    if self._connection is not None:
                        raise
                    raise Unavailable("the connection was cut") from exc

    async def commit(self, transaction: Transaction) -> None:
        """Commit within a use; raises Unavailable if the commit may not be durable."""
        self._warning = None
        await transaction.commit()
        if self._warning is not None:
            # If the wait for a standby was cancelled, the commit is on this server only.
            raise Unavailable(f"the commit may not be durable: {self._warning}")

    async def connect(self, *, anew: bool = False) -> None:
        """Connect now rather than with the next batch; a failure shows in `trouble`.

        `anew` also replaces a working connection, so that changed server settings are seen.
        """
        self._stale = self._stale or anew
        if self.batch_waits:
            # Connecting may work, but only the next attempt shows if a commit does too.
            return
        try:
            with translated(away):
                async with self.use():
                    pass
        except Unavailable as failure:
            self.drop()
            self._say(str(failure))
        else:
            self.works()

    async def try_idle(self) -> None:
        """Try the connection if nothing uses it, and make a new one if it is dead.

        Otherwise the next sample would wait until the dead connection is noticed.
        """
        if not self._lock.locked() and time.monotonic() - self._used_s > _IDLE_S:
            await self.connect()

    def works(self) -> None:
        """Record that the connection works, which ends the trouble."""
        if self.trouble.text is not None:
            log.info("database ready", database=self._database.address)
        self.trouble.text = None
        self._failures = 0
        self._backoff.reset()

    async def lose(self, why: str) -> None:
        """Drop the connection and wait, longer after each failure."""
        self.drop()
        await self.wait(why)

    async def wait(self, why: str) -> None:
        """Say why nothing can be committed, and wait, longer after each failure."""
        self._say(why)
        await asyncio.sleep(self._backoff.delay_s())

    def cut(self) -> None:
        """Drop the connection and interrupt its current use."""
        if self._connection is not None:
            self.trouble.text = "the database does not answer"
            self.was_cut = True
        self.drop()
        self._interrupt()

    def drop(self) -> None:
        """Drop the connection without telling the server, which may not answer."""
        connection, self._connection, self._ids = self._connection, None, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Close the connection in order, within 1 s."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError):
                await connection.close(timeout=1.0)
        self.trouble.text = "closed"

    async def _connected(self) -> tuple[asyncpg.Connection, DeviceIds]:
        """Return the connection, made anew if it is closed, stale or dead."""
        # Phase 1: is there one that can be used?
        if self._connection is not None and (self._stale or self._connection.is_closed()):
            self.drop()
        idle_s = time.monotonic() - self._used_s
        self._used_s = time.monotonic()
        if self._connection is not None and idle_s > _IDLE_S and not await self._answers():
            self.drop()
        if self._connection is not None and self._ids is not None:
            return self._connection, self._ids
        # Phase 2: make one. From here on a cut finds it.
        self._connection = connection = await connect(self._database, self._name)
        # Phase 3: end what is left of this worker's earlier connection. It may still hold keys
        # locked, and past every timeout if its client fell silent in mid-COPY.
        await connection.execute(_END_GHOSTS, self._name)
        # Phase 4: are its commits durable and the tables in place?
        await commit_durably(connection)
        await pooler.expect_own_session(connection, partial(connect, self._database, pooler.NAME))
        await expect_migrated(connection, self._catalogue)
        # Phase 5: it is in use. Ids may have changed while there was no connection.
        self._ids = ids = DeviceIds(connection)
        self._stale = False
        connection.add_termination_listener(self._terminated)
        connection.add_log_listener(self._heard)
        self._connections += 1
        if self._connections > 1:
            self._metrics.reconnects.labels("database").inc()
        return connection, ids

    async def _answers(self) -> bool:
        """Return true if the connection still works; a network may have forgotten an idle one."""
        connection = self._connection
        assert connection is not None
        # Dropped, not cancelled: asyncpg would ask a server that is silent to cancel.
        timer = asyncio.get_running_loop().call_later(_ANSWER_S, self.drop)
        try:
            with translated():
                await connection.fetchval("SELECT 1")
        except IngestError as failure:
            log.warning("the connection was dead", why=str(failure))
            return False
        finally:
            timer.cancel()
        return True

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Cut the connection if the block takes too long, then interrupt the block.

        The order matters. If the block were interrupted first, asyncpg would ask the server to
        cancel and to roll back, and a silent server answers neither.
        """
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self.cut)
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
                # An interruption that is under way lands here, not in what comes after the block.
                await asyncio.sleep(0)
        finally:
            timer.cancel()
            self._limit = None

    def _interrupt(self) -> None:
        """End the current use with TimeoutError.

        Dropping the connection is not enough: asyncpg's COPY waits until the socket takes more
        data, and does not learn that the socket is gone.
        """
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(0)

    def _heard(self, _: asyncpg.Connection, message: asyncpg.PostgresLogMessage) -> None:
        # A warning with a context comes from a trigger, not from the commit.
        if message.severity_en == "WARNING" and not message.context:
            self._warning = f"{message.sqlstate}: {message.message}"

    def _terminated(self, connection: asyncpg.Connection) -> None:
        if connection is self._connection:
            self.trouble.text = "the database closed the connection"
            self._interrupt()

    def _say(self, why: str) -> None:
        self._failures = self._failures + 1 if why == self.trouble.text else 1
        self.trouble.text = why
        if self._failures % _LOG_EVERY == 1:
            log.warning(
                "cannot commit",
                why=why,
                database=self._database.address,
                attempts=self._failures,
            )
