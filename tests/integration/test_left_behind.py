"""A session that nobody reads takes its share for ever: it is said, and mended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import aiohttp
import asyncpg
import mqtt5
import pytest
import structlog

from ingest.child import child
from ingest.commands import check
from ingest.config import Settings
from ingest.lab.embedded import Mosquitto, mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import heartbeat
from ingest.store.register import NAME
from tests.integration.test_leaving import FILTER, has_session, settings_of
from tests.integration.test_supervisor import supervised
from tests.support import (
    OwnDatabase,
    environment,
    publish_many,
    sample,
    working,
)


async def silent(
    database: OwnDatabase, broker: Mosquitto, client_id: str, seconds: int = 60
) -> None:
    """A worker that was not heard of for a while."""
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at) "
        "VALUES ($1, $2, $3, now() - make_interval(secs => $4))",
        client_id, f"127.0.0.1:{broker.port}", FILTER, seconds,
    )  # fmt: skip
    await connection.close()


async def test_a_silent_worker_is_told_of_by_every_other_one_with_what_to_do(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "GRACE_S", 0)
    await silent(database, broker, "gone-1")
    await silent(database, broker, "restarting", seconds=20)
    with structlog.testing.capture_logs() as logs:
        async with (
            working(broker.url, database.url, catalogue) as worker,
            aiohttp.ClientSession() as client,
        ):
            await until(lambda: worker.metric("iov_workers_silent") == 1, "the silence noticed")
            async with client.get(f"{worker.url}/status") as response:
                warnings = (await response.json())["warnings"]
            assert ["leave --client-id gone-1" in text for text in warnings].count(True) == 1
            assert not worker.service.problems()
            found = await check.check(settings_of(broker, database))
    assert [line["client_id"] for line in logs if line["event"] == "worker silent"] == ["gone-1"]
    assert any("--client-id gone-1" in problem for problem in found.problems)
    stopped = next(line for line in logs if line["event"] == "stopped")
    assert "kept by the broker for 86400 s" in stopped["session"]
    assert "--client-id worker-1" in stopped["hint"]


async def test_after_the_register_was_away_others_get_time_to_be_heard_of(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.05)
    never, at_once = 3_600.0, 0.0
    monkeypatch.setattr(heartbeat, "GRACE_S", never)
    await silent(database, broker, "as-slow-as-we", seconds=600)
    beats = "SELECT heartbeat_at FROM iov.worker WHERE client_id = 'worker-1'"
    with structlog.testing.capture_logs() as logs:
        async with working(broker.url, database.url, catalogue) as worker:
            seen = set()

            async def beaten() -> bool:
                seen.add(await database.one(beats))
                return len(seen) > 5

            await until(beaten, "some heartbeats")
            assert worker.metric("iov_workers_silent") == 0
            monkeypatch.setattr(heartbeat, "GRACE_S", at_once)
            await until(lambda: worker.metric("iov_workers_silent") == 1, "the end of its grace")
            monkeypatch.setattr(heartbeat, "GRACE_S", never)
            found_s = worker.service.heartbeat._found_s
            assert found_s is not None
            await database.all(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> "
                "pg_backend_pid() AND application_name = $1", NAME,
            )  # fmt: skip
            await until(lambda: worker.service.heartbeat._found_s is None, "the register away")
            await until(lambda: worker.service.heartbeat._found_s, "the register found again")
            await database.execute("UPDATE iov.worker SET heartbeat_at = now() + interval '1 day'")
            monkeypatch.setattr(heartbeat, "GRACE_S", at_once)
            await until(lambda: worker.metric("iov_workers_silent") == 0, "that it came back")
    told = [line["event"] for line in logs if line.get("client_id") == "as-slow-as-we"]
    assert told == ["worker silent", "worker not silent any more"]


def test_adoption_is_on_by_default() -> None:
    assert Settings().adopt_after_s == 600


async def test_a_session_that_expired_while_its_worker_was_away_is_counted_as_lost(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        assert worker.metric("iov_sessions_lost_total") == 0
    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        await until(worker.service.heartbeat.known.done, "a heartbeat")
        assert worker.metric("iov_sessions_lost_total") == 0
    await forget(broker, "worker-1")
    with structlog.testing.capture_logs() as logs:
        async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
            await until(lambda: worker.metric("iov_sessions_lost_total") == 1, "the loss")
    assert [line["log_level"] for line in logs if line["event"] == "session lost"] == ["error"]


async def forget(broker: Mosquitto, client_id: str) -> None:
    """End a session, as its expiry would."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(mqtt5.ConnectPacket(client_id, clean_start=True).write())
    await reader.read(100)
    writer.write(mqtt5.DisconnectPacket().write())
    writer.close()
    await writer.wait_closed()


async def test_workers_of_one_name_at_two_brokers_are_two(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with (
        mosquitto() as sister,
        working(broker.url, database.url, catalogue) as first,
        working(sister.url, database.url, catalogue) as second,
    ):
        for number in range(20):
            await publish_many(broker.url, [sample(number)], "iov/v1/A/nev")
            await publish_many(sister.url, [sample(number)], "iov/v1/B/nev")
        await first.settles(20)
        await second.settles(20)
        for worker in (first, second):
            assert worker.metric("iov_reconnects_total") == 0
        second.service.leave.ask()
        await until(second.service.leave.asked.is_set)
        await until(lambda: not second.service.leave.asked.is_set(), "its refusal")
        await publish_many(sister.url, [sample(99)], "iov/v1/B/nev")
        await second.settles(21)
    brokers = await database.all("SELECT broker FROM iov.worker ORDER BY 1")
    assert {row["broker"] for row in brokers} == {
        f"127.0.0.1:{broker.port}", f"127.0.0.1:{sister.port}",
    }  # fmt: skip


async def test_a_row_from_before_brokers_had_a_port_is_taken_over(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(
        "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at) "
        f"VALUES ('worker-1', '127.0.0.1', '{FILTER}', now())"
    )
    async with working(broker.url, database.url, catalogue) as worker:
        assert await worker.service.heartbeat.known
    assert await database.all("SELECT broker FROM iov.worker") == [(f"127.0.0.1:{broker.port}",)]


async def test_who_runs_once_only_leaves_no_session_behind(
    broker: Mosquitto, database: OwnDatabase
) -> None:
    process = await child(
        sys.executable, "-m", "ingest", "run", "--once-only",
        env=os.environ | environment(broker.url, database.url),
    )  # fmt: skip

    async def registered() -> bool:
        return bool(await database.count("worker"))

    await until(registered, "a worker")
    await publish_many(broker.url, [sample(n) for n in range(50)])
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 0
    assert not await has_session(broker, "worker-1")
    assert await database.count("worker") == 0


async def test_a_supervisor_drains_what_it_no_longer_starts(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    """`--workers 4`, then `2`: two sessions went on taking half of what was published."""
    async with working(broker.url, database.url, catalogue, mqtt_client_id="worker-1-2"):
        pass
    await publish_many(broker.url, [sample(n) for n in range(30)])
    await database.execute("DELETE FROM iov.worker")
    await silent(database, broker, "worker-1-2")
    await silent(database, broker, "worker-10-2")

    async def drained() -> bool:
        return await database.count() == 30

    async with supervised(database, broker):
        await until(drained, "its session drained")

        async def struck_off() -> bool:
            left = await database.all("SELECT client_id FROM iov.worker")
            return ("worker-1-2",) not in [tuple(row) for row in left]

        await until(struck_off, "its end")
    assert not await has_session(broker, "worker-1-2")
    names = {row[0] for row in await database.all("SELECT client_id FROM iov.worker")}
    assert names == {"worker-1", "worker-1-1", "worker-10-2"}
