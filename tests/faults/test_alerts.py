"""Every alert once for real: a worker that is broken that way, and a Prometheus that sees it.

What takes days or a bug of ours to break is put into the worker's figures by hand, and says so.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from ingest.lab.embedded import Mosquitto, mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue
from tests.prometheus import SHIPPED, ask, program, prometheus
from tests.support import (
    OwnDatabase,
    Worker,
    bad_sample,
    publisher,
    sample,
    working,
)

pytestmark = pytest.mark.slow

ALERTS = re.findall(r"^ +- alert: (\w+)", (SHIPPED / "alerts.yml").read_text(), re.MULTILINE)
Fault = Callable[["Night"], Awaitable[None]]
FAULTS: dict[str, Fault] = {}


class Night:
    """A worker, what it works with, and the Prometheus that watches it."""

    def __init__(
        self, worker: Worker, broker: Mosquitto, database: OwnDatabase, url: str, directory: Path
    ) -> None:
        self.worker, self.broker, self.database = worker, broker, database
        self.directory = directory
        self._url = url

    async def fires(self, alert: str) -> bool:
        return bool(await ask(self._url, f'ALERTS{{alertname="{alert}",alertstate="firing"}}'))

    async def is_quiet(self, alert: str) -> bool:
        return not await self.fires(alert)

    @asynccontextmanager
    async def traffic(self, make: Callable[[int], Any], per_s: float) -> AsyncIterator[None]:
        """Samples at a rate while the block runs."""

        async def publish_on() -> None:
            async with publisher(self.broker.url) as publish:
                for number in range(100_000):
                    await publish(make(number))
                    await asyncio.sleep(1 / per_s)  # the rate; nothing is waited for

        publishing = asyncio.create_task(publish_on())
        try:
            yield
        finally:
            publishing.cancel()
            await asyncio.wait([publishing])

    async def until_it_fires(self, alert: str) -> None:
        await until(partial(self.fires, alert), alert)


def fault(function: Fault) -> Fault:
    FAULTS["".join(part.capitalize() for part in function.__name__.split("_"))] = function
    return function


@fault
async def iov_no_data(night: Night) -> None:
    async with publisher(night.broker.url) as publish:
        await publish(sample(1))
    await night.worker.settles(1)
    await night.until_it_fires("IovNoData")


@fault
async def iov_data_drops(night: Night) -> None:
    async with night.traffic(sample, 100):
        await until(lambda: night.worker.settled() >= 300, "as much as came yesterday")
    async with night.traffic(lambda n: sample(100_000 + n), 4):
        await night.until_it_fires("IovDataDrops")


@fault
async def iov_not_ready(night: Night) -> None:
    async with locked(night.database), night.traffic(sample, 10):
        await night.until_it_fires("IovNotReady")


@fault
async def iov_stuck(night: Night) -> None:
    async with locked(night.database), night.traffic(sample, 10):
        await night.until_it_fires("IovStuck")


@fault
async def iov_event_lag(night: Night) -> None:
    late = datetime.now(UTC) - timedelta(minutes=10)
    async with night.traffic(lambda n: sample(n, late), 20):
        await night.until_it_fires("IovEventLag")


@fault
async def iov_dead_letters(night: Night) -> None:
    async with night.traffic(lambda n: bad_sample(n) if n % 10 else sample(n), 20):
        await night.until_it_fires("IovDeadLetters")


@fault
async def iov_broker_window(night: Night) -> None:
    # As the worker finds it out (tests/unit/test_window.py).
    night.worker.service.source.inbox.broker_window.limit = 20
    await night.until_it_fires("IovBrokerWindow")


@fault
async def iov_window_full(night: Night) -> None:
    await slow(night.database, 0.1)
    async with night.traffic(sample, 2_000):
        await night.until_it_fires("IovWindowFull")


@fault
async def iov_account_open(night: Night) -> None:
    # A bug of ours, so it is made here: a sample that was counted and is nowhere.
    night.worker.service.metrics.samples_received.labels("nev").inc()
    await night.until_it_fires("IovAccountOpen")


@fault
async def iov_partitions_missing(night: Night) -> None:
    # As it is three days after the last one was made.
    night.worker.service.metrics.partitions_until.set(datetime.now(UTC).timestamp() + 3_600)
    await night.until_it_fires("IovPartitionsMissing")


@fault
async def iov_workers_silent(night: Night) -> None:
    await night.database.execute(
        "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at) "
        "SELECT 'gone', broker, subscription, now() - interval '1 hour' FROM iov.worker"
    )
    await night.until_it_fires("IovWorkersSilent")


@fault
async def iov_session_lost(night: Night) -> None:
    # Its store is written every half hour, so it has none yet.
    await night.broker.stop(signal.SIGKILL)
    await night.broker.start()
    await night.until_it_fires("IovSessionLost")


@fault
async def iov_worker_down(night: Night) -> None:
    await night.worker.stop()
    await night.until_it_fires("IovWorkerDown")


@fault
async def iov_no_targets(night: Night) -> None:
    listed(night.directory / "targets" / "workers.json", "[]")
    await night.until_it_fires("IovNoTargets")


@fault
async def iov_database_disk(night: Night) -> None:
    # node_exporter's words; a full disk is nothing to make on demand.
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            text='node_filesystem_avail_bytes{mountpoint="/"} 1e9\n'
            'node_filesystem_size_bytes{mountpoint="/"} 1e11\n'
        )

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        listed(night.directory / "nodes" / "database.json", f'[{{"targets": ["{host}:{port}"]}}]')
        await night.until_it_fires("IovDatabaseDisk")
    finally:
        await runner.cleanup()


def listed(file: Path, targets: str) -> None:
    file.write_text(targets)


@asynccontextmanager
async def locked(database: OwnDatabase) -> AsyncIterator[None]:
    """Somebody holds the table, so no commit comes through."""
    holder = await asyncpg.connect(database.url)
    try:
        await holder.execute("BEGIN; LOCK TABLE iov.nev IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        holder.terminate()


async def slow(database: OwnDatabase, commit_s: float) -> None:
    """Make every commit take at least this many seconds: the fault itself."""
    await database.execute(
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_sleep({commit_s}); RETURN NULL; END $$; "
        "CREATE TRIGGER slow AFTER INSERT ON iov.nev "
        "FOR EACH STATEMENT EXECUTE FUNCTION public.slow()"
    )


def test_every_alert_has_its_fault() -> None:
    assert set(FAULTS) == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
async def test_a_fault_makes_its_alert_fire(
    alert: str, database: OwnDatabase, catalogue: Catalogue, tmp_path: Path
) -> None:
    program("prometheus")
    async with (
        mosquitto("max_inflight_messages 20\n") as broker,
        working(
            broker.url, database.url, catalogue,
            stuck_after_s="1", mqtt_receive_maximum="20" if alert == "IovWindowFull" else "6000",
        ) as worker,
    ):  # fmt: skip
        assert worker.service.http_port is not None
        async with prometheus(tmp_path, worker.service.http_port, at_once=True) as url:
            await until(partial(ask, url, "iov_ready == 1"), "the first scrape")
            night = Night(worker, broker, database, url, tmp_path)
            # Before the first scrape there were no targets.
            await until(partial(night.is_quiet, alert), "quiet")
            await FAULTS[alert](night)
            # What it did not commit is none of this test's business.
            await worker.kill()
