"""A cancellation that meets an answer at the same moment is not lost.

`asyncio.wait_for` of Python 3.11, which aiomqtt waits with, returns the answer then, and whoever
was told to end goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import Any

import aiomqtt
import pytest

from ingest.commands import check
from ingest.commands.publisher import Publisher
from ingest.config import load
from ingest.errors import Unavailable
from ingest.lab.embedded import Mosquitto
from ingest.metrics import Metrics
from ingest.source import Source
from ingest.source.aiomqtt import AiomqttClient
from tests.support import environment, publisher, sample

Answered = list[str]
NO_DATABASE = "postgresql://127.0.0.1/nowhere"


@pytest.fixture
def cancelled_at_the_answer(monkeypatch: pytest.MonkeyPatch) -> Answered:
    """Cancel whoever waits for the broker's answer, in the moment that it comes."""
    wait_for, answered = aiomqtt.Client._wait_for, Answered()

    async def wait(client: aiomqtt.Client, answer: Awaitable[Any], timeout: float | None) -> Any:  # noqa: ASYNC109  aiomqtt's own
        task = asyncio.current_task()
        assert task is not None

        async def and_cancel() -> Any:
            value = await answer
            answered.append(task.get_name())
            task.cancel()
            return value

        return await wait_for(client, and_cancel(), timeout)

    monkeypatch.setattr(aiomqtt.Client, "_wait_for", wait)
    return answered


async def ends(task: asyncio.Task[Any], answered: Answered) -> bool:
    async with asyncio.timeout(10):
        await asyncio.wait([task])
    return task.cancelled() and task.get_name() in answered


async def test_who_publishes_is_cancelled(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    async with Publisher(load(environ={"IOV_MQTT_URL": broker.url}).broker) as car:
        answered = request.getfixturevalue("cancelled_at_the_answer")

        async def publish_on() -> None:
            while True:
                await car.publish("iov/v1/V1/nev", b"{}")

        assert await ends(asyncio.create_task(publish_on(), name="car"), answered)
        monkeypatch.undo()


async def test_a_tests_own_publisher_is_cancelled(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    async with publisher(broker.url) as publish:
        answered = request.getfixturevalue("cancelled_at_the_answer")

        async def publish_on() -> None:
            while True:
                await publish(sample(1))

        assert await ends(asyncio.create_task(publish_on(), name="test"), answered)
        monkeypatch.undo()


async def test_a_source_is_cancelled(broker: Mosquitto, cancelled_at_the_answer: Answered) -> None:
    settings = load(environ=environment(broker.url, NO_DATABASE, mqtt_client="aiomqtt"))
    source = Source(settings.broker, Metrics({"nev": []}), Random(1))
    assert await ends(asyncio.create_task(source.run(), name="source"), cancelled_at_the_answer)


async def test_a_source_whose_subscription_is_refused_is_cancelled(
    broker: Mosquitto, cancelled_at_the_answer: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the session comes instead, and another attempt would follow."""

    async def refused(*_: Any) -> None:
        raise Unavailable("refused")

    monkeypatch.setattr(AiomqttClient, "_subscribe", refused)
    settings = load(environ=environment(broker.url, NO_DATABASE, mqtt_client="aiomqtt"))
    source = Source(settings.broker, Metrics({"nev": []}), Random(1))
    assert await ends(asyncio.create_task(source.run(), name="source"), cancelled_at_the_answer)


async def test_a_check_is_cancelled(broker: Mosquitto, cancelled_at_the_answer: Answered) -> None:
    settings = load(environ=environment(broker.url, NO_DATABASE, mqtt_client="aiomqtt"))
    checking = check._round_trip(settings.broker, aiomqtt.ProtocolVersion.V5)
    assert await ends(asyncio.create_task(checking, name="check"), cancelled_at_the_answer)
