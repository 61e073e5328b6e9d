"""What `check` sees at real servers, and what it does not touch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.commands.check import check
from ingest.config import Settings, load
from ingest.lab.embedded import Mosquitto, Postgres, amqtt, mosquitto, postgres
from ingest.schema import Catalogue
from ingest.store import migrate
from tests.support import OwnDatabase, environment, publish_many, sample, working


@pytest.fixture(scope="module")
def durable() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


async def ready(durable: Postgres, catalogue: Catalogue, url: str, **more: str) -> Settings:
    settings = load(environ=environment(url, durable.url, **more))
    await migrate(settings, catalogue)
    return settings


async def test_all_is_well(durable: Postgres, broker: Mosquitto, catalogue: Catalogue) -> None:
    found = await check(await ready(durable, catalogue, broker.url))
    assert found.problems == []
    assert found.measured["broker_window"] == "at least 3000"
    assert found.measured["shared_subscriptions"] is True
    assert found.measured["fsync"] == found.measured["synchronous_commit"] == "on"
    without_key, warning = found.warnings
    assert "IOV_DIGEST_KEY_FILE is not set" in without_key
    assert "superuser" in warning


async def test_a_filter_that_brings_nothing_is_told(
    durable: Postgres, broker: Mosquitto, catalogue: Catalogue
) -> None:
    topic = "iov/v1/+/nevv"
    found = await check(await ready(durable, catalogue, broker.url, mqtt_topic=topic))
    (problem,) = found.problems
    assert problem == f"IOV_MQTT_TOPIC {topic}: matches one stream only, and that has no schema"


async def test_a_broker_that_drops_silently_is_seen(
    durable: Postgres, catalogue: Catalogue
) -> None:
    async with mosquitto("max_queued_messages 500\nmax_inflight_messages 20\n") as small:
        found = await check(await ready(durable, catalogue, small.url))
    (problem,) = found.problems
    assert "drops the rest" in problem
    assert "max_queued_messages 0" in problem
    assert found.measured["broker_queue"] <= 500


async def test_who_may_not_publish_is_told_that_nothing_was_measured(
    durable: Postgres, catalogue: Catalogue, tmp_path: Path
) -> None:
    (file := tmp_path / "acl").write_text("topic read iov/v1/#\ntopic read iov-check/#\n")
    file.chmod(0o644)
    async with mosquitto(f"acl_file {file}\n") as broker:
        found = await check(await ready(durable, catalogue, broker.url))
    assert found.problems == []
    assert "not measured" in found.warnings[1]


async def test_a_broker_of_old_is_measured_by_one_message(
    durable: Postgres, catalogue: Catalogue
) -> None:
    async with amqtt() as url:
        found = await check(await ready(durable, catalogue, url, mqtt_group=""))
    assert found.problems == []
    assert "MQTT 3.1.1 only" in found.warnings[1]


async def test_it_takes_nothing_from_the_workers(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    settings = load(environ=environment(broker.url, database.url))
    async with working(broker.url, database.url, catalogue) as worker:
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(check(settings))
            sent = 0
            while not looking.done():
                await publish_many(broker.url, [sample(seq) for seq in range(sent, sent + 50)])
                sent += 50
        assert sent >= 100
        await worker.settles(sent)
        assert worker.metric("iov_messages_received_total") == sent
