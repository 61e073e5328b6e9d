"""Broker faults: restart, lost store, silence; a second broker with workers of the same names."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import orjson

from ingest.commands.publisher import Publisher
from ingest.errors import ServerError
from ingest.lab.embedded import Mosquitto, mosquitto
from ingest.lab.until import until
from ingest.lab.verify.faults.fault import LOAD, MOMENT_S, Fault
from ingest.lab.verify.world import World
from ingest.store import register

_BACKENDS = """
SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity
WHERE application_name = $1 AND datname = current_database()
"""


async def _broker_restarted(world: World, chance: Random) -> None:
    broker = world.servers.broker
    assert broker is not None
    await world.some_published(LOAD)
    before = [worker.subscriptions for worker in world.workers]
    await broker.stop(signal.SIGTERM)
    world.gate.refuse()
    try:
        await asyncio.sleep(chance.uniform(0, 2))
        await broker.start()
        # mosquitto 2.0.11 does not restore shared subscriptions from its store. A message that
        # it acknowledged before the workers have subscribed again would reach no worker.
        await world.resubscribed(before)
    finally:
        world.gate.flow()


async def _broker_killed(world: World, chance: Random) -> None:
    broker = world.servers.broker
    assert broker is not None
    # Only saved messages survive, so nothing is published between the save and the kill.
    await _kill_broker(world, chance, broker, saved=True)


async def _broker_forgot(world: World, chance: Random) -> None:
    broker = world.servers.broker
    assert broker is not None

    await _kill_broker(world, chance, broker)


async def _kill_broker(
    world: World, chance: Random, broker: Mosquitto, *, saved: bool = False
) -> None:
    """Kill the broker with messages in it that no worker has; save its store first, or drop it."""
    for worker in world.workers:
        worker.broker.stall()
    await world.some_published(LOAD)
    await world.pause()
    before = [worker.subscriptions for worker in world.workers]
    if saved:
        await broker.save()
        await broker.stop(signal.SIGKILL)
    else:
        world.ledger.forget()
        await broker.stop(signal.SIGKILL)
        broker.forget()
    await asyncio.sleep(chance.uniform(0, 1))
    await broker.start()
    for worker in world.workers:
        worker.broker.cut()  # drops what was held back
        worker.broker.flow()
    await world.resubscribed(before)
    world.publishing.set()


async def _broker_cut(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    worker.broker.stall_requests()
    try:
        await until(lambda: worker.broker.held, "a PUBACK that is held back", MOMENT_S)
        await asyncio.sleep(chance.uniform(0, 0.5))
        worker.broker.cut()
    finally:
        worker.broker.flow()


async def _broker_stalled(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    await world.some_published(LOAD)
    if chance.choice([True, False]):
        worker.broker.stall()
        await asyncio.sleep(chance.uniform(1, world.servers.keep_alive_s / 2))
        worker.broker.flow()
        return
    before = worker.subscriptions
    worker.broker.abandon()
    await until(lambda: worker.subscriptions > before, "a new connection")


async def _sister_broker(world: World, chance: Random) -> None:
    """Run a second broker on the same database, with one worker named like one of ours.

    Neither worker may end the other's connections. On SIGUSR1 the second one must stay: our workers
    are on another broker, and cannot replace it.
    """
    namesake = chance.choice(world.workers)
    named = namesake.settings().broker.application_name
    before = await world.ask(_BACKENDS, named)
    async with mosquitto() as sister:
        settings = world.servers.settings.model_copy(update={"mqtt_url": sister.url})
        servers = replace(world.servers, settings=settings)
        worker = await world.hire(namesake.number, servers, IOV_MQTT_BROKER_ID="sister")
        await worker.start()
        try:
            await until(worker.ready, "the sister broker's worker")
            worker.tell(signal.SIGUSR1)
            now = datetime.now(UTC).isoformat()
            said = [orjson.dumps({"ts": now, "seq": seq, "speed_kmh": 1}) for seq in range(LOAD)]
            async with Publisher(settings.broker) as publisher:
                visitors = [("sister", "nev", sample, None) for sample in said]
                await world.visit(visitors, MOMENT_S, publisher)
            await world.some_published(LOAD)
        finally:
            status = await worker.end(signal.SIGTERM)
        own = worker.settings()
        async with register.opened(own.database, own.broker) as opened:
            await opened.forget(worker.client_id)
    stored = await world.ask(
        "SELECT count(*) FROM iov.nev JOIN iov.device USING (device_id) WHERE device = $1 "
        "AND ts = $2",
        "visitor-sister",
        datetime.fromisoformat(now),
    )
    if status or stored != LOAD:
        raise ServerError(f"the sister's worker stored {stored} of {LOAD}, ended with {status}")
    if await world.ask(_BACKENDS, named) != before:
        raise ServerError("workers of one name ended each other's connections")


FAULTS = (
    Fault("broker_restarted", "the broker restarts under load", _broker_restarted, "broker"),
    Fault("broker_killed", "the broker is killed after a save", _broker_killed, "broker"),
    Fault("broker_forgot", "the broker restarts without its store", _broker_forgot, "broker"),
    Fault("broker_cut", "a connection is cut before its PUBACK", _broker_cut),
    Fault("broker_stalled", "a worker's broker falls silent", _broker_stalled),
    Fault(
        "sister_broker", "another broker has workers of the same names", _sister_broker, "broker"
    ),
)
