"""The service as a whole: outcomes, account, readiness, and the settings that shape batches."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from ingest.check import Checker
from ingest.commands.publisher import Publisher
from ingest.config import Settings, load
from ingest.errors import Unavailable
from ingest.lab.embedded import Mosquitto, free_port
from ingest.lab.replay import Replay
from ingest.lab.until import until
from ingest.model import Delivery
from ingest.schema import Catalogue, load_catalogue
from ingest.schema.stream import stream
from ingest.store import migrate, watch
from ingest.worker.service import Service
from tests.support import (
    OwnDatabase,
    Worker,
    bad_sample,
    environment,
    publish_many,
    publisher,
    sample,
    working,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Recordings that are no part of the repository; a test that wants one skips without it."""


async def test_every_reason_ends_in_a_dead_letter_and_the_account_closes(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    class Clumsy(Checker):
        def check(self, delivery: Delivery) -> Any:
            if b"stumble" in delivery.payload:
                raise ZeroDivisionError
            return super().check(delivery)

    now = datetime.now(UTC)
    at = database.url, catalogue
    async with working(broker.url, *at, checker=Clumsy.of(catalogue, Settings())) as worker:
        async with publisher(broker.url) as publish:
            await publish(b"x" * 300_000)
            await publish(sample(1), "iov/v1/b%d/nev")
            await publish(sample(1), "iov/v1/V1/what")
            await publish(gzip.compress(bytes(250_000_000)), encoding="gzip")
            await publish(b"")
            await publish([sample(1) | {"ts": None}, sample(2)])
            await publish(sample(3, "2032-90-02T12:08:07+01:00"))
            await publish(sample(4, now - timedelta(days=31)))
            await publish(sample(5, now + timedelta(hours=8)))
            await publish(bad_sample(6))
            await publish(sample(7, cabin="\0"))
            await publish(sample(8, cabin="stumble"))
            await publish(sample(9), retain=True)
        await worker.settles(14)
        # The worker subscribes to one level of devices and one of streams; what does not fit the
        # charset of a device still reaches it.
        assert await database.reasons() == [
            "too_large", "bad_topic", "unknown_stream", "bad_encoding", "bad_json",
            "bad_envelope", "bad_timestamp", "too_old", "clock_ahead", "schema",
            "refused_by_store", "internal_error",
        ]  # fmt: skip
        assert sorted(r[0] for r in await database.all("SELECT seq FROM iov.nev")) == [2, 9]
        assert worker.metric("iov_messages_received_total") == 13
        for name in ("nev", "other"):
            received = worker.metric("iov_samples_received_total", stream=name)
            assert received == sum(
                worker.metric(f"iov_samples_{outcome}_total", stream=name)
                for outcome in ("stored", "duplicate", "rejected")
            )
        letter = (await database.all("SELECT * FROM iov.dead_letter WHERE reason = 'schema'"))[0]
        assert (letter["device"], letter["stream"]) == ("V1", "nev")
        assert orjson.loads(letter["payload"])["seq"] == 6


async def test_an_exception_in_check_costs_one_message_and_no_other(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    class Clumsy(Checker):
        def check(self, delivery: Delivery) -> Any:
            if b'"seq":500,' in delivery.payload:
                raise RecursionError
            return super().check(delivery)

    clumsy = Clumsy.of(catalogue, Settings())
    async with working(broker.url, database.url, catalogue, checker=clumsy) as worker:
        await publish_many(broker.url, [sample(seq) for seq in range(1_000)])
        await worker.settles(1_000)
    assert await database.count() == 999
    assert await database.reasons() == ["internal_error"]


async def test_one_bad_sample_in_a_message_of_a_thousand(
    database: OwnDatabase, broker: Mosquitto, worker: AbstractAsyncContextManager[Worker]
) -> None:
    async with worker as running:
        async with publisher(broker.url) as publish:
            await publish(
                [sample(n) if n != 77 else bad_sample(n, soc_pct="?") for n in range(1_000)]
            )
        await running.settles(1_000)
    assert await database.count() == 999
    assert await database.one("SELECT detail FROM iov.dead_letter") == (
        "/soc_pct is refused (type), and nothing else is left"
    )


async def test_a_redelivered_sample_without_seq_is_recognised_and_its_neighbour_kept(
    database: OwnDatabase, broker: Mosquitto, worker: AbstractAsyncContextManager[Worker]
) -> None:
    at = datetime.now(UTC)
    async with worker as running:
        async with publisher(broker.url) as publish:
            await publish(sample(None, at, soc_pct=50))
            await publish(sample(None, at, soc_pct=50, resend=True))
            await publish(sample(None, at, soc_pct=51))
        await running.settles(3)
        assert running.metric("iov_samples_duplicate_total") == 1
    assert await database.count() == 2


async def test_low_load_commits_at_once_and_a_wait_gathers(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue, batch_wait_ms="60000") as worker:
        async with publisher(broker.url) as publish:
            for seq in range(20):
                await publish(sample(seq))
        await until(lambda: worker.in_flight == 20)
        assert worker.metric("iov_flush_total") == 0
        await worker.stop()  # draining does not wait
        assert worker.metric("iov_flush_total", trigger="drain") == 1
    assert await database.count() == 20


async def get(url: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        return answer.status, orjson.loads(await answer.read())


async def test_readiness_says_what_is_in_the_way(
    database: OwnDatabase,
    broker: Mosquitto,
    worker: AbstractAsyncContextManager[Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "INTERVAL_S", 0.1)

    async def reason(part: str) -> bool:
        status, body = await get(f"{running.url}/readyz")
        return status == 503 and part in body["reason"]

    async def ready() -> bool:
        return (await get(f"{running.url}/readyz"))[0] == 200

    async with worker as running:
        assert await get(f"{running.url}/livez") == (200, {"alive": True})
        assert await ready()
        await broker.stop()
        await until(lambda: reason("connect"), "the broker's absence")
        await broker.start()
        await until(ready)
        await database.execute(
            f"ALTER DATABASE {database.name} SET default_transaction_read_only = on"
        )
        await until(lambda: reason("read-only"), "read-only")
        assert (await get(f"{running.url}/livez"))[0] == 200


async def test_metrics_have_the_names_dashboards_rely_on(
    broker: Mosquitto, worker: AbstractAsyncContextManager[Worker]
) -> None:
    async with worker as running:
        async with publisher(broker.url) as publish:
            await publish(sample(1, unheard_of=1))
        await running.settles(1)
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{running.url}/metrics") as answer,
        ):
            text = await answer.text()
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{running.url}/metrics?name[]=iov_samples_stored_total") as answer,
        ):
            asked = [line for line in (await answer.text()).splitlines() if line[0] != "#"]
    assert 'iov_samples_stored_total{stream="nev"} 1.0' in asked
    assert all(line.startswith("iov_samples_stored_total{") for line in asked)
    for line in (
        'iov_messages_received_total{stream="nev"} 1.0',
        'iov_samples_received_total{stream="nev"} 1.0',
        'iov_samples_stored_total{stream="nev"} 1.0',
        'iov_samples_duplicate_total{stream="nev"} 0.0',
        'iov_samples_rejected_total{reason="schema",stream="nev"} 0.0',
        'iov_unknown_fields_total{stream="nev"} 1.0',
        "iov_messages_in_flight 0.0",
        'iov_batch_rows_bucket{le="1.0"} 1.0',
        "iov_commit_seconds_count 1.0",
        "iov_ack_latency_seconds_count 1.0",
        'iov_event_lag_seconds_bucket{le="+Inf",stream="nev"} 1.0',
        'iov_event_lag_seconds_count{stream="nev"} 1.0',
        'iov_event_lag_seconds_sum{stream="nev"}',
        'iov_flush_total{trigger="idle"} 1.0',
        "iov_mqtt_connected 1.0",
        "iov_database_up 1.0",
        'iov_reconnects_total{peer="broker"} 0.0',
        'iov_reconnects_total{peer="database"} 0.0',
        "iov_sessions_lost_total 0.0",
        "iov_build_info{",
        "process_resident_memory_bytes",
    ):
        assert line in text, line


async def test_an_address_that_is_taken_ends_the_service_with_a_reason(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    port = free_port()
    async with working(broker.url, database.url, catalogue, http_port=str(port)):
        settings = load(environ=environment(broker.url, database.url, http_port=str(port)))
        with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{port}"):
            await Service(settings, catalogue).run()


async def test_a_property_is_added_and_migrated_under_load(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    schema = catalogue["nev"].schema
    heater = {"type": ["number", "null"], "title": "Heater", "minimum": 0}
    more = {
        **catalogue,
        "nev": stream("nev", schema | {"properties": schema["properties"] | {"heater_w": heater}}),
    }
    configured = load(environ={"IOV_DATABASE_URL": database.url})
    async with working(broker.url, database.url, catalogue, mqtt_client_id="old") as old:
        async with asyncio.TaskGroup() as tasks:
            load_ = [sample(seq, heater_w=seq) for seq in range(4_000)]
            tasks.create_task(publish_many(broker.url, load_))
            await until(lambda: old.settled() > 100, "the load")
            await migrate(configured, more)
        async with working(broker.url, database.url, more, mqtt_client_id="new") as new:
            await publish_many(broker.url, [sample(s, heater_w=s) for s in range(4_000, 4_400)])
            await until(lambda: old.settled() + new.settled() >= 4_400, "everything settled")
            assert new.settled() > 0
    assert await database.count() == 4_400
    kept = await database.one(
        "SELECT count(*) FROM iov.nev WHERE coalesce(heater_w, (extra->>'heater_w')::float8) = seq"
    )
    assert kept == 4_400


@pytest.mark.skipif(not DATA.is_dir(), reason="the recordings are not on this machine")
async def test_a_recording_of_a_real_car_is_stored_whole(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    checker = Checker.of(load_catalogue(), Settings(max_age_days=120))
    recording = Replay(DATA / "twizy.ndjson.gz", 0, checker, shift=True)
    recording.measure()
    settings = load(environ=environment(broker.url, database.url))
    async with working(broker.url, database.url, catalogue, max_age_days="120") as worker:
        async with Publisher(settings.broker) as car:
            await recording.run(car)
        assert recording.account()["acknowledged"] == 43_056
        assert recording.account()["refused"] == 170
        await worker.settles(43_056)
        assert worker.metric("iov_samples_duplicate_total") == 0
    assert await database.count() == 42_886
    reasons = await database.reasons()
    assert (len(reasons), set(reasons)) == (170, {"bad_timestamp"})
