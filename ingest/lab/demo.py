"""`demo`: database, broker, fleet and service in one command, and the account at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from ingest.commands.publisher import Publisher
from ingest.config import Settings, load
from ingest.lab.embedded import Postgres, amqtt, mosquitto, mosquitto_path, postgres
from ingest.lab.fleet import Fleet
from ingest.lab.simulate import Simulation
from ingest.model import GBT32960
from ingest.schema import Catalogue, load_catalogue
from ingest.store import migrate
from ingest.worker.service import Service

_READY_TIMEOUT_S = 30.0
_REST_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.2
_RATE, _RATE_OF_AMQTT = 1_000.0, 100.0
"""Messages per second. amqtt managed 270 on two cores, which it shared with the rest; it drops what
is too much for it."""


@dataclass
class Demo:
    """A running demo, as the screen shows it."""

    settings: Settings
    postgres: Postgres
    broker: str
    """Name of the broker that runs."""
    service: Service
    simulation: Simulation
    over: bool = False
    """True once everything is settled and the service is to stop."""

    def counted(self, metric: str, **labels: str) -> int:
        """Return a counter of the service, summed over the labels that are not given."""
        return int(self.service.metrics.value(f"{metric}_total", **labels))


@asynccontextmanager
async def servers() -> AsyncIterator[tuple[Postgres, str, str]]:
    """Run the servers while the block runs; yield (PostgreSQL, broker's name, broker's URL).

    The broker is mosquitto if it is installed, otherwise amqtt.
    """
    async with AsyncExitStack() as stack:
        database = stack.enter_context(postgres())
        if mosquitto_path():
            broker = await stack.enter_async_context(mosquitto())
            yield database, "mosquitto", broker.url
        else:
            yield database, "amqtt", await stack.enter_async_context(amqtt())


async def demo(
    *,
    devices: int,
    rate: float | None,
    duration_s: float | None,
    seed: int,
    started: Callable[[Demo], None],
    stop: asyncio.Event,
) -> dict[str, Any]:
    """Run the demo until the time is over or `stop` is set; return the keys of `--json`.

    Without a `rate`, messages are published at a rate that the broker can take.
    """
    async with servers() as (database, broker, url):
        settings = load(
            environ={
                "IOV_MQTT_URL": url,
                "IOV_DATABASE_URL": database.url,
                "IOV_HTTP_HOST": "127.0.0.1",
                "IOV_HTTP_PORT": "0",
                "IOV_MQTT_CLIENT_ID": "iov-demo",
                # amqtt knows no shared subscriptions.
                "IOV_MQTT_GROUP": "ingest" if broker == "mosquitto" else "",
            }
        )
        catalogue = load_catalogue(settings.schema_dir)
        await migrate(settings, catalogue)
        service = Service(settings, catalogue)
        usual = _RATE if broker == "mosquitto" else _RATE_OF_AMQTT
        simulation = Simulation(Fleet(devices, seed), rate or usual, duration_s)
        show = Demo(settings, database, broker, service, simulation)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(), name="service")
            await _ready(service)
            started(show)
            stopping = tasks.create_task(_stop_when(stop, simulation), name="stop")
            async with Publisher(settings.broker) as publisher:
                await simulation.run(publisher)
            stopping.cancel()
            await _at_rest(show)
            show.over = True
            service.stop()
        streams = await _stored(settings, catalogue)
        stored = sum(streams.values())
        rejected = show.counted("iov_samples_rejected")
        return {
            "published": simulation.samples,
            "stored": stored,
            "duplicates": show.counted("iov_samples_duplicate"),
            "rejected": rejected,
            "lost": simulation.samples - stored - rejected,
            "seconds": round(simulation.seconds, 3),
            "streams": streams,
            "frames": show.counted("iov_messages_received", stream=GBT32960),
        }


async def _ready(service: Service) -> None:
    async with asyncio.timeout(_READY_TIMEOUT_S):
        while service.problems():  # noqa: ASYNC110  once in a demo, not worth an event
            await asyncio.sleep(_LOOK_EVERY_S / 4)


async def _stop_when(stop: asyncio.Event, simulation: Simulation) -> None:
    await stop.wait()
    simulation.stop()


async def _at_rest(show: Demo) -> None:
    """Wait until the service has settled all that was published, `_REST_TIMEOUT_S` at most."""
    deadline_s = time.monotonic() + _REST_TIMEOUT_S
    while time.monotonic() < deadline_s:
        settled = sum(
            show.counted(f"iov_samples_{outcome}")
            for outcome in ("stored", "duplicate", "rejected")
        )
        if settled >= show.simulation.samples and not show.service.source.inbox.in_flight:
            return
        await asyncio.sleep(_LOOK_EVERY_S)


async def _stored(settings: Settings, catalogue: Catalogue) -> dict[str, int]:
    """Return the rows by stream, counted in the database and not by the service that wrote them."""
    connection = await asyncpg.connect(settings.database.url)
    try:
        return {
            name: await connection.fetchval(f'SELECT count(*) FROM iov."{stream.table}"')  # noqa: S608  a schema's own name, quoted
            for name, stream in catalogue.items()
        }
    finally:
        await connection.close()
