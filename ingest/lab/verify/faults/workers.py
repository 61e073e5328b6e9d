"""Worker faults: killed, restarted, taken over, frozen, left behind; a clock jumps."""

from __future__ import annotations

import asyncio
import signal
from random import Random

from ingest.lab.until import until
from ingest.lab.verify.faults.fault import LOAD, MOMENT_S, Fault
from ingest.lab.verify.world import ProxiedWorker, World
from ingest.schema import load_catalogue
from ingest.store import register
from ingest.store.register import Registered
from ingest.worker.takeover import take_over


async def _worker_sigkill(world: World, chance: Random) -> None:
    await _goes_and_returns(world, chance, signal.SIGKILL)


async def _worker_sigterm(world: World, chance: Random) -> None:
    await _goes_and_returns(world, chance, signal.SIGTERM)


async def _worker_leaves(world: World, chance: Random) -> None:
    # A worker leaves only if it hears others; the fault before may have silenced them.
    heard = (
        "SELECT count(*) >= $1 FROM iov.worker WHERE broker = $2 "
        "AND clock_timestamp() - heartbeat_at < interval '10 s'"
    )
    broker, number = world.workers[0].settings().broker.id, len(world.workers)
    await until(lambda: world.ask(heard, number, broker), "every worker's heartbeat")
    await _goes_and_returns(world, chance, signal.SIGUSR1)


async def _goes_and_returns(world: World, chance: Random, number: signal.Signals) -> None:
    """End a worker with a signal; start one of its name a little later."""
    worker = chance.choice(world.victims)
    await world.some_published(LOAD)
    status = await worker.end(number)
    if status and number is not signal.SIGKILL:
        world.unwell.append(f"worker {worker.number} left {number.name} with status {status}")
    await asyncio.sleep(chance.uniform(0.2, 2))
    await worker.start()


async def _worker_drained(world: World, chance: Random) -> None:
    """Kill a worker, take its session over through the worker's own proxies, and start it again."""
    worker = chance.choice(world.victims)
    await world.some_published(LOAD)
    await worker.end(signal.SIGKILL)
    await world.some_published(LOAD)
    settings = worker.settings()
    gone = Registered(worker.client_id, settings.broker.subscription, alive=False)
    async with register.opened(settings.database, settings.broker) as opened:
        if not await take_over(settings, load_catalogue(), opened, gone):
            world.unwell.append(f"nothing was kept for worker {worker.number}")
        await opened.forget(worker.client_id)
    await worker.start()


async def _worker_frozen(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    worker.tell(signal.SIGSTOP)
    worker.frozen = True
    try:
        # The broker gives a client up after 1.5 times the keep-alive (MQTT 5, 3.1.2.10).
        await asyncio.sleep(world.servers.keep_alive_s * 1.5 + chance.uniform(1, 3))
    finally:
        worker.tell(signal.SIGCONT)
        worker.frozen = False


async def _session_left_behind(world: World, _: Random) -> None:
    """Start one more worker, let it get its share of the messages, and kill it for good.

    The load goes on. At the end of the run, another worker must have adopted its session.
    """
    worker = await world.hire()
    await worker.start()
    await until(worker.ready, "one more ready worker")
    await world.some_published(LOAD)
    await worker.end(signal.SIGKILL)
    world.left_behind.append(worker.client_id)
    await world.some_published(LOAD)


async def _clock_jumps(world: World, chance: Random) -> None:
    """Set a worker's clock wrong by a month, then right again.

    Messages received meanwhile must not be rejected for their age, nor be acknowledged before the
    clock is right.
    """
    worker = chance.choice(world.victims)
    shift = world.logs / f"clock-{worker.number}"
    shift.write_text("+0")
    await worker.end(signal.SIGTERM)
    # libfaketime reads the shift from the file at each clock call (its README, 4d and 4g).
    await worker.start(
        LD_PRELOAD=str(world.servers.faketime),
        FAKETIME_TIMESTAMP_FILE=str(shift),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    try:
        await until(worker.ready, "a ready worker with a clock of its own")
        await world.some_published(LOAD)
        shift.write_text(chance.choice(["+31d", "-31d"]))
        await until(lambda: _unready(worker), "a worker that notices its clock", MOMENT_S)
        await world.some_published(LOAD)
        shift.write_text("+0")
        await until(worker.ready, "a worker that notices that its clock is right", MOMENT_S)
    finally:
        await worker.end(signal.SIGTERM)
        await worker.start()


async def _unready(worker: ProxiedWorker) -> bool:
    return not await worker.ready()


FAULTS = (
    Fault("worker_sigkill", "a worker is killed", _worker_sigkill),
    Fault("worker_sigterm", "a worker is restarted in order", _worker_sigterm),
    Fault("worker_leaves", "a worker leaves for good (SIGUSR1)", _worker_leaves),
    Fault("worker_drained", "a killed worker's session is drained", _worker_drained),
    Fault("worker_frozen", "a worker is frozen past its keep-alive", _worker_frozen),
    Fault("session_left_behind", "a worker more is started and lost", _session_left_behind),
    Fault("clock_jumps", "a worker's clock is a month wrong", _clock_jumps, "faketime"),
)
