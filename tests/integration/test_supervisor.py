"""Several workers under one supervisor, as processes."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.config import load
from ingest.errors import ConfigError
from ingest.lab.embedded import Mosquitto, neighbouring_ports
from ingest.lab.process import COMMAND, WorkerProcess, running
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import migrate
from ingest.worker.supervisor import environments
from tests.support import (
    OwnDatabase,
    environment,
    publish_many,
    sample,
)


class Supervised(WorkerProcess):
    """A supervisor of two workers, whose ports come before its own."""

    async def json(self, path: str) -> Any:
        return orjson.loads((await self.get(path))[1])

    async def stored(self, worker: int) -> float:
        return await self.metric("iov_samples_stored_total", self._port - 2 + worker)


@asynccontextmanager
async def supervised(database: OwnDatabase, broker: Mosquitto) -> AsyncIterator[Supervised]:
    first = neighbouring_ports(3)
    environ = environment(broker.url, database.url, http_port=str(first))
    two = Supervised(os.environ | environ, first + 2, (*COMMAND, "--workers", "2"))
    async with running(two):
        yield two


@pytest.fixture
async def pair(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> AsyncIterator[Supervised]:
    settings = load(environ=environment(broker.url, database.url))
    await migrate(settings, catalogue)
    async with supervised(database, broker) as both:
        yield both


async def test_two_workers_share_the_work_and_say_where_their_metrics_are(
    pair: Supervised, database: OwnDatabase, broker: Mosquitto
) -> None:
    targets = await pair.json("/targets")
    assert [target.split(":")[0] for target in targets[0]["targets"]] == ["127.0.0.1"] * 2
    await publish_many(broker.url, [sample(n) for n in range(400)])
    await until(lambda: _is(database.count(), 400), "400 rows")
    stored = [await pair.stored(worker) for worker in (0, 1)]
    assert sum(stored) == 400
    assert min(stored) > 0
    assert await pair.end(signal.SIGTERM) == 0


async def _is(found: Any, wanted: int) -> bool:
    return bool(await found == wanted)


async def test_a_worker_that_dies_is_started_again_and_nothing_is_lost(
    pair: Supervised, database: OwnDatabase, broker: Mosquitto
) -> None:
    victim, other = pair.children()
    os.kill(victim, signal.SIGKILL)
    await until(lambda: _not(pair.ready()), "the group to tell")
    told = await pair.json("/readyz")
    assert told["problems"][0].startswith("worker ")
    await publish_many(broker.url, [sample(n) for n in range(200)])
    await until(pair.ready, "a new worker")
    await until(lambda: _is(database.count(), 200), "200 rows")
    workers = pair.children()
    assert len(workers) == 2
    assert victim not in workers
    assert other in workers


async def _not(found: Any) -> bool:
    return not await found


async def test_one_that_left_for_good_is_not_started_again(pair: Supervised) -> None:
    os.kill(pair.children()[0], signal.SIGUSR1)
    await until(lambda: len(pair.children()) == 1, "one worker to leave")
    assert await pair.end(signal.SIGTERM) == 0


async def test_workers_end_in_order_when_their_supervisor_is_gone(pair: Supervised) -> None:
    workers = pair.children()
    await pair.end(signal.SIGKILL)
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "their end")


@pytest.mark.parametrize("port", ["0", "65535"])
def test_workers_need_ports_of_their_own(port: str) -> None:
    settings = load(environ={"IOV_HTTP_PORT": port})
    with pytest.raises(ConfigError, match="IOV_HTTP_PORT"):
        environments(settings, 2)


def test_the_first_worker_keeps_the_client_id() -> None:
    settings = load(environ={"IOV_HTTP_PORT": "9464", "IOV_MQTT_CLIENT_ID": "depot"})
    names = [environment["IOV_MQTT_CLIENT_ID"] for environment in environments(settings, 3)]
    assert names == ["depot", "depot-1", "depot-2"]
