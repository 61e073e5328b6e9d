"""A worker that leaves for good leaves nothing behind; one that is gone can be drained."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import mqtt5
import pytest
import structlog

from ingest.config import Settings, load
from ingest.errors import Unavailable
from ingest.lab.embedded import Mosquitto, amqtt
from ingest.lab.proxy import Proxy
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.source import Stage
from ingest.store import register
from ingest.store.register import Register, Registered
from ingest.worker.leave import QUIET_S, Leave
from ingest.worker.takeover import RETRY_S, Adoption, take_over
from tests.support import (
    OwnDatabase,
    environment,
    only_version_3,
    publish_many,
    sample,
    working,
)

FILTER = "$share/ingest/iov/v1/+/+"


async def has_session(broker: Mosquitto, client_id: str) -> bool:
    """Whether the broker keeps a session; asking keeps it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    connect = mqtt5.ConnectPacket(client_id, clean_start=False, session_expiry_interval=3_600)
    writer.write(connect.write())
    connack, _ = mqtt5.read(memoryview(await reader.read(100)))
    writer.close()
    await writer.wait_closed()
    assert isinstance(connack, mqtt5.ConnAckPacket)
    return connack.session_present


def settings_of(broker: Mosquitto, database: OwnDatabase, **more: str) -> Settings:
    return load(environ=environment(broker.url, database.url, **more))


async def test_who_leaves_takes_out_what_is_left_and_ends_the_session(
    client: str, database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    first = working(broker.url, database.url, catalogue, mqtt_client=client)
    second = working(broker.url, database.url, catalogue, mqtt_client_id="worker-2")
    async with first as leaver, second as stayer:
        await publish_many(broker.url, [sample(seq) for seq in range(400)])
        leaver.service.leave.ask()
        await publish_many(broker.url, [sample(seq) for seq in range(400, 800)])
        await leaver.task
        before = stayer.settled()
        await publish_many(broker.url, [sample(seq) for seq in range(800, 900)])
        await stayer.settles(int(before) + 100)
        assert await database.count() == 900
    assert not await has_session(broker, "worker-1")
    assert await has_session(broker, "worker-2")
    assert await database.all("SELECT client_id FROM iov.worker") == [("worker-2",)]


async def test_mqtt_3_ends_its_session_too(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_version_3(monkeypatch)
    first = working(broker.url, database.url, catalogue, mqtt_client="aiomqtt")
    async with first as leaver, working(broker.url, database.url, catalogue, mqtt_client_id="w2"):
        await publish_many(broker.url, [sample(seq) for seq in range(100)])
        leaver.service.leave.ask()
        await leaver.task
    assert not await has_session(broker, "worker-1")
    assert await database.count() == 100


async def test_the_last_one_does_not_leave_by_a_signal(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue) as worker:
        worker.service.leave.ask()
        await until(lambda: not worker.service.leave.asked.is_set(), "the refusal")
        await publish_many(broker.url, [sample(seq) for seq in range(10)])
        await worker.settles(10)


async def test_a_worker_hears_by_the_database_that_it_is_to_leave(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.store.heartbeat.EVERY_S", 0.1)
    settings = settings_of(broker, database)
    async with working(broker.url, database.url, catalogue) as worker:
        async with register.opened(settings.database, settings.broker) as opened:
            found = await opened.find("worker-1")
            assert found == Registered("worker-1", FILTER, alive=True)
            assert not await opened.ask_to_leave(found)
            assert await opened.ask_to_leave(found, last=True)
        await worker.task
    assert await database.count("worker") == 0


async def test_what_a_killed_worker_left_is_drained(
    client: str, database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue) as victim:
        await victim.kill()
    await publish_many(broker.url, [sample(seq) for seq in range(500)])
    settings = settings_of(broker, database, mqtt_client_id="standby", mqtt_client=client)
    gone = Registered("worker-1", FILTER, alive=False)
    async with register.opened(settings.database, settings.broker) as opened:
        assert await take_over(settings, catalogue, opened, gone) == 500
        assert await database.count() == 500
        assert await take_over(settings, catalogue, opened, gone) is None
    assert not await has_session(broker, "worker-1")


async def test_an_owner_that_returns_wins(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long the owner takes to return, the other one is still at it.
    monkeypatch.setattr("ingest.worker.leave.QUIET_S", 60)
    settings = settings_of(broker, database, mqtt_client_id="standby")
    async with working(broker.url, database.url, catalogue) as victim:
        await victim.kill()
    await publish_many(broker.url, [sample(seq) for seq in range(300)])
    gone = Registered("worker-1", FILTER, alive=False)

    async def take() -> None:
        async with register.opened(settings.database, settings.broker) as opened:
            await take_over(settings, catalogue, opened, gone)

    draining = asyncio.create_task(take())

    async def under_way() -> bool:
        return await database.count() == 300

    await until(under_way)
    async with working(broker.url, database.url, catalogue) as owner:
        with pytest.raises(Exception, match=r"taken over|closed by broker|connection lost"):
            await draining
        await publish_many(broker.url, [sample(seq) for seq in range(300, 400)])
        await until(lambda: owner.settled() >= 100)
        assert owner.metric("iov_reconnects_total", peer="broker") == 0
    assert await database.count() == 400


async def test_a_silent_worker_is_adopted_by_one_of_the_others(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.store.heartbeat.EVERY_S", 0.1)
    async with working(broker.url, database.url, catalogue) as victim:
        await victim.kill()
    async with working(broker.url, database.url, catalogue, mqtt_client_id="worker-2") as worker:
        await publish_many(broker.url, [sample(seq) for seq in range(300)])
        await until(lambda: not worker.in_flight)
        left = 300 - await database.count()
        assert left > 0
        # Three seconds of silence here, where a setting would have to say sixty.
        settings = settings_of(broker, database, mqtt_client_id="worker-2")
        adopters = [
            Adoption(settings.model_copy(update={"adopt_after_s": 1.5}), catalogue, watch)
            for watch in (worker.service.watch, worker.service.watch)
        ]
        tasks = [asyncio.create_task(one.run()) for one in adopters]

        async def adopted() -> bool:
            return await database.count("worker") == 1

        await until(adopted, "the adoption")
        assert await database.count() == 300
        for task in tasks:
            task.cancel()
    assert not await has_session(broker, "worker-1")


async def test_nobody_is_judged_while_the_database_was_away(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    settings = settings_of(broker, database, mqtt_client_id="worker-2", adopt_after_s="60")
    await database.execute(
        "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at) "
        f"VALUES ('gone', '127.0.0.1:{broker.port}', '{FILTER}', now() - interval '1 day')"
    )
    async with working(broker.url, database.url, catalogue, mqtt_client_id="worker-2") as worker:
        adoption = Adoption(settings, catalogue, worker.service.watch)
        adoption._after_s = QUIET_S
        worker.service.watch.up_since_s = None
        task = asyncio.create_task(adoption.run())
        await asyncio.sleep(QUIET_S)  # four looks of its
        assert await database.count("worker") == 2
        task.cancel()


async def test_who_comes_back_while_another_session_is_drained_is_left_alone(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(broker, database, mqtt_client_id="worker-2", adopt_after_s="60")
    for name in ("gone-1", "gone-2"):
        await database.execute(
            "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at) "
            f"VALUES ('{name}', '127.0.0.1:{broker.port}', '{FILTER}', now() - interval '1 day')"
        )
    taken: list[str] = []

    async def take(_: Settings, __: Catalogue, ___: Register, gone: Registered) -> int:
        taken.append(gone.client_id)
        await database.execute("UPDATE iov.worker SET heartbeat_at = now()")
        return 1

    monkeypatch.setattr("ingest.worker.takeover.take_over", take)
    async with working(broker.url, database.url, catalogue, mqtt_client_id="worker-2") as worker:
        adoption = Adoption(settings, catalogue, worker.service.watch)
        async with register.opened(settings.database, settings.broker) as opened:
            await adoption._adopt_all(opened)
    assert len(taken) == 1


async def test_an_adoption_that_was_interrupted_is_tried_again_a_while_later(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(broker, database, mqtt_client_id="worker-2", adopt_after_s="60")
    await database.execute(
        "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at) "
        f"VALUES ('gone', '127.0.0.1:{broker.port}', '{FILTER}', now() - interval '1 day')"
    )
    tried: list[float] = []

    async def take(*_: Any) -> int:
        tried.append(time.monotonic())
        raise Unavailable("connection closed by broker")

    monkeypatch.setattr("ingest.worker.takeover.take_over", take)
    assert Settings().adopt_after_s / 10 >= RETRY_S, "nothing waits long"
    monkeypatch.setattr("ingest.worker.takeover.RETRY_S", 0.5)
    nobody: Any = None  # not asked here
    adoption = Adoption(settings, catalogue, nobody)
    async with register.opened(settings.database, settings.broker) as opened:
        while len(tried) < 2:
            await adoption._adopt_all(opened)
            await asyncio.sleep(0.05)  # how often a worker looks; nobody reports a silence
    assert tried[1] - tried[0] >= 0.5


async def test_a_broker_that_is_away_during_an_adoption_is_asked_again(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    """Otherwise what waits in the session waits ten minutes more."""
    async with working(broker.url, database.url, catalogue) as victim:
        await victim.kill()
    await publish_many(broker.url, [sample(seq) for seq in range(300)])
    settings = settings_of(broker, database, mqtt_client_id="worker-2", adopt_after_s="60")
    nobody: Any = None  # not asked here
    adoption = Adoption(settings, catalogue, nobody)
    adoption._after_s = 0
    async with register.opened(settings.database, settings.broker) as opened:
        await broker.stop()
        await adoption._adopt_all(opened)
        assert await database.count() == 0
        await broker.start()
        await adoption._adopt_all(opened)
    assert await database.count() == 300


async def somebody_else(database: OwnDatabase, url: str) -> None:
    """Another worker of that broker in the register, which stays, for as long as a test takes."""
    broker_id = url.removeprefix("mqtt://")
    await database.execute(
        "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at) "
        f"VALUES ('stays', '{broker_id}', '{FILTER}', now() + interval '1 hour')"
    )


async def test_a_silent_network_is_not_taken_for_the_end(
    client: str, database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with Proxy("127.0.0.1", broker.port) as proxy:
        url = f"mqtt://127.0.0.1:{proxy.port}"
        await somebody_else(database, url)
        async with working(url, database.url, catalogue, mqtt_client=client) as worker:
            await publish_many(broker.url, [sample(1)])
            await worker.settles(1)
            proxy.stall()
            await publish_many(broker.url, [sample(seq) for seq in range(2, 300)])
            worker.service.leave.ask()
            await until(lambda: worker.service.source.problem, "the silence noticed")
            assert not worker.task.done()
            proxy.flow()
            await worker.task
    assert await database.count() == 299
    assert not await has_session(broker, "worker-1")


async def test_a_cut_while_leaving_is_only_a_delay(
    client: str, database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    lock = await asyncpg.connect(database.url)
    async with Proxy("127.0.0.1", broker.port) as proxy:
        url = f"mqtt://127.0.0.1:{proxy.port}"
        await somebody_else(database, url)
        async with working(
            url, database.url, catalogue, mqtt_client=client, mqtt_receive_maximum="100"
        ) as worker:
            async with lock.transaction():
                await lock.execute("LOCK TABLE iov.nev")
                await publish_many(broker.url, [sample(seq) for seq in range(500)])
                worker.service.leave.ask()
                await until(lambda: worker.service.leave.asked.is_set() and worker.in_flight)
                proxy.cut()
                await until(lambda: worker.service.source.problem, "the cut")
            await worker.task
    await lock.close()
    assert await database.count() == 500
    assert not await has_session(broker, "worker-1")


async def test_what_is_granted_while_the_register_is_asked_is_not_forgotten(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run --once-only` hears SIGUSR1, and SIGTERM while the register takes its time to refuse."""
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def slowly(_: Leave) -> bool:
        asked.set()
        await goes_on.wait()
        return False

    monkeypatch.setattr(Leave, "_another_stays", slowly)
    async with working(broker.url, database.url, catalogue) as worker:
        worker.service.leave.ask()
        await asked.wait()
        worker.service.leave.ask(granted=True)
        goes_on.set()
        async with asyncio.timeout(30):
            await worker.task
    assert not await has_session(broker, "worker-1")


async def test_two_that_are_told_at_once_do_not_both_leave(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    first = working(broker.url, database.url, catalogue)
    second = working(broker.url, database.url, catalogue, mqtt_client_id="worker-2")
    async with first as one, second as other:
        for worker in (one, other):
            worker.service.leave.ask()
        await until(lambda: one.task.done() or other.task.done(), "one to leave")
        await until(lambda: not all(w.service.leave.asked.is_set() for w in (one, other)))
        assert one.task.done() != other.task.done()


async def test_a_signal_while_the_database_is_away_ends_nothing(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with Proxy(None, None, f"{database.server.socket_directory}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database.name}?sslmode=disable"
        async with working(broker.url, url, catalogue) as worker:
            proxy.refuse()
            worker.service.leave.ask()
            await until(lambda: not worker.service.leave.asked.is_set(), "the refusal")
            proxy.flow()
            await publish_many(broker.url, [sample(1)])
            await worker.settles(1)


async def test_what_a_dead_worker_holds_at_the_database_is_let_go(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    """Its host is gone in the middle of a COPY: nobody has told the database."""
    async with working(broker.url, database.url, catalogue) as victim:
        await publish_many(broker.url, [sample(1)])
        await victim.settles(1)
        await victim.kill()
    again = sample(7)
    await publish_many(broker.url, [again])
    ghost = await asyncpg.connect(
        database.url,
        server_settings={"application_name": settings_of(broker, database).broker.application_name},
    )
    await ghost.execute("BEGIN")
    await ghost.execute(
        "INSERT INTO iov.nev (device_id, ts, seq, received_at) "
        f"SELECT device_id, '{again['ts']}', 7, now() FROM iov.device"
    )
    settings = settings_of(broker, database, mqtt_client_id="standby")
    async with register.opened(settings.database, settings.broker) as opened, asyncio.timeout(20):
        gone = Registered("worker-1", FILTER, alive=False)
        assert await take_over(settings, catalogue, opened, gone) == 1
    assert await database.count() == 2
    ghost.terminate()


async def test_one_signal_and_the_register_are_one_leaving(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.store.heartbeat.EVERY_S", 0.02)
    await somebody_else(database, broker.url)
    with structlog.testing.capture_logs() as logs:
        async with working(broker.url, database.url, catalogue) as worker:
            worker.service.leave.ask()
            worker.service.leave.ask()
            await worker.task
    assert [entry["event"] for entry in logs].count("leaving for good") == 1
    assert "left for good" in [entry["event"] for entry in logs]
    assert not await has_session(broker, "worker-1")


async def test_a_stop_while_leaving_lets_it_come_to_its_end(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    await somebody_else(database, broker.url)
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(seq) for seq in range(200)])
        worker.service.leave.ask()
        await until(lambda: worker.service.source.stage > Stage.STAYING, "the leaving")
        worker.service.stop()
        await worker.task
    assert await database.count() == 200
    assert not await has_session(broker, "worker-1")


async def test_a_new_start_is_not_asked_what_its_predecessor_was(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.store.heartbeat.EVERY_S", 0.02)
    await database.execute(
        "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at, leave_requested) "
        f"VALUES ('worker-1', '127.0.0.1:{broker.port}', '{FILTER}', now(), true)"
    )
    async with working(broker.url, database.url, catalogue) as worker:
        query = "SELECT leave_requested FROM iov.worker"

        async def withdrawn() -> bool:
            return await database.one(query) is False

        await until(withdrawn, "the withdrawal")
        await publish_many(broker.url, [sample(1)])
        await worker.settles(1)
        assert not worker.service.leave.asked.is_set()


async def test_a_broker_of_old_is_drained_too(database: OwnDatabase, catalogue: Catalogue) -> None:
    async with amqtt() as url:
        settings = load(
            environ=environment(url, database.url, mqtt_client="aiomqtt", mqtt_group="")
        )
        async with register.opened(settings.database, settings.broker) as opened:
            gone = Registered("worker-1", "iov/v1/+/+", alive=False)
            assert await take_over(settings, catalogue, opened, gone) is None
