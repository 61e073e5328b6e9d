"""The test stand: servers, a service as a process of its own, and load on it.

Rows are counted in the database. `fsync` and `synchronous_commit` are on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from urllib.parse import urlsplit

import asyncpg

from ingest.config import load
from ingest.errors import ServerError
from ingest.lab.bench.drive import Counters, Progress, Run, cpu_s, drive, rss_mb
from ingest.lab.bench.publisher import FastPublisher, Traffic, connected
from ingest.lab.embedded import Mosquitto, Postgres, mosquitto, neighbouring_ports, postgres
from ingest.lab.process import COMMAND, WorkerProcess, running
from ingest.schema import load_catalogue
from ingest.store import make_ahead, migrate

_STORED = "iov_samples_stored_total"
SETTINGS = {"max_wal_size": "4GB", "checkpoint_timeout": "30min"}
"""Settings of PostgreSQL besides its defaults, so that no run has a checkpoint that others lack."""

_ADD_DEVICES = """
INSERT INTO iov.device (device, first_seen_at)
SELECT 'bench-' || to_char(n, 'FM0000000'), now() FROM generate_series(0, $1::integer) AS n
"""
_FILL = """
INSERT INTO iov.nev (device_id, ts, seq, received_at, resend, speed_kmh, soc_pct, odometer_km)
SELECT n % 1000 + 1, now() - n * interval '100 microseconds', n, now(), false,
       n % 120, n % 100, n
FROM generate_series($1::bigint, $2::bigint) AS n
"""
_FILL_ROWS = 500_000
_HAS_TIMESCALEDB = """
SELECT current_setting('shared_preload_libraries') LIKE '%timescaledb%'
   AND EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
"""
_SETTINGS = """
SELECT name, current_setting(name) FROM pg_settings WHERE name IN (
    'fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size',
    'checkpoint_timeout', 'wal_compression') ORDER BY name
"""


_KEPT = ("IOV_BATCH_ROWS", "IOV_BATCH_WAIT_MS", "IOV_MQTT_RECEIVE_MAXIMUM")
"""Settings taken from the environment, to try them out; all others concern other servers."""


def surroundings() -> dict[str, str]:
    """Return our environment without the `IOV_` settings that the bench must not use."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith("IOV_")
    }


def service_settings() -> dict[str, int]:
    """Return the values of the service's settings that may be tried out with the bench."""
    settings = load(environ=surroundings())
    return {name: getattr(settings, name.removeprefix("IOV_").lower()) for name in _KEPT}


@dataclass
class Workers:
    """The workers under test."""

    pids: list[int]
    look: Callable[[], Awaitable[Counters]]


@dataclass
class Load:
    """Load of one run, and the service that is under it."""

    source: str = "mqtt5"
    workers: int = 1
    devices: int = 1_000
    streams: Sequence[str] = ("nev",)
    samples: int = 1
    database: str | None = None
    """URL that the service writes to; None for a new database that is dropped afterwards."""
    settings: Mapping[str, str] = field(default_factory=dict)


class Stand:
    """A database server and a broker, and what runs between them."""

    def __init__(
        self,
        server_url: str,
        broker: Mosquitto,
        postgres: Postgres | None,
        until_the_end: contextlib.AsyncExitStack,
    ) -> None:
        """Keep the servers; `postgres` is None if the database server is not ours to stop.

        `until_the_end` closes what the stand makes for all of its runs.
        """
        self.broker, self.postgres, self._until_the_end = broker, postgres, until_the_end
        self._server_url = server_url
        self._numbers = count(1)
        self._traffics: dict[str, int] = {}
        self._template: str | None = None

    @asynccontextmanager
    async def database(self, store: str = "postgres", devices: int = 0) -> AsyncIterator[str]:
        """Make a migrated database with `devices` devices, while the block runs; yield its URL."""
        # TimescaleDB's own sessions stay in a database that has it, so it cannot be copied.
        made = self._migrated(store) if store == "timescaledb" else self._copied()
        async with made as url:
            async with self.connection(url) as database:
                await database.execute(_ADD_DEVICES, devices - 1)
            yield url

    @asynccontextmanager
    async def _copied(self) -> AsyncIterator[str]:
        if self._template is None:
            # To migrate takes 1.6 s, to copy 0.1 (measured); it ends with the stand.
            url = await self._until_the_end.enter_async_context(self._migrated("postgres"))
            self._template = urlsplit(url).path[1:]
        async with self._created(f"TEMPLATE {self._template}") as url:
            yield url

    @asynccontextmanager
    async def _migrated(self, store: str) -> AsyncIterator[str]:
        async with self._created() as url:
            settings = load(environ={"IOV_DATABASE_URL": url, "IOV_STORE": store})
            async with self.connection(url) as database:
                if store == "timescaledb":
                    await database.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
                catalogue = load_catalogue(settings.schema_dir)
                await migrate(settings, catalogue)
                await make_ahead(database, catalogue, datetime.now(UTC).date())
            yield url

    @asynccontextmanager
    async def _created(self, how: str = "") -> AsyncIterator[str]:
        """Create a database while the block runs; yield its URL."""
        name = f"iov_bench_{os.getpid()}_{next(self._numbers)}"
        async with self.connection() as server:
            await server.execute(f"CREATE DATABASE {name} {how}")
        try:
            yield urlsplit(self._server_url)._replace(path=f"/{name}").geturl()
        finally:
            async with self.connection() as server:
                await server.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @asynccontextmanager
    async def connection(self, url: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        """Hold a connection while the block runs."""
        connection = await asyncpg.connect(url or self._server_url)
        try:
            yield connection
        finally:
            await connection.close()

    async def rows(self, url: str, streams: Sequence[str]) -> int:
        """Count the rows in the tables of some streams."""
        async with self.connection(url) as database:
            numbers = [
                await database.fetchval(f"SELECT count(*) FROM iov.{name.replace('-', '_')}")  # noqa: S608  names of our catalogue
                for name in streams
            ]
        return sum(numbers)

    async def fill(self, url: str, rows: int, say: Progress) -> None:
        """Put `rows` rows of a thousand devices into `iov.nev`, all from the last hours."""
        async with self.connection(url) as database:
            for first in range(1, rows + 1, _FILL_ROWS):
                last = min(first + _FILL_ROWS - 1, rows)
                await database.execute(_FILL, first, last)
                say(f"{last:,} of {rows:,} rows to begin with")
            await database.execute("VACUUM ANALYZE iov.nev")

    async def has_timescaledb(self) -> bool:
        """Return whether the server has the extension and has it loaded."""
        async with self.connection() as server:
            found: bool = await server.fetchval(_HAS_TIMESCALEDB)
        return found

    async def server(self) -> tuple[str, dict[str, str]]:
        """Return the server's version and the settings that matter."""
        async with self.connection() as server:
            rows = await server.fetch(_SETTINGS)
            return str(await server.fetchval("SHOW server_version")), dict(rows)

    @asynccontextmanager
    async def service(
        self, url: str, load_: Load, broker_port: int | None = None
    ) -> AsyncIterator[Workers]:
        """Run workers while the block runs; they leave no session behind."""
        first = neighbouring_ports(load_.workers + 1)
        environ = {
            "IOV_MQTT_URL": f"mqtt://127.0.0.1:{broker_port or self.broker.port}",
            "IOV_DATABASE_URL": url,
            "IOV_MQTT_CLIENT": load_.source,
            "IOV_MQTT_CLIENT_ID": "iov-bench",
            "IOV_MQTT_SESSION_EXPIRY_S": "0",
            "IOV_HTTP_HOST": "127.0.0.1",
            "IOV_HTTP_PORT": str(first),
            "IOV_LOG_LEVEL": "warning",
            **load_.settings,
        }
        alone = load_.workers == 1
        workers = WorkerProcess(
            {**surroundings(), **environ},
            first if alone else first + load_.workers,
            (*COMMAND, "--workers", str(load_.workers)),
        )
        async with running(workers):
            assert workers.process is not None
            pids = [workers.process.pid] if alone else workers.children()

            async def look() -> Counters:
                ports = range(first, first + load_.workers)
                committed = sum([await workers.metric(_STORED, port) for port in ports])
                used = sum(cpu_s(pid) for pid in pids)
                return Counters(time.monotonic(), used, sum(map(rss_mb, pids)), int(committed))

            yield Workers(pids, look)

    async def run(self, load_: Load, seconds: float, warm_up_s: float, say: Progress) -> Run:
        """Do one run: start a service, put load on it, and count the rows afterwards."""
        async with contextlib.AsyncExitStack() as stack:
            url = load_.database
            if url is None:
                store = load_.settings.get("IOV_STORE", "postgres")
                url = await stack.enter_async_context(self.database(store, load_.devices))
            before = await self.rows(url, load_.streams)
            async with self.service(url, load_) as service, self._publisher() as publisher:
                traffic = self._traffic(url, load_)
                first = load_.devices * load_.samples * len(load_.streams)
                measured = await drive(
                    publisher, traffic, service.look, seconds, warm_up_s, say,
                    # Every device once, so that the service has looked up its id.
                    warm_up_samples=first if warm_up_s else 0,
                )  # fmt: skip
                self._traffics[url] = traffic.sent
                last = (await service.look()).committed
            rows = await self.rows(url, load_.streams) - before
        if rows < last:
            raise ServerError(f"{last} counted as committed and {rows} in the table")
        return measured

    def _traffic(self, url: str, load_: Load) -> Traffic:
        """Return traffic that goes on where the last run ended, so that no key comes twice."""
        traffic = Traffic(
            devices=load_.devices, streams=load_.streams, samples=load_.samples,
        )  # fmt: skip
        traffic.sent = self._traffics.get(url, 0)
        return traffic

    @asynccontextmanager
    async def _publisher(self) -> AsyncIterator[FastPublisher]:
        publisher = await connected(self.broker.port)
        try:
            yield publisher
        finally:
            publisher.close()


@asynccontextmanager
async def stand(server_url: str | None = None) -> AsyncIterator[Stand]:
    """Run a test stand while the block runs, with its own PostgreSQL if no URL is given.

    `fsync` and `synchronous_commit` are on, as by default.
    """
    async with mosquitto() as broker, contextlib.AsyncExitStack() as until_the_end:
        own = None
        if server_url is None:
            own = until_the_end.enter_context(postgres(SETTINGS))
            server_url = own.url
        yield Stand(server_url, broker, own, until_the_end)
