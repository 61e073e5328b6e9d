"""What an acknowledgement rests on: a durable commit, a clock, a live connection, a device."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import asyncpg
import pytest

from ingest import pipeline
from ingest.config import load
from ingest.lab.embedded import Mosquitto, postgres
from ingest.lab.proxy import Proxy
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.source import connection as fast
from ingest.store import migrate
from tests.integration.test_store import writing
from tests.support import (
    OwnDatabase,
    batch_of,
    delivery,
    publish_many,
    sample,
    working,
)

ANSWERING_S = 20


async def test_a_database_without_fsync_is_not_ready_unless_that_is_accepted(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with working(
        broker.url, database.url, catalogue, wait=False, unsafe_database="refuse"
    ) as worker:
        await until(lambda: "fsync is off" in str(worker.service.problems()), "its words")
    async with working(broker.url, database.url, catalogue) as worker:
        assert "fsync is off" in str(worker.service._state().warnings)


async def test_a_database_whose_commits_are_not_synchronous_is_not_ready(
    broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fsync, which the other tests' server has not."""
    monkeypatch.setattr(watch_module(), "INTERVAL_S", 0.1)
    with postgres({}) as server:
        own = OwnDatabase(server, "postgres")
        await migrate(load(environ={"IOV_DATABASE_URL": own.url}), catalogue)
        async with working(broker.url, own.url, catalogue, unsafe_database="refuse") as worker:
            problems = worker.service.problems
            await own.execute("ALTER DATABASE postgres SET synchronous_commit = off")
            await until(lambda: "synchronous_commit is off" in str(problems()), "off")
            await own.execute("ALTER DATABASE postgres SET synchronous_commit = local")
            await worker.ready()
            await alter(own, "synchronous_standby_names = 'nobody'")
            await until(lambda: "a standby is named" in str(problems()), "the standby")
            await alter(own, "synchronous_standby_names = ''")
            await own.execute("ALTER DATABASE postgres RESET synchronous_commit")
            await worker.ready()
            writer = worker.service.writer
            async with writer.connection._lock:
                assert writer.connection._connection is not None
                assert (
                    await writer.connection._connection.fetchval("SHOW synchronous_commit") == "on"
                )


async def test_a_worker_commits_durably_whatever_the_default_is(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    for set_to, wanted in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        await database.execute(f"ALTER DATABASE {database.name} SET synchronous_commit = {set_to}")
        async with writing(database, catalogue) as writer:
            await writer.connection.connect()
            assert writer.connection._connection is not None
            assert await writer.connection._connection.fetchval("SHOW synchronous_commit") == wanted


async def test_a_commit_that_was_cancelled_while_it_waited_for_a_standby_is_none(
    broker: Mosquitto, catalogue: Catalogue
) -> None:
    with postgres({}) as server:
        own = OwnDatabase(server, "postgres")
        await migrate(load(environ={"IOV_DATABASE_URL": own.url}), catalogue)
        async with working(broker.url, own.url, catalogue) as worker:
            await publish_many(broker.url, [sample(0)])
            await worker.settles(1)
            await alter(own, "synchronous_standby_names = 'nobody'")
            await publish_many(broker.url, [sample(n) for n in range(1, 6)])
            query = (
                "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity "
                "WHERE wait_event = 'SyncRep' AND application_name LIKE 'iov-ingest worker-1 %'"
            )

            async def cancelled() -> bool:
                return bool(await own.one(query))

            await until(cancelled, "a commit that waits")
            await until(lambda: "may not be durable" in str(worker.service.problems()), "its words")
            assert worker.settled() == 1
            await alter(own, "synchronous_standby_names = ''")
            await worker.settles(6)
        assert await own.count() == 6


async def alter(database: OwnDatabase, setting: str) -> None:
    connection = await asyncpg.connect(database.url)
    await connection.execute("SET synchronous_commit = local")
    await connection.execute(f"ALTER SYSTEM SET {setting}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


class Ahead(datetime):
    """A clock 31 days ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # a datetime
        return datetime.now(tz) + timedelta(days=31)


async def test_a_clock_that_jumps_rejects_nothing(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(0)])
        await worker.settles(1)
        with monkeypatch.context() as jumped:
            for module in (fast, pipeline, watch_module()):
                jumped.setattr(module, "datetime", Ahead)
            await publish_many(broker.url, [sample(n) for n in range(1, 50)])
            await until(lambda: "ahead of the database" in str(worker.service.problems()), "it")
            assert worker.settled() == 1
            await worker.service.watch.look()
        await worker.settles(50)
        await worker.ready()
    assert await database.reasons() == []
    assert await database.one("SELECT max(received_at) - now() < interval '1 min' FROM iov.nev")
    # Partitions are made ahead of the database's day, not of ours.
    next_month = f"iov.nev_{datetime.now(UTC) + timedelta(days=31):%Y%m%d}"
    assert await database.one("SELECT to_regclass($1)", next_month) is None


def watch_module() -> Any:
    import sys

    return sys.modules["ingest.store.watch"]


async def test_a_connection_that_died_in_silence_is_noticed_while_idle(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    """A NAT forgets it: what is sent goes nowhere, and nothing comes back."""
    async with Proxy(None, None, f"{database.server.socket_directory}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database.name}?sslmode=disable"
        async with working(broker.url, url, catalogue, commit_timeout_s="600") as worker:
            await publish_many(broker.url, [sample(1)])
            await worker.settles(1)
            before = worker.service.connection._connection
            proxy.abandon()
            async with asyncio.timeout(ANSWERING_S):
                await until(
                    lambda: worker.service.connection._connection not in {None, before}, "a new one"
                )
            await publish_many(broker.url, [sample(2)])
            async with asyncio.timeout(ANSWERING_S):
                await worker.settles(2)


async def test_the_next_sample_does_not_wait_for_the_commit_timeout(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with Proxy(None, None, f"{database.server.socket_directory}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database.name}?sslmode=disable"
        async with writing(database, catalogue, url, commit_timeout_s=600) as writer:
            await writer.write(batch_of(catalogue, [delivery(sample(1))]))
            proxy.abandon()
            writer.connection._used_s -= 3  # a little idleness
            async with asyncio.timeout(ANSWERING_S):
                await writer.write(batch_of(catalogue, [delivery(sample(2))]))


async def test_a_device_that_is_deleted_while_workers_run_gets_a_new_id(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [delivery(sample(1)), delivery(sample(1), OTHER)]))
        await database.execute("DELETE FROM iov.nev WHERE device_id = 1")
        await database.execute("DELETE FROM iov.device WHERE device_id = 1")
        await writer.write(batch_of(catalogue, [delivery(sample(2)), delivery(sample(2), OTHER)]))
    nobody = "SELECT count(*) FROM iov.nev LEFT JOIN iov.device d USING (device_id) WHERE d IS NULL"
    assert await database.one(nobody) == 0
    assert await database.count() == 3
    assert await database.count("device") == 2


OTHER = "iov/v1/V2/nev"


async def test_a_device_cannot_go_while_its_rows_are_being_written(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    """The deletion waits for the batch's commit, and for nothing before its own."""
    lock, owner = await asyncpg.connect(database.url), await asyncpg.connect(database.url)
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [delivery(sample(1))]))
        await lock.execute("BEGIN; LOCK TABLE iov.nev IN SHARE MODE")
        slow = asyncio.create_task(writer.write(batch_of(catalogue, [delivery(sample(2))])))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::regclass"

        async def waiting(table: str) -> bool:
            return bool(await database.one(waits, table))

        await until(lambda: waiting("iov.nev"), "the batch")
        await owner.execute("BEGIN; DELETE FROM iov.device WHERE device_id = 1")
        deletion = asyncio.create_task(owner.execute("COMMIT"))
        await until(lambda: waiting("iov.device_epoch"), "the deletion")
        await lock.execute("ROLLBACK")
        await asyncio.wait([slow, deletion])
        assert slow.result().stored == {"nev": 1}
        await writer.write(batch_of(catalogue, [delivery(sample(3))]))
    await lock.close()
    await owner.close()
    assert await database.one("SELECT device_id FROM iov.nev WHERE seq = 3") == 2
