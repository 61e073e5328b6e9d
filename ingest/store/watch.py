"""Looks at the database apart from the batches: is it there, migrated, durable? Makes days ahead.

Each look opens a new connection, as a worker would, so that it also sees trouble with connecting
and changed settings of the server.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
import structlog

from ingest.clock import Clock
from ingest.config import Settings
from ingest.errors import Unavailable
from ingest.metrics import Metrics
from ingest.schema import Catalogue
from ingest.store import pooler
from ingest.store.connect import (
    connect,
    durability_problem,
    expect_migrated,
    may_be_accepted,
)
from ingest.store.connection import StoreConnection
from ingest.store.failures import away, translated
from ingest.store.partitions import DAYS_AHEAD, make_ahead
from ingest.trouble import Trouble

INTERVAL_S, INTERVAL_IN_TROUBLE_S = 5.0, 1.0
_TIMEOUT_S = 30.0
NAME = "iov-ingest watch"
_CLOCK = "SELECT clock_timestamp()"

log = structlog.get_logger(__name__)


class Watch:
    """Regular look at the database, to find out if commits are possible and durable enough."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        metrics: Metrics,
        writers: StoreConnection,
        clock: Clock,
    ) -> None:
        self.trouble = Trouble(f"database {settings.database.address}", "not checked yet")
        self._settings = settings
        self._catalogue = catalogue
        self._metrics = metrics
        self._writers = writers
        self._clock = clock
        self.warning: str | None = None
        """Durability problem that was found and that the operator accepts; otherwise None."""
        self._ahead_for: datetime | None = None
        self._writer_saw_problem = False
        self.up_since_s: float | None = None
        """Monotonic time since which every look found the database ready; None after a failure."""

    @property
    def problem(self) -> str | None:
        """Reason why the database is not ready; None while it is."""
        return self.trouble.text

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await self.look()
            in_trouble = self.problem is not None or self._writers.problem is not None
            await asyncio.sleep(INTERVAL_IN_TROUBLE_S if in_trouble else INTERVAL_S)

    async def look(self) -> None:
        """Look once; if the database is ready, see that the writer has a working connection."""
        limit_s = min(_TIMEOUT_S, self._settings.commit_timeout_s)
        try:
            with translated(away):
                async with asyncio.timeout(limit_s):
                    problem = await self._problem()
        except Unavailable as failure:
            self._metrics.database_up.set(0)
            self._say(str(failure))
            return
        self._metrics.database_up.set(1)
        self._say(problem)
        if problem is not None:
            # What is wrong may be a setting of each session: the writer gets a new one afterwards.
            self._writer_saw_problem = True
        elif self._writer_saw_problem or self._writers.problem is not None:
            await self._writers.connect(anew=self._writer_saw_problem)
            self._writer_saw_problem = False
        else:
            await self._writers.try_idle()

    async def _problem(self) -> str | None:
        connection = await connect(self._settings.database, NAME)
        try:
            there: datetime = await connection.fetchval(_CLOCK)
            self._clock.look(datetime.now(UTC), time.monotonic(), there)
            await pooler.expect_own_session(
                connection, partial(connect, self._settings.database, pooler.NAME)
            )
            await expect_migrated(connection, self._catalogue)
            if problem := await durability_problem(connection):
                if not may_be_accepted(problem, self._settings):
                    return problem
                self._warn(problem)
            await self._make_ahead(connection, there)
            await connection.close()
        finally:
            connection.terminate()
        return None

    async def _make_ahead(self, connection: asyncpg.Connection, now: datetime) -> None:
        hour = now.replace(minute=0, second=0, microsecond=0)
        if hour != self._ahead_for:
            made = await make_ahead(connection, self._catalogue, hour.date())
            self._ahead_for = hour
            until = hour.replace(hour=0) + timedelta(days=DAYS_AHEAD + 1)
            self._metrics.partitions_until.set(until.timestamp())
            if made:
                log.info("partitions made ahead", made=made)

    def _warn(self, problem: str) -> None:
        if self.warning is None:
            log.warning(
                "storing although it may be lost", why=problem, set_by="IOV_UNSAFE_DATABASE"
            )
        self.warning = f"IOV_UNSAFE_DATABASE is accept, and {problem}"

    def _say(self, problem: str | None) -> None:
        if problem != self.problem:
            if problem is not None:
                log.warning(
                    "database not ready", why=problem, database=self._settings.database.address
                )
            elif self.problem is not None:
                log.info("database ready again", database=self._settings.database.address)
        self.trouble.text = problem
        if problem is not None:
            self.up_since_s = None
        elif self.up_since_s is None:
            self.up_since_s = time.monotonic()
