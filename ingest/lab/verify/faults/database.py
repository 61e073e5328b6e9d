"""Database faults: it stops, falls silent or refuses; connections are lost; a day is closed."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random

import asyncpg
import orjson

from ingest.errors import ServerError
from ingest.lab.until import until
from ingest.lab.verify.faults.fault import LOAD, MOMENT_S, Fault
from ingest.lab.verify.world import COMMIT_TIMEOUT_S, World


async def _database_stopped(world: World, chance: Random) -> None:
    database = world.servers.database
    assert database is not None
    await world.some_published(LOAD)
    await asyncio.to_thread(database.stop, signal.SIGQUIT)
    await asyncio.sleep(chance.uniform(0.5, 4))
    await asyncio.to_thread(database.start)


async def _backend_terminated(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    for _ in range(50):
        # If a COPY has begun, its rest is held back, so that its backend waits in mid-COPY.
        worker.database.stall(after_bytes=chance.randrange(200, 5_000))
        with suppress(ServerError):
            await until(lambda: worker.database.stalled, "a COPY", 1)
        ended = await world.ask(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_progress_copy "
            "JOIN pg_stat_activity USING (pid, datname) "
            "WHERE datname = current_database() AND application_name = $1",
            worker.settings().broker.application_name,
        )
        worker.database.flow()
        if ended:
            return
        await asyncio.sleep(chance.uniform(0, 0.1))
    raise ServerError("no COPY was caught in the middle")


async def _database_stalled(world: World, chance: Random) -> None:
    worker = chance.choice(world.workers)
    await world.some_published(LOAD)
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
            await until(lambda: _none_ready(world), "workers that notice", MOMENT_S)
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
        await until(lambda: _none_ready(world), "workers that notice", MOMENT_S * 3)
        await asyncio.sleep(chance.uniform(0.5, 2))
    finally:
        servers.small_disk.free()
        # PostgreSQL ends if it has no room for its log; an operator would start it again.
        if not servers.database.runs:
            await asyncio.to_thread(servers.database.start)


async def _deadlock(world: World, chance: Random) -> None:
    """Hold `nev` until a worker that holds `battery` waits for it, then ask for `battery`.

    Workers write streams in the order of their names, so `battery` is locked first.
    """
    async with world.owner() as owner:
        before = await deadlocks(world)
        for _ in range(20):
            with suppress(asyncpg.LockNotAvailableError):
                async with owner.transaction():
                    # The worker must be the victim: its deadlock_timeout is 1 s, ours is longer.
                    await owner.execute("SET LOCAL deadlock_timeout = '30s'")
                    await owner.execute("SET LOCAL lock_timeout = '10s'")
                    await owner.execute("LOCK TABLE iov.nev IN SHARE MODE")
                    # While nothing can be written, a batch fills with samples of both streams.
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
    """Return whether, within half a second, a backend holds `battery` and waits for `nev`."""
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


async def deadlocks(world: World) -> int:
    """Return the number of deadlocks that the scratch database has seen."""
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(await world.ask(query))


async def _more_deadlocks(world: World, before: int) -> bool:
    return await deadlocks(world) > before


async def _serialization_failure(world: World, chance: Random) -> None:
    """Raise serialization failures at COMMIT by a trigger, because our load causes no real ones."""
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
            await _insist(
                owner,
                "CREATE CONSTRAINT TRIGGER verify_fail AFTER INSERT ON iov.nev "
                "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION iov.verify_fail()",
            )
            await until(lambda: _failed(owner, 3), "serialization failures", MOMENT_S)
            await asyncio.sleep(chance.uniform(0, 2))
        finally:
            drop = "DROP FUNCTION iov.verify_fail() CASCADE", "DROP SEQUENCE iov.verify_failures"
            await _insist(owner, *drop)


async def _insist(owner: asyncpg.Connection, *statements: str) -> None:
    """Carry out statements whose locks commits under way may hold; try again until it succeeds.

    A trigger that was not dropped made every later commit fail (seen on a slow machine).
    """
    async with asyncio.timeout(MOMENT_S * 6):
        while True:
            with suppress(asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                async with owner.transaction():
                    for statement in statements:
                        await owner.execute(statement)
                return


async def _failed(owner: asyncpg.Connection, times: int) -> bool:
    return bool(await owner.fetchval("SELECT last_value > $1 FROM iov.verify_failures", times))


async def _idle_connection_cut(world: World, chance: Random) -> None:
    """Silence all database connections for good, without closing them, while nothing is published.

    Workers must notice by themselves, so that the next sample does not wait for the commit timeout.
    """
    await world.pause()
    await asyncio.sleep(chance.uniform(1, 3))
    before = [worker.database.connections for worker in world.workers]
    for worker in world.workers:
        worker.database.abandon()
    pairs = list(zip(world.workers, before, strict=True))
    await until(
        lambda: all(worker.database.connections > count for worker, count in pairs),
        "workers that notice while they are idle",
        MOMENT_S * 2,
    )
    await until(world.all_ready, "ready workers", MOMENT_S)
    now = datetime.now(UTC)
    said = orjson.dumps({"ts": now.isoformat(), "seq": 1, "speed_kmh": 1})
    await world.visit([("idle", "nev", said, None)], COMMIT_TIMEOUT_S / 2)
    world.publishing.set()


async def _detach_pending(world: World, chance: Random) -> None:
    """Leave a day's partition half detached, like a DETACH CONCURRENTLY that was interrupted.

    Samples of that day must become dead letters; all others must be stored.
    """
    day = world.ledger.started_at.date() - timedelta(days=chance.randrange(1, 21))
    part = f"iov.nev_{day:%Y%m%d}"
    async with world.owner() as owner:
        await owner.execute("SELECT iov.make_partition('nev', $1)", day)
        bounds = await owner.fetchval(
            "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = $1::regclass", part
        )
        world.ledger.close_day("nev", day)
        await _begin_detaching(world, part)
        try:
            late = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
            said = orjson.dumps({"ts": late.isoformat(), "seq": 1, "speed_kmh": 1})
            # Enough visitors that every worker should get one, and notice the closed day.
            visitors = [(f"late-{number}", "nev", said, None) for number in range(LOAD)]
            await world.visit(visitors, MOMENT_S * 3)
            await world.some_published(LOAD)
        finally:
            await _insist(
                owner,
                f"ALTER TABLE iov.nev DETACH PARTITION {part} FINALIZE",
                f"ALTER TABLE iov.nev ATTACH PARTITION {part} {bounds}",
            )


async def _begin_detaching(world: World, part: str) -> None:
    """Begin to detach a partition while a reader blocks it, and end the backend that waits."""
    async with world.owner() as reader, world.owner() as owner:
        await reader.execute("BEGIN; SELECT FROM iov.nev LIMIT 1")
        detach = asyncio.create_task(
            owner.execute(f"ALTER TABLE iov.nev DETACH PARTITION {part} CONCURRENTLY")
        )
        pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
        await until(lambda: world.ask(pending), "a detach that is pending", MOMENT_S)
        await world.ask("SELECT pg_terminate_backend($1, 5000)", owner.get_server_pid())
        with suppress(asyncpg.PostgresError, OSError):
            await detach


FAULTS = (
    Fault("database_stopped", "PostgreSQL stops at once", _database_stopped, "database"),
    Fault("backend_terminated", "a backend is ended in mid-COPY", _backend_terminated),
    Fault("database_stalled", "a worker's database falls silent", _database_stalled),
    Fault("database_read_only", "the database turns read-only", _read_only),
    Fault(
        "out_of_connections", "the database takes no connection", _out_of_connections, "plain_user"
    ),
    Fault("disk_full", "the database's disk is full", _disk_full, "small_disk"),
    Fault("deadlock", "a worker is the victim of a deadlock", _deadlock),
    Fault("serialization_failure", "commits fail with 40001", _serialization_failure),
    Fault("idle_connection_cut", "idle connections are forgotten", _idle_connection_cut),
    Fault("detach_pending", "a day's partition is half detached", _detach_pending),
)
