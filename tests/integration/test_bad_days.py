"""What a broker says on bad days, and what the reader makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import mqtt5
import orjson
import pytest

from ingest.config import load
from ingest.lab.until import until
from ingest.metrics import Metrics
from ingest.schema import Catalogue
from ingest.source import Source, client, source
from tests.fake_broker import Caller, fake_broker
from tests.support import (
    OwnDatabase,
    environment,
    sample,
    working,
)

PUBLISH = mqtt5.PublishPacket("iov/v1/V1/nev", b"{}", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=7)


@asynccontextmanager
async def reading(url: str, **settings: str) -> AsyncIterator[Source]:
    configured = load(environ=environment(url, "postgresql:///unused", **settings))
    reader = Source(configured.broker, Metrics({"nev": ["clock_off"]}), Random(1))
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_connect_says_what_the_settings_say() -> None:
    async def behave(peer: Caller) -> None:
        await peer.welcome()
        await peer.closed()

    async with fake_broker(behave) as (url, peers):
        async with reading(
            url, mqtt_username="u", mqtt_password="p", mqtt_receive_maximum="77",
            mqtt_session_expiry_s="99", max_payload_bytes="1000",
        ) as reader:  # fmt: skip
            await until(lambda: reader.problem is None)
        connect, subscribe = peers[0].received[:2]
        assert (connect.client_id, connect.username, connect.password) == ("worker-1", "u", b"p")
        assert (connect.clean_start, connect.session_expiry_interval) == (False, 99)
        assert (connect.receive_max, connect.max_packet_size) == (77, 4_000)
        assert connect.topic_alias_max == 0
        (wanted,) = subscribe.topic_filters
        assert (wanted.pattern, wanted.max_qos) == ("$share/ingest/iov/v1/+/+", 1)
        await until(lambda: isinstance(peers[0].received[-1], mqtt5.DisconnectPacket), "goodbye")


@pytest.mark.parametrize("name", ["mqtt5", "aiomqtt"])
async def test_a_taken_over_session_is_left_alone_for_long(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_FIRST_DELAY_S", 0.001)

    async def behave(peer: Caller) -> None:
        await peer.welcome()
        peer.send(mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER))
        await peer.closed()

    async with fake_broker(behave) as (url, peers), reading(url, mqtt_client=name) as reader:
        await until(lambda: "taken over" in str(reader.problem), "the takeover")
        for _ in range(100):
            await asyncio.sleep(0.005)  # five hundred times the delay after any other end
        assert len(peers) == 1


async def test_a_broker_that_closes_at_once_is_asked_ever_more_rarely() -> None:
    async def behave(peer: Caller) -> None:
        await peer.welcome()

    async with fake_broker(behave) as (url, _), reading(url) as reader:
        await until(lambda: reader._connections >= 3, "three connections")
        assert reader._backoff._next_s >= 0.2 * 2**2


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (mqtt5.ConnAckReasonCode.NOT_AUTHORIZED, "not authorized (0x87)"),
        (mqtt5.ConnAckReasonCode.SERVER_BUSY, "server busy (0x89)"),
    ],
)
async def test_a_refused_connection_is_reported_by_the_name_of_its_reason(
    code: mqtt5.ConnAckReasonCode, words: str
) -> None:
    async def behave(peer: Caller) -> None:
        await peer.welcome(connack=mqtt5.ConnAckPacket(reason_code=code))

    async with fake_broker(behave) as (url, _), reading(url) as reader:
        await until(lambda: words in str(reader.problem), words)


async def test_a_refused_subscription_is_reported_by_the_name_of_its_reason() -> None:
    async def behave(peer: Caller) -> None:
        await peer.welcome(suback=mqtt5.SubAckReasonCode.NOT_AUTHORIZED)
        await peer.closed()

    async with fake_broker(behave) as (url, _), reading(url) as reader:
        await until(lambda: "not authorized" in str(reader.problem), "the reason")


async def test_a_broker_without_shared_subscriptions_is_told_from_the_start() -> None:
    async def behave(peer: Caller) -> None:
        await peer.welcome(connack=mqtt5.ConnAckPacket(shared_subscription_available=False))

    async with fake_broker(behave) as (url, _), reading(url) as reader:
        await until(lambda: "IOV_MQTT_GROUP" in str(reader.problem), "advice")


@pytest.mark.parametrize(
    ("evil", "reason"),
    [
        (b"\xf5\x00", mqtt5.DisconnectReasonCode.MALFORMED_PACKET),
        (b"\x30\xff\xff\xff\x7f", mqtt5.DisconnectReasonCode.MALFORMED_PACKET),
        (
            mqtt5.PublishPacket("iov/v1/V1/nev", b"{}", topic_alias=1),
            mqtt5.DisconnectReasonCode.TOPIC_ALIAS_INVALID,
        ),
        (
            mqtt5.PublishPacket("a", b"", qos=mqtt5.QoS.EXACTLY_ONCE, packet_id=1),
            mqtt5.DisconnectReasonCode.QOS_NOT_SUPPORTED,
        ),
        (mqtt5.ConnAckPacket(), mqtt5.DisconnectReasonCode.PROTOCOL_ERROR),
    ],
)
async def test_a_broker_that_breaks_the_protocol_loses_the_connection_not_the_service(
    evil: bytes | mqtt5.PublishPacket, reason: mqtt5.DisconnectReasonCode
) -> None:
    said: list[mqtt5.DisconnectReasonCode] = []

    async def behave(peer: Caller) -> None:
        await peer.welcome()
        if not said:
            peer.send(evil)
            said.append((await peer.farewell()).reason_code)
        await peer.closed()

    async with fake_broker(behave) as (url, peers), reading(url) as reader:
        await until(lambda: len(peers) == 2 and reader.problem is None, "the second connection")
        assert said == [reason]


async def test_the_servers_keep_alive_is_obeyed_and_silence_ends_the_connection() -> None:
    async def behave(peer: Caller) -> None:
        await peer.welcome(connack=mqtt5.ConnAckPacket(server_keep_alive=1))
        await peer.closed()

    async with fake_broker(behave) as (url, peers), reading(url) as reader:
        await until(lambda: "nothing heard" in str(reader.problem), "the silence noticed")
        kinds = [type(packet) for packet in peers[0].received]
        assert kinds.count(mqtt5.PingReqPacket) >= 1
        assert peers[0].received[-1].reason_code == mqtt5.DisconnectReasonCode.KEEP_ALIVE_TIMEOUT


@pytest.mark.parametrize("name", ["mqtt5", "aiomqtt"])
async def test_while_reading_is_paused_pings_go_on_and_their_answers_are_not_timed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest.source import aiomqtt as slow
    from ingest.source import mqtt5 as fast

    for module in (client, slow, fast):
        monkeypatch.setattr(module, "KEEP_ALIVE_S", 1)
    monkeypatch.setattr(slow, "_PAUSE_CHECK_S", 0.1)

    async def behave(peer: Caller) -> None:
        await peer.welcome()
        peer.send(PUBLISH)
        await peer.closed()  # no PINGREQ is ever answered

    async with (
        fake_broker(behave) as (url, peers),
        reading(url, mqtt_client=name, mqtt_receive_maximum="1") as reader,
    ):
        await until(lambda: reader.inbox.full, "the pause")

        def pings() -> bool:
            kinds = [type(packet) for packet in peers[0].received]
            return kinds.count(mqtt5.PingReqPacket) >= 4

        await until(pings, "pings over several keep-alive intervals")
        assert reader.problem is None
        # Once it reads again, an unanswered ping ends the connection as it should.
        deliveries = await anext(reader.inbox)
        reader.inbox.settle(deliveries)
        await until(lambda: reader.problem is not None, "the end")
        assert any(type(p) is mqtt5.PubAckPacket for p in peers[0].received)


async def test_a_silent_broker_is_left_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest.source import mqtt5 as fast
    from ingest.source import version

    monkeypatch.setattr(fast, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(version, "_TIMEOUT_S", 0.1)

    async def behave(peer: Caller) -> None:
        await peer.closed()

    async with fake_broker(behave) as (url, peers), reading(url) as reader:
        await until(lambda: "does not answer" in str(reader.problem), "the reason")
        await until(lambda: len(peers) >= 3, "another try")


async def test_mqtt_5_refused_and_demanded_is_an_error_that_says_what_to_set() -> None:
    async def behave(peer: Caller) -> None:
        await peer.next(mqtt5.ConnectPacket)
        peer.send(bytes.fromhex("20020001"))

    async with fake_broker(behave) as (url, peers), reading(url, mqtt_client="mqtt5") as reader:
        await until(lambda: "3.1.1" in str(reader.problem), "the reason")
        await until(lambda: len(peers) >= 2, "another try")


NOT_UTF_8 = (
    bytes.fromhex("32 0a 0002 ffff 0064 00 313233"),  # the topic
    bytes.fromhex("32 12 0003 612f62 0065 07 26 0001 ff 0001 61 313233"),  # a user property
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the codec's
async def test_what_is_not_utf_8_below_json_is_a_dead_letter_and_nothing_is_sent_again(
    client: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    """EMQX before 6.3 passes such packets on; ending the connection had them come for ever."""
    acknowledged: list[int] = []

    async def behave(peer: Caller) -> None:
        await peer.welcome()
        for number, bad in enumerate(NOT_UTF_8):
            first = number * 10
            peer.send(*(good(first + n) for n in range(1, 11)), bad)
        while len(acknowledged) < 22:
            acknowledged.append((await peer.next(mqtt5.PubAckPacket)).packet_id)
        await peer.closed()

    def good(number: int) -> Any:
        payload = orjson.dumps(sample(number))
        return mqtt5.PublishPacket(
            "iov/v1/V1/nev", payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=number
        )

    async with (
        fake_broker(behave) as (url, peers),
        working(url, database.url, catalogue, mqtt_client=client) as worker,
    ):
        await worker.settles(22)
        await until(lambda: len(acknowledged) == 22, "every acknowledgement")
        assert len(peers) == 1
    assert await database.count() == 20
    letters = await database.all("SELECT reason, detail, topic, payload FROM iov.dead_letter")
    assert [tuple(letter) for letter in letters] == [
        ("bad_topic", "the topic is not UTF-8", "\\xff\\xff", b"123"),
        ("bad_encoding", "the properties of the message cannot be read", "a/b", b"123"),
    ]
    assert acknowledged == [*range(1, 11), 100, *range(11, 21), 101]
