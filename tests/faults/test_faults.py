"""Things break under load; whatever the publisher was acknowledged is in the table, once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.commands.publisher import Publisher
from ingest.config import load
from ingest.errors import ServerError
from ingest.lab.embedded import Mosquitto, Postgres, free_port, postgres
from ingest.lab.process import WorkerProcess, running
from ingest.lab.proxy import Proxy
from ingest.lab.until import LIMIT_S, until
from ingest.schema import Catalogue
from ingest.store import migrate
from tests.support import (
    OwnDatabase,
    environment,
    publish_many,
    sample,
    working,
)


@pytest.fixture(scope="module")
def durable() -> Iterator[Postgres]:
    """A PostgreSQL of this file's own, to be stopped at will, with everything on."""
    with postgres() as server:
        yield server


@pytest.fixture
async def own(durable: Postgres, catalogue: Catalogue) -> OwnDatabase:
    admin = await asyncpg.connect(durable.url)
    name = f"faults_{os.urandom(4).hex()}"
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    database = OwnDatabase(durable, name)
    await migrate(load(environ={"IOV_DATABASE_URL": database.url}), catalogue)
    return database


class Publishing:
    """Publishes samples one after the other, many at a time; knows what was acknowledged."""

    def __init__(self, url: str) -> None:
        self._settings = load(environ=environment(url, "postgresql:///unused"))
        self._stop = asyncio.Event()
        self._next = 0
        self.acknowledged: set[int] = set()

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        async with Publisher(self._settings.broker) as publisher, asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(self._work(publisher))

    async def _work(self, publisher: Publisher) -> None:
        import orjson

        while not self._stop.is_set():
            seq, self._next = self._next, self._next + 1
            await publisher.publish("iov/v1/V1/nev", orjson.dumps(sample(seq)))
            self.acknowledged.add(seq)


async def stored(database: OwnDatabase) -> list[int]:
    return [row[0] for row in await database.all("SELECT seq FROM iov.nev ORDER BY seq")]


async def all_stored(database: OwnDatabase, load_: Publishing, limit_s: float = LIMIT_S) -> None:
    """Every debt is paid, once."""

    async def paid() -> bool:
        return load_.acknowledged <= set(await stored(database))

    try:
        await until(paid, "everything acknowledged to be stored", limit_s)
    except ServerError:
        owed = sorted(load_.acknowledged - set(await stored(database)))
        raise AssertionError(f"{len(owed)} acknowledged and not stored: {owed[:20]}") from None
    found = await stored(database)
    assert len(found) == len(set(found))


@asynccontextmanager
async def process(
    mqtt_url: str, database_url: str, **settings: str
) -> AsyncIterator[WorkerProcess]:
    """The service as a process of its own, as operators run it."""
    port = free_port()
    configured = environment(mqtt_url, database_url, http_port=str(port), **settings)
    async with running(WorkerProcess(os.environ | configured, port)) as worker:
        yield worker


async def test_killed_between_commit_and_puback_everything_is_there_once(
    own: OwnDatabase, broker: Mosquitto
) -> None:
    lock = await asyncpg.connect(own.url)
    async with Proxy("127.0.0.1", broker.port) as proxy:  # noqa: SIM117  the proxy is needed first
        async with process(f"mqtt://127.0.0.1:{proxy.port}", own.url) as victim:
            transaction = lock.transaction()
            await transaction.start()
            await lock.execute("LOCK TABLE iov.nev")
            await publish_many(broker.url, [sample(seq) for seq in range(500)])

            async def all_in_flight() -> bool:
                return await victim.metric("iov_messages_in_flight") == 500

            await until(all_in_flight)
            proxy.stall()  # what it acknowledges from now on reaches nobody
            await transaction.rollback()

            async def committed() -> bool:
                return await own.count() == 500

            await until(committed, "the commit")
            await victim.end(signal.SIGKILL)
    await lock.close()
    async with process(broker.url, own.url) as heir:

        async def recognised() -> bool:
            return await heir.metric("iov_samples_duplicate_total") == 500

        await until(recognised, "500 duplicates")
        assert await heir.metric("iov_samples_stored_total") == 0
    assert await stored(own) == list(range(500))


async def test_sigterm_with_a_full_pipeline_settles_all_or_nothing_of_each_message(
    own: OwnDatabase, broker: Mosquitto
) -> None:
    settings = {"mqtt_receive_maximum": "2000", "batch_rows": "500"}
    async with process(broker.url, own.url, **settings) as victim:
        publishing = asyncio.create_task(
            publish_many(broker.url, [sample(seq) for seq in range(6_000)])
        )

        async def flowing() -> bool:
            return await own.count() > 1_000

        await until(flowing, "the load")
        assert await victim.end(signal.SIGTERM) == 0
        await publishing
    before = await own.count()
    async with process(broker.url, own.url) as heir:

        async def complete() -> bool:
            return await own.count() == 6_000

        # Nothing was acknowledged that was not committed …
        await until(complete, "the rest")
        # … and nothing committed that was not acknowledged, or it would have come again.
        assert await heir.metric("iov_samples_duplicate_total") == 0
        assert await heir.metric("iov_samples_stored_total") == 6_000 - before


async def test_a_signal_that_comes_twice_at_once_is_one(
    own: OwnDatabase, broker: Mosquitto
) -> None:
    """As systemd sends it to a worker and to its supervisor, which passes it on."""
    lock = await asyncpg.connect(own.url)
    async with process(broker.url, own.url) as victim:
        transaction = lock.transaction()
        await transaction.start()
        await lock.execute("LOCK TABLE iov.nev")
        await publish_many(broker.url, [sample(seq) for seq in range(50)])

        async def all_in_flight() -> bool:
            return await victim.metric("iov_messages_in_flight") == 50

        await until(all_in_flight)
        victim.tell(signal.SIGTERM)

        async def draining() -> bool:
            return not await victim.ready()

        await until(draining)
        victim.tell(signal.SIGTERM)
        await transaction.rollback()
        assert await victim.end(None) == 0
    await lock.close()
    assert await own.count() == 50


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def test_the_database_is_away_for_ten_seconds_under_load(
    own: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    load_ = Publishing(broker.url)
    async with (
        working(broker.url, own.url, catalogue, mqtt_receive_maximum="1000") as worker,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(load_.run())
        await until(lambda: worker.settled() > 1_000, "the load")
        own.server.stop(signal.SIGQUIT)
        await until(lambda: worker.service.source.inbox.full, "a full window")
        acknowledged, before_mb = worker.metric("iov_ack_latency_seconds_count"), rss_mb()
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            assert worker.metric("iov_ack_latency_seconds_count") == acknowledged
            assert worker.service.problems()
            await asyncio.sleep(0.1)
        assert rss_mb() - before_mb < 20
        own.server.start()
        await until(lambda: not worker.service.problems(), "a ready worker")
        load_.stop()
        await all_stored(own, load_)


async def test_the_broker_restarts_under_load(
    own: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    # A plain subscription: mosquitto 2.0.11 does not restore shared ones from its store, so what
    # is published between its start and our SUBSCRIBE would match nobody, be acknowledged and be
    # gone (seen without any code of ours between it and its clients).
    load_ = Publishing(broker.url)
    plain = working(broker.url, own.url, catalogue, mqtt_group="")
    async with plain as worker, asyncio.TaskGroup() as tasks:
        tasks.create_task(load_.run())
        for restarts in (1, 2):
            before = worker.settled()
            await until(lambda: worker.settled() > before + 500, "the load")  # noqa: B023  awaited in the same turn
            await broker.stop()
            await broker.start()
            await until(
                lambda: worker.metric("iov_reconnects_total", peer="broker") >= restarts  # noqa: B023  likewise
            )
        load_.stop()
    async with working(broker.url, own.url, catalogue, mqtt_group=""):
        await all_stored(own, load_)


async def test_backends_are_terminated_in_the_middle_of_their_work(
    own: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    load_ = Publishing(broker.url)
    killer = await asyncpg.connect(own.url)
    async with working(broker.url, own.url, catalogue) as worker, asyncio.TaskGroup() as tasks:
        tasks.create_task(load_.run())
        for times in range(1, 6):
            before = worker.settled()
            await until(lambda: worker.settled() > before + 200, "the load")  # noqa: B023  awaited in the same turn
            await killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'iov-ingest worker-1 %' "
                "AND datname = current_database()"
            )
            await until(
                lambda: worker.metric("iov_reconnects_total", peer="database") >= times  # noqa: B023  likewise
            )
        load_.stop()
        await until(lambda: worker.settled() >= len(load_.acknowledged) and not worker.in_flight)
    await killer.close()
    await all_stored(own, load_)


async def test_a_database_that_falls_silent_is_left_and_its_ghost_is_ended(
    own: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    load_ = Publishing(broker.url)
    async with Proxy(None, None, f"{own.server.socket_directory}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{own.name}?sslmode=disable"
        impatient = working(broker.url, url, catalogue, commit_timeout_s="1")
        async with impatient as worker, asyncio.TaskGroup() as tasks:
            tasks.create_task(load_.run())
            await until(lambda: worker.settled() > 500, "the load")
            proxy.stall()
            await until(lambda: worker.service.connection.problem, "the silence noticed")
            proxy.flow()
            before = worker.settled()
            await until(lambda: worker.settled() > before + 500, "the load again")
            load_.stop()
            await until(lambda: worker.settled() >= len(load_.acknowledged))
            named = await own.one(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name LIKE 'iov-ingest worker-1 %'"
            )
            assert named == 1
    await all_stored(own, load_)


async def test_a_commit_whose_answer_was_lost_counts_as_duplicates(
    own: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    lock = await asyncpg.connect(own.url)
    async with Proxy(None, None, f"{own.server.socket_directory}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{own.name}?sslmode=disable"
        async with working(broker.url, url, catalogue) as worker:
            transaction = lock.transaction()
            await transaction.start()
            await lock.execute("LOCK TABLE iov.nev IN SHARE MODE")
            await publish_many(broker.url, [sample(seq) for seq in range(20)])
            await until(lambda: worker.in_flight == 20)
            await transaction.rollback()
            await worker.settles(20)
            # Now the same once more, cut off at the moment of the commit.
            writer_ = worker.service.writer
            original = writer_._attempt
            cuts = 0

            async def cut_after_commit(*batch: Any, **more: Any) -> Any:
                nonlocal cuts
                written = await original(*batch, **more)
                if not cuts:
                    cuts += 1
                    proxy.cut()
                    raise ConnectionResetError
                return written

            writer_._attempt = cut_after_commit  # type: ignore[method-assign]  # one call is to fail
            await publish_many(broker.url, [sample(seq) for seq in range(20, 40)])
            await worker.settles(40)
            received = worker.metric("iov_samples_received_total")
            assert received == worker.settled() == 40
            assert worker.metric("iov_samples_duplicate_total") >= 1
    await lock.close()
    assert await stored(own) == list(range(40))
