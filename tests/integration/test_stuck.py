"""A worker that is stuck says so; one that the broker holds back says what to change."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import mqtt5
import orjson
import pytest
import structlog

from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.source import window
from ingest.worker import pulse
from tests.fake_broker import Caller, fake_broker
from tests.support import (
    OwnDatabase,
    publish_many,
    sample,
    working,
)

TOPIC = "iov/v1/V1/nev"
QOS_1 = mqtt5.QoS.AT_LEAST_ONCE


async def test_messages_in_flight_and_no_commit_is_not_ready(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    lock = await asyncpg.connect(database.url)
    async with working(broker.url, database.url, catalogue, stuck_after_s="0.5") as worker:
        transaction = lock.transaction()
        await transaction.start()
        await lock.execute("LOCK TABLE iov.nev")
        await publish_many(broker.url, [sample(seq) for seq in range(3)])
        await until(worker.service.problems, "the notice")
        assert worker.service.problems()[0].startswith("3 messages in flight and none committed")
        await transaction.rollback()
        await until(lambda: not worker.service.problems(), "a ready worker")
    await lock.close()


async def test_nothing_in_flight_is_nothing_stuck(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue, stuck_after_s="0.001") as worker:
        assert not worker.service.problems()


async def test_a_blocked_event_loop_is_not_ready_for_a_while(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "BEAT_S", 0.02)
    monkeypatch.setattr(pulse, "BLOCKED_S", 0.2)
    monkeypatch.setattr(pulse, "HOLD_S", 0.5)
    async with working(broker.url, database.url, catalogue) as worker:
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251  that is the fault
        await until(worker.service.problems, "the notice")
        assert "event loop was blocked" in worker.service.problems()[0]
        await until(lambda: not worker.service.problems(), "a ready worker")


async def test_a_broker_that_holds_back_is_named_once_with_the_setting_to_change(
    database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As EMQX does by default (`max_inflight` 32); mosquitto 2.0.11 grants what we ask for."""
    monkeypatch.setattr(window, "SPAN_S", 0.5)
    monkeypatch.setattr(window, "_SETTLES", 20)

    logs: list[structlog.typing.EventDict] = []

    def told() -> list[structlog.typing.EventDict]:
        return [entry for entry in logs if "window" in entry["event"]]

    async def behave(peer: Caller) -> None:
        await peer.welcome()
        for seq in range(100_000):
            if told():
                break
            if seq >= 32:
                await peer.next(mqtt5.PubAckPacket)
            packet_id = seq % 32 + 1
            payload = orjson.dumps(sample(seq))
            peer.send(mqtt5.PublishPacket(TOPIC, payload, qos=QOS_1, packet_id=packet_id))
        await peer.closed()

    with structlog.testing.capture_logs() as captured:
        logs = captured
        async with (
            fake_broker(behave) as (url, _),
            working(url, database.url, catalogue) as worker,
        ):
            await until(told, "the advice")
            await until(lambda: not worker.in_flight, "rest")
    assert len(told()) == 1
    assert told()[0]["in_flight_at_most"] == 32
    assert "max_inflight" in told()[0]["hint"]
