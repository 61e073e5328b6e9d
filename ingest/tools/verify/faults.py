"""What can break, each as one coroutine that breaks it, waits, and has mended it when it returns.

Where a fault needs a moment to be worth anything (a COPY that has begun, a PUBACK that is held)
it waits for that moment, and raises ServerError where it does not come.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import asyncpg

from ingest.errors import ServerError
from ingest.handover import drain
from ingest.schema import load_catalogue
from ingest.store import registry
from ingest.store.registry import Registered
from ingest.tools.embedded import Mosquitto
from ingest.tools.verify.world import COMMIT_TIMEOUT_S, World, until

_LOAD = 100
"""Messages that have to be under way for a fault to be worth its name."""
_MOMENT_S = 10.0

Break = Callable[[World, Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of breakage."""

    name: str
    what: str
    """For people, one line."""
    break_: Break
    needs: str = ""
    """What of `Servers` must be there: `database`, `broker`, `small_disk` or `plain_user`."""


async def _worker_sigkill(world: World, chance: Random) -> None:
    await _goes_and_returns(world, chance, signal.SIGKILL)


async def _worker_sigterm(world: World, chance: Random) -> None:
    await _goes_and_returns(world, chance, signal.SIGTERM)


async def _worker_leaves(world: World, chance: Random) -> None:
    await _goes_and_returns(world, chance, signal.SIGUSR1)


async def _goes_and_returns(world: World, chance: Random, number: signal.Signals) -> None:
    """A worker gets a signal and ends; one of its name starts a little later."""
    worker = chance.choice(world.victims)
    await world.some_published(_LOAD)
    status = await worker.end(number)
    if status and number is not signal.SIGKILL:
        world.unwell.append(f"worker {worker.number} left {number.name} with status {status}")
    await asyncio.sleep(chance.uniform(0.2, 2))
    await worker.start()


async def _worker_drained(world: World, chance: Random) -> None:
    """Killed, and not expected back: what its session has is taken out, through its own proxies."""
    worker = chance.choice(world.victims)
    await world.some_published(_LOAD)
    await worker.end(signal.SIGKILL)
    await world.some_published(_LOAD)
    settings = worker.settings()
    gone = Registered(worker.client_id, settings.subscription, alive=False)
    async with registry.reading(settings) as connection:
        if not await drain(settings, load_catalogue(), connection, gone):
            world.unwell.append(f"nothing was kept for worker {worker.number}")
        await registry.forget(connection, settings, worker.client_id)
    await worker.start()


async def _worker_frozen(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    assert worker.process is not None
    worker.process.send_signal(signal.SIGSTOP)
    worker.frozen = True
    try:
        # Half again the keep-alive is when the broker gives it up (MQTT 5, 3.1.2.10).
        await asyncio.sleep(world.servers.keep_alive_s * 1.5 + chance.uniform(1, 3))
    finally:
        worker.process.send_signal(signal.SIGCONT)
        worker.frozen = False


async def _database_stopped(world: World, chance: Random) -> None:
    database = world.servers.database
    assert database is not None
    await world.some_published(_LOAD)
    await asyncio.to_thread(database.stop, signal.SIGQUIT)
    await asyncio.sleep(chance.uniform(0.5, 4))
    await asyncio.to_thread(database.start)


async def _backend_terminated(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    for _ in range(50):
        # The rest of a COPY that has begun is held back; then it is a backend in mid-COPY.
        worker.database.stall(after_bytes=chance.randrange(200, 5_000))
        with suppress(ServerError):
            await until(lambda: worker.database.stalled, "a COPY", 1)
        ended = await world.ask(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_progress_copy "
            "JOIN pg_stat_activity USING (pid, datname) "
            "WHERE datname = current_database() AND application_name = $1",
            worker.settings().application_name,
        )
        worker.database.flow()
        if ended:
            return
        await asyncio.sleep(chance.uniform(0, 0.1))
    raise ServerError("no COPY was caught in the middle")


async def _database_stalled(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    await world.some_published(_LOAD)
    if chance.choice([True, False]):
        worker.database.stall()
        await asyncio.sleep(chance.uniform(1, COMMIT_TIMEOUT_S + 2))
        worker.database.flow()
        return
    before = worker.database.connections
    worker.database.abandon()
    await until(lambda: worker.database.connections > before + 1, "new connections")


async def _read_only(world: World, chance: Random) -> None:
    await _database_says(
        world, "SET default_transaction_read_only = on", "RESET default_transaction_read_only",
        chance,
    )  # fmt: skip


async def _out_of_connections(world: World, chance: Random) -> None:
    await _database_says(world, "CONNECTION LIMIT 0", "CONNECTION LIMIT -1", chance)


async def _database_says(world: World, wrong: str, right: str, chance: Random) -> None:
    """Alter the scratch database, make the workers connect anew, and alter it back."""
    name = world.servers.scratch
    async with world.owner() as owner:
        await owner.execute(f"ALTER DATABASE {name} {wrong}")
        try:
            await owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE 'iov-ingest iov-%'"
            )
            await until(lambda: _none_ready(world), "workers that notice", _MOMENT_S)
            await asyncio.sleep(chance.uniform(0.5, 3))
        finally:
            await owner.execute(f"ALTER DATABASE {name} {right}")


async def _none_ready(world: World) -> bool:
    return not any([await worker.ready() for worker in world.workers])


async def _disk_full(world: World, chance: Random) -> None:
    servers = world.servers
    assert servers.small_disk is not None
    assert servers.database is not None
    try:
        await asyncio.to_thread(servers.small_disk.fill)
        await until(lambda: _none_ready(world), "workers that notice", _MOMENT_S * 3)
        await asyncio.sleep(chance.uniform(0.5, 2))
    finally:
        servers.small_disk.free()
        # Out of room for its log it ends; then it is started as an operator would.
        if not servers.database.runs:
            await asyncio.to_thread(servers.database.start)


async def _deadlock(world: World, chance: Random) -> None:
    """A worker holds `battery` and waits for `nev`, which is ours; then we ask for `battery`.

    Streams are written in the order of their names.
    """
    async with world.owner() as owner:
        before = await _deadlocks(world)
        for _ in range(20):
            with suppress(asyncpg.LockNotAvailableError):
                async with owner.transaction():
                    # Not we are to be the victim but the worker, whose limit is a second.
                    await owner.execute("SET LOCAL deadlock_timeout = '30s'")
                    await owner.execute("SET LOCAL lock_timeout = '10s'")
                    await owner.execute("LOCK TABLE iov.nev IN SHARE MODE")
                    # While nothing can be written a batch fills that holds both.
                    await owner.execute("SAVEPOINT filling")
                    await owner.execute("LOCK TABLE iov.battery IN SHARE MODE")
                    await asyncio.sleep(chance.uniform(0.2, 0.5))
                    await owner.execute("ROLLBACK TO SAVEPOINT filling")
                    if await _holds_and_waits(owner):
                        await owner.execute("LOCK TABLE iov.battery IN SHARE MODE")
            with suppress(ServerError):
                await until(lambda: _more_deadlocks(world, before), "a deadlock", 2)
                return
    raise ServerError("no deadlock came about")


async def _holds_and_waits(owner: asyncpg.Connection) -> bool:
    """Whether, within half a second, a backend holds one table and waits for the other."""
    query = (
        "SELECT count(*) FROM pg_locks w JOIN pg_locks h USING (pid) "
        "WHERE NOT w.granted AND w.relation = 'iov.nev'::regclass AND h.granted "
        "AND h.relation = 'iov.battery'::regclass AND h.mode = 'RowExclusiveLock'"
    )
    for _ in range(50):
        if await owner.fetchval(query):
            return True
        await asyncio.sleep(0.01)
    return False


async def _deadlocks(world: World) -> int:
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(await world.ask(query))


async def _more_deadlocks(world: World, before: int) -> bool:
    return await _deadlocks(world) > before


async def _serialization_failure(world: World, chance: Random) -> None:
    """What no plan of ours provokes is raised by a trigger, at COMMIT, as the server would."""
    async with world.owner() as owner:
        await owner.execute("CREATE SEQUENCE iov.verify_failures")
        await owner.execute("GRANT USAGE ON SEQUENCE iov.verify_failures TO PUBLIC")
        await owner.execute(
            "CREATE FUNCTION iov.verify_fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF nextval('iov.verify_failures') % 3 <> 0 THEN RAISE EXCEPTION "
            "'could not serialize access' USING ERRCODE = 'serialization_failure'; END IF; "
            "RETURN NULL; END $$"
        )
        try:
            await owner.execute(
                "CREATE CONSTRAINT TRIGGER verify_fail AFTER INSERT ON iov.nev "
                "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION iov.verify_fail()"
            )
            await until(lambda: _failed(owner, 3), "serialization failures", _MOMENT_S)
            await asyncio.sleep(chance.uniform(0, 2))
        finally:
            await owner.execute("DROP FUNCTION iov.verify_fail() CASCADE")
            await owner.execute("DROP SEQUENCE iov.verify_failures")


async def _failed(owner: asyncpg.Connection, times: int) -> bool:
    return bool(await owner.fetchval("SELECT last_value > $1 FROM iov.verify_failures", times))


async def _broker_restarted(world: World, chance: Random) -> None:
    broker = world.servers.broker
    assert broker is not None
    await world.some_published(_LOAD)
    before = [worker.subscriptions for worker in world.workers]
    await broker.stop(signal.SIGTERM)
    world.gate.refuse()
    try:
        await asyncio.sleep(chance.uniform(0, 2))
        await broker.start()
        # mosquitto 2.0.11 does not bring shared subscriptions back from its store, so that what
        # it acknowledged before the workers are there again would match nobody.
        await world.resubscribed(before)
    finally:
        world.gate.flow()


async def _broker_killed(world: World, chance: Random) -> None:
    broker = world.servers.broker
    assert broker is not None
    # What it saves is what was saved; so nothing is published between that and its end.
    await _kill_broker(world, chance, broker, saved=True)


async def _broker_forgot(world: World, chance: Random) -> None:
    broker = world.servers.broker
    assert broker is not None

    await _kill_broker(world, chance, broker)


async def _kill_broker(
    world: World, chance: Random, broker: Mosquitto, *, saved: bool = False
) -> None:
    """Kill it with messages in it that no worker has; its store is saved before, or lost."""
    for worker in world.workers:
        worker.broker.stall()
    await world.some_published(_LOAD)
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
        worker.broker.cut()  # with what was held back
        worker.broker.flow()
    await world.resubscribed(before)
    world.publishing.set()


async def _broker_cut(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    worker.broker.stall_requests()
    try:
        await until(lambda: worker.broker.held, "a PUBACK that is held back", _MOMENT_S)
        await asyncio.sleep(chance.uniform(0, 0.5))
        worker.broker.cut()
    finally:
        worker.broker.flow()


async def _broker_stalled(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    await world.some_published(_LOAD)
    if chance.choice([True, False]):
        worker.broker.stall()
        await asyncio.sleep(chance.uniform(1, world.servers.keep_alive_s / 2))
        worker.broker.flow()
        return
    before = worker.subscriptions
    worker.broker.abandon()
    await until(lambda: worker.subscriptions > before, "a new connection")


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("worker_sigkill", "a worker is killed", _worker_sigkill),
        Fault("worker_sigterm", "a worker is restarted in order", _worker_sigterm),
        Fault("worker_leaves", "a worker leaves for good (SIGUSR1)", _worker_leaves),
        Fault("worker_drained", "a killed worker's session is drained", _worker_drained),
        Fault("worker_frozen", "a worker is frozen past its keep-alive", _worker_frozen),
        Fault("database_stopped", "PostgreSQL stops at once", _database_stopped, "database"),
        Fault("backend_terminated", "a backend is ended in mid-COPY", _backend_terminated),
        Fault("database_stalled", "a worker's database falls silent", _database_stalled),
        Fault("database_read_only", "the database turns read-only", _read_only),
        Fault(
            "out_of_connections",
            "the database takes no connection",
            _out_of_connections,
            "plain_user",
        ),
        Fault("disk_full", "the database's disk is full", _disk_full, "small_disk"),
        Fault("deadlock", "a worker is the victim of a deadlock", _deadlock),
        Fault("serialization_failure", "commits fail with 40001", _serialization_failure),
        Fault("broker_restarted", "the broker restarts under load", _broker_restarted, "broker"),
        Fault("broker_killed", "the broker is killed after a save", _broker_killed, "broker"),
        Fault("broker_forgot", "the broker restarts without its store", _broker_forgot, "broker"),
        Fault("broker_cut", "a connection is cut before its PUBACK", _broker_cut),
        Fault("broker_stalled", "a worker's broker falls silent", _broker_stalled),
    )
}
