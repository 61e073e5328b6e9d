"""The live page over HTTP: what it tells, to whom, and that it costs nothing while nobody looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
import pytest

from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue
from tests.support import (
    OwnDatabase,
    Worker,
    bad_sample,
    publisher,
    sample,
    working,
)

TOKEN = "s3cr3t-of-the-page"
ELSEWHERE = {"X-Forwarded-For": "203.0.113.7"}
PLACE: dict[str, Any] = {"location": {"valid": True, "lon": 121.47, "lat": 31.23}}
DETAILS = {"dead_letters", "positions"}


async def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as client,
        client.get(url, headers=headers) as answer,
    ):
        return answer.status, await answer.read()


async def status(url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    code, body = await get(f"{url}/status", headers)
    assert code == 200
    found: dict[str, Any] = orjson.loads(body)
    return found


@asynccontextmanager
async def events(
    url: str, headers: dict[str, str] | None = None
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The events of a page that is open."""

    async def read(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        async for line in answer.content:
            if line.startswith(b"data: "):
                yield orjson.loads(line.removeprefix(b"data: "))

    async with aiohttp.ClientSession() as client, client.get(f"{url}/events", headers=headers) as a:
        assert a.content_type == "text/event-stream"
        yield read(a)


async def first(
    told: AsyncIterator[dict[str, Any]], wanted: Callable[[dict[str, Any]], Any] = bool
) -> dict[str, Any]:
    """The first event that is as wanted."""
    async with asyncio.timeout(30):
        async for event in told:
            if wanted(event):
                return event
    raise AssertionError("no more events")


async def test_the_page_is_one_file_that_asks_nobody_else(
    worker: AbstractAsyncContextManager[Worker],
) -> None:
    async with (
        worker as running,
        aiohttp.ClientSession() as client,
        client.get(running.url) as answer,
    ):
        text = await answer.text()
        assert answer.content_type == "text/html"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<title>iov-ingest</title>" in text
    assert "http://" not in text
    assert "https://" not in text


async def test_an_open_page_is_told_once_a_second_what_happens(
    broker: Mosquitto, worker: AbstractAsyncContextManager[Worker]
) -> None:
    async with worker as running, publisher(broker.url) as publish:
        async with events(running.url) as told:
            begin = await first(told)
            assert begin["ready"]
            assert begin["positions"] == {}
            assert begin["window"] == 6_000
            await publish(sample(1, **PLACE), "iov/v1/V1/nev")
            await publish(bad_sample(2, gear="Q"), "iov/v1/V2/nev")
            event = await first(told, lambda event: event.get("positions"))
            assert event["positions"]["V1"][:2] == [121.47, 31.23]
            assert event["positions"]["V1"][3] == "nev"
            assert event["rates"]["streams"]["nev"]["stored"] > 0
            assert 0 < event["rates"]["commit_s"]["p50"] <= event["rates"]["commit_s"]["p99"]
            assert event["rates"]["lag_s"]["nev"]["p99"] < 60
            event = await first(told, lambda event: event["dead_letters"])
            (letter,) = event["dead_letters"]
            assert (letter["device"], letter["reason"]) == ("V2", "schema")
            assert letter["detail"].startswith("/gear")
            assert event["rejected"]["schema"] == 1
            assert event["streams"]["nev"] == {
                "received": 2, "stored": 1, "duplicate": 0, "rejected": 1,
            }  # fmt: skip
            late = datetime.now(UTC) - timedelta(hours=1)
            await publish(sample(3, late, location={"lon": 0, "lat": 0}), "iov/v1/V1/nev")
            await publish(sample(4, **PLACE), "iov/v1/V3/nev")
            event = await first(told, lambda event: "V3" in event["positions"])
            assert "V1" not in event["positions"], "what was resent is no last position"
            live = running.service._page._live
            assert set(live.positions()) == {"V1", "V3"}
        await until(lambda: not live.map_is_open, "the map to be closed")
        await publish(sample(5, **PLACE), "iov/v1/V4/nev")
        await until(lambda: not live.positions(), "the positions to be forgotten")


async def test_devices_and_details_are_for_this_machine_or_the_token(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue, http_token=TOKEN) as running:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        for headers, allowed in (
            (None, False),  # a proxy on this machine that adds no header looks the same
            (ELSEWHERE, False),
            (bearer, True),
            (ELSEWHERE | bearer, True),
            (ELSEWHERE | {"Authorization": f"Bearer {TOKEN}x"}, False),
            ({"Authorization": "Bearer wrong"}, False),
            ({"Host": "rebound.example.com"}, False),
        ):
            found = await status(running.url, headers)
            assert ("dead_letters" in found) is allowed, headers
            assert (found["worker"] is not None) is allowed, headers
            async with events(running.url, headers) as told:
                event = await first(told)
                assert (event.keys() >= DETAILS) is allowed, headers
                assert bool(event.keys() & DETAILS) is allowed, headers
        found = orjson.loads((await get(f"{running.url}/status?token={TOKEN}", ELSEWHERE))[1])
        assert "dead_letters" in found


async def test_while_no_token_is_set_details_are_for_this_machine(
    worker: AbstractAsyncContextManager[Worker],
) -> None:
    async with worker as running:
        for headers, allowed in (
            (None, True),
            (ELSEWHERE, False),
            ({"Authorization": "Bearer any"}, True),
            ({"Host": "rebound.example.com"}, False),
        ):
            found = await status(running.url, headers)
            assert ("dead_letters" in found) is allowed, headers


async def raw(running: Worker, request: bytes) -> bytes:
    """What comes back for bytes that no client library would send."""
    port = running.service.http_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read(12)
    writer.close()
    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"Host: [::1\r\n",
        b"Host: a b\r\n",
        b"Host: x:99999999\r\n",
        b"Host: x\r\nAuthorization: Bearer \xff\xfe\r\n",
        b"Host: x\r\nX: " + b"y" * 9_000 + b"\r\n",
        b"Host: x\r\n" + b"X: y\r\n" * 500,
    ],
)
async def test_an_odd_head_is_the_clients_mistake(
    head: bytes, worker: AbstractAsyncContextManager[Worker]
) -> None:
    async with worker as running:
        for path in (b"/status", b"/metrics", b"/events?token=%ff"):
            answer = await raw(running, b"GET " + path + b" HTTP/1.1\r\n" + head + b"\r\n")
            assert answer[:10] in {b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 2"}, answer


async def test_connections_and_heads_have_limits(
    worker: AbstractAsyncContextManager[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.web.server.MOST_CONNECTIONS", 5)
    monkeypatch.setattr("ingest.web.server.IDLE_S", 1.0)
    async with worker as running:
        port = running.service.http_port
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        for _, writer in pairs[3:]:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        # The oldest have given way,
        assert [await reader.read() for reader, _ in pairs[:3]] == [b""] * 3
        # and the others are closed when they have taken their time.
        assert [await reader.read() for reader, _ in pairs[3:]] == [b""] * 5
        assert (await get(f"{running.url}/livez"))[0] == 200
        for _, writer in pairs:
            writer.close()


async def test_strangers_keep_out_neither_a_probe_nor_who_has_the_token(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.web.server.MOST_CONNECTIONS", 5)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    asks = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    async with (
        working(broker.url, database.url, catalogue, http_token=TOKEN) as running,
        events(running.url, bearer) as told,
    ):
        await first(told)
        strangers = []
        for _ in range(12):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.service.http_port)
            writer.write(asks)
            assert await reader.read(15) == b"HTTP/1.1 200 OK"
            strangers.append(writer)
        assert (await get(f"{running.url}/livez"))[0] == 200
        await first(told)
        for writer in strangers:
            writer.close()


async def test_what_is_no_http_fills_no_log(
    worker: AbstractAsyncContextManager[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    async with worker as running:
        for garbage in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            port = running.service.http_port
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            assert b"400" in await reader.read(40)
            writer.close()
        odd = {"Accept": "application/openmetrics-text;version=zz"}
        assert (await get(f"{running.url}/metrics", odd))[0] == 400
    assert [line for line in caplog.records if line.name == "aiohttp.server"] == []


async def test_viewers_without_the_token_keep_nobody_out(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.web.page._MOST_VIEWERS", 1)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        working(broker.url, database.url, catalogue, http_token=TOKEN) as running,
        events(running.url) as stranger,
        events(running.url, bearer) as told,
    ):
        await first(stranger)
        assert "positions" in await first(told)
        assert (await get(f"{running.url}/events"))[0] == 503


async def test_a_worker_with_open_pages_stops_at_once(
    worker: AbstractAsyncContextManager[Worker],
) -> None:
    async with (
        worker as running,
        events(running.url) as one,
        events(running.url, ELSEWHERE) as other,
    ):
        await first(one, lambda event: "rates" in event)
        await first(other, lambda event: "rates" in event)
        async with asyncio.timeout(10):
            await running.stop()
        with pytest.raises(AssertionError, match="no more events"):
            await first(one, lambda _: False)


async def test_pages_beyond_the_limit_are_turned_away(
    worker: AbstractAsyncContextManager[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.web.page._MOST_VIEWERS", 1)
    async with worker as running, events(running.url) as told:
        await first(told)
        assert (await get(f"{running.url}/events"))[0] == 503
