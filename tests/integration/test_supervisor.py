"""Several workers under one supervisor, as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ingest.config import load
from ingest.errors import ConfigError
from ingest.lab.embedded import Mosquitto, neighbouring_ports
from ingest.schema import Catalogue
from ingest.store import migrate
from ingest.worker.supervisor import environments
from tests.support import Database, environment, publish_many, sample, until


class Supervised:
    """The supervisor's process, and what it says over HTTP."""

    def __init__(
        self, process: asyncio.subprocess.Process, first_port: int, client: aiohttp.ClientSession
    ) -> None:
        self.process = process
        self._first_port = first_port
        self._client = client

    async def get(self, path: str, port: int = 2) -> tuple[int, Any]:
        """Status and body; the supervisor's port is the one after its two workers'."""
        url = f"http://127.0.0.1:{self._first_port + port}{path}"
        try:
            async with self._client.get(url) as response:
                if response.content_type == "application/json":
                    return response.status, await response.json()
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, None

    async def ready(self) -> bool:
        return (await self.get("/readyz"))[0] == 200

    def workers(self) -> list[int]:
        """The processes of its workers (Linux, proc(5))."""
        pid = self.process.pid
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def stored(self, port: int) -> float:
        _, text = await self.get("/metrics", port)
        lines = [line for line in text.splitlines() if line.startswith("iov_samples_stored_total")]
        return sum(float(line.split()[-1]) for line in lines)


@asynccontextmanager
async def supervised(database: Database, broker: Mosquitto) -> AsyncIterator[Supervised]:
    first = neighbouring_ports(3)
    environ = environment(broker.url, database.url, http_port=str(first))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest", "run", "--workers", "2", env=os.environ | environ
    )
    try:
        async with aiohttp.ClientSession() as client:
            running = Supervised(process, first, client)
            await until(running.ready, "two ready workers")
            yield running
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.fixture
async def pair(
    database: Database, broker: Mosquitto, catalogue: Catalogue
) -> AsyncIterator[Supervised]:
    settings = load(environ=environment(broker.url, database.url))
    await migrate(settings, catalogue)
    async with supervised(database, broker) as running:
        yield running


async def test_two_workers_share_the_work_and_say_where_their_metrics_are(
    pair: Supervised, database: Database, broker: Mosquitto
) -> None:
    status, targets = await pair.get("/targets")
    assert status == 200
    assert [target.split(":")[0] for target in targets[0]["targets"]] == ["127.0.0.1"] * 2
    await publish_many(broker.url, [sample(n) for n in range(400)])
    await until(lambda: _is(database.count(), 400), "400 rows")
    stored = [await pair.stored(port) for port in (0, 1)]
    assert sum(stored) == 400
    assert min(stored) > 0
    pair.process.send_signal(signal.SIGTERM)
    assert await pair.process.wait() == 0


async def _is(found: Any, wanted: int) -> bool:
    return bool(await found == wanted)


async def test_a_worker_that_dies_is_started_again_and_nothing_is_lost(
    pair: Supervised, database: Database, broker: Mosquitto
) -> None:
    victim, other = pair.workers()
    os.kill(victim, signal.SIGKILL)
    await until(lambda: _not(pair.ready()), "the group to tell")
    _, told = await pair.get("/readyz")
    assert told["problems"][0].startswith("worker ")
    await publish_many(broker.url, [sample(n) for n in range(200)])
    await until(pair.ready, "a new worker")
    await until(lambda: _is(database.count(), 200), "200 rows")
    workers = pair.workers()
    assert len(workers) == 2
    assert victim not in workers
    assert other in workers


async def _not(found: Any) -> bool:
    return not await found


async def test_one_that_left_for_good_is_not_started_again(pair: Supervised) -> None:
    os.kill(pair.workers()[0], signal.SIGUSR1)
    await until(lambda: len(pair.workers()) == 1, "one worker to leave")
    pair.process.send_signal(signal.SIGTERM)
    assert await pair.process.wait() == 0


async def test_workers_end_in_order_when_their_supervisor_is_gone(pair: Supervised) -> None:
    workers = pair.workers()
    pair.process.kill()
    await pair.process.wait()
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
