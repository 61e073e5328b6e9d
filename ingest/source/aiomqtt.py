"""MQTT through aiomqtt: for MQTT 3.1.1 brokers, for WebSockets, or if the settings ask for it.

It keeps the same promises as the fast client (`mqtt5`), by using paho's manual acknowledgement.
aiomqtt itself would acknowledge a message on receipt.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from ingest.broker import Broker
from ingest.cancelled import unless_cancelled
from ingest.errors import Unavailable
from ingest.model import Arrival, Delivery
from ingest.source.client import (
    ANSWER_TIMEOUT_S,
    KEEP_ALIVE_S,
    MOST_PROPERTY_CHARACTERS,
    MOST_TOPIC_CHARACTERS,
    PACKET_PER_PAYLOAD,
    NoSession,
    Stage,
    Stay,
    Subscribed,
    TakenOver,
    content_encoding,
)
from ingest.source.inbox import Inbox
from ingest.source.packets import Unreadable
from ingest.source.paho import Paho
from ingest.source.version import refuses_mqtt5

_UNSUPPORTED_VERSION = {1, 0x84}
"""CONNACK codes for an unsupported version (MQTT 3.1.1, 3.2.2.3; MQTT 5, 3.2.2.2)."""
_SESSION_TAKEN_OVER = 0x8E
_PAUSE_CHECK_S = 1.0


class _Connection:
    """One connection, on which its deliveries are acknowledged."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._fresh: list[aiomqtt.Message | Unreadable] = []
        self._loop = asyncio.get_running_loop()
        self._paho: Paho | None = None
        self._paused = False
        self.open = True

    def attach(self, paho: Paho) -> None:
        self._paho = paho

    def take(self, message: aiomqtt.Message | Unreadable) -> None:
        """Collect a message; all of one turn of the event loop are handed over together."""
        if not self._fresh:
            self._loop.call_soon(self._hand_over)
        self._fresh.append(message)

    def _hand_over(self) -> None:
        arrival = Arrival(datetime.now(UTC), time.monotonic())
        deliveries = [
            Delivery(m.topic, m.payload, None, None, m.packet_id, arrival, self, m.fault)
            if isinstance(m, Unreadable)
            else Delivery(
                m.topic.value[:MOST_TOPIC_CHARACTERS],
                _payload(m),
                _encoding(m),
                _short(getattr(m.properties, "ContentType", None)),
                m.mid if m.qos else None,
                arrival,
                self,
            )
            for m in self._fresh
        ]
        self._fresh = []
        if not self.open:
            return
        self._inbox.put(deliveries, self._resume)
        if self._inbox.full and not self._paused and self._paho:
            self._paused = True
            self._paho.stop_reading()
            self._keep_alive()

    def _resume(self) -> None:
        if self.open and self._paused and self._paho:
            self._paused = False
            self._paho.start_reading()

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Send PUBACK through paho; do nothing once this connection has ended."""
        if self.open and self._paho and packet_ids:
            self._paho.acknowledge(packet_ids)

    def _keep_alive(self) -> None:
        """Keep paho from closing a paused connection: it cannot read the answer to its PINGREQ."""
        if self.open and self._paused and self._paho:
            self._paho.forgive_ping()
            self._loop.call_later(_PAUSE_CHECK_S, self._keep_alive)


def _payload(message: aiomqtt.Message) -> bytes:
    return message.payload if isinstance(message.payload, bytes) else b""


def _encoding(message: aiomqtt.Message) -> str | None:
    pairs = getattr(message.properties, "UserProperty", None) if message.properties else None
    return content_encoding(pairs) if pairs else None


def _short(text: str | None) -> str | None:
    """Return a property, cut: up to 64 KiB of it would be memory that no limit counts."""
    return text and text[:MOST_PROPERTY_CHARACTERS]


class AiomqttClient:
    """A `Client` through aiomqtt, with one connection at a time."""

    name = "aiomqtt"

    def __init__(self, broker: Broker, inbox: Inbox, stay: Stay, *, version_5: bool = True) -> None:
        self._broker = broker
        self._inbox = inbox
        self._stay = stay
        self._connected: aiomqtt.Client | None = None
        self._paho: Paho | None = None
        self._version_5 = version_5

    async def session(self, subscribed: Subscribed) -> None:
        """Hold one connection from CONNECT to its end; always raises."""
        connection = _Connection(self._inbox)
        client = self._client(_queue_into(connection))
        paho = Paho(client)
        connection.attach(paho)
        paho.hand_unreadable_to(connection.take, version_5=self._version_5)
        try:
            # Phase 1: aiomqtt connects when the block is entered and disconnects when it is left.
            async with client:
                try:
                    # Phase 2: subscribe or, while leaving, unsubscribe; from here on paho reads.
                    await self._subscriptions(client, paho)
                    self._connected, self._paho = client, paho
                    if self._stay.stage > Stage.STAYING:
                        await self.unsubscribe()
                    unless_cancelled()
                    subscribed(paho.session_present)
                    # Phase 3: wait for the end; messages go to the inbox without this iterator.
                    async for _ in client.messages:
                        raise AssertionError("the queue gives nothing to its consumer")
                finally:
                    # Phase 4: before aiomqtt's own DISCONNECT, which would keep the session.
                    ends = self._stay.stage >= Stage.EMPTY
                    if ends and self._version_5 and paho.end_session():
                        self._stay.reach(Stage.LEFT)
        except aiomqtt.MqttError as exc:
            # A cancelled task ends as cancelled, even if the goodbye to the broker failed.
            unless_cancelled(exc)
            raise await self._reason(exc, paho) from exc
        finally:
            self._connected = self._paho = None
            connection.open = False
            paho.close()
            if self._stay.stage >= Stage.EMPTY and not self._version_5:
                await self._end_session_of_3()

    async def _reason(self, exc: aiomqtt.MqttError, paho: Paho) -> Unavailable:
        """Return the error for the source; if MQTT 5 was refused, the next attempt is 3.1.1."""
        code = getattr(getattr(exc, "rc", None), "value", None)
        if isinstance(exc, MqttConnectError):
            if code in _UNSUPPORTED_VERSION:
                self._version_5 = False
            return Unavailable(f"the broker refused us: {exc}")
        if not paho.answered:
            if self._version_5 and not self._broker.is_web and await refuses_mqtt5(self._broker):
                self._version_5 = False
                return Unavailable("the broker speaks MQTT 3.1.1 only")
            return Unavailable(f"cannot connect: {exc}")
        reason = paho.disconnect_reason
        if reason is not None and reason.value == _SESSION_TAKEN_OVER:
            return TakenOver("the broker disconnected us: session taken over (0x8E)")
        return Unavailable(f"connection lost: {reason or exc}")

    async def _subscriptions(self, client: aiomqtt.Client, paho: Paho) -> None:
        """Subscribe, except while leaving; then take over reading from aiomqtt."""
        if self._stay.stage is Stage.STAYING:
            await self._subscribe(client)
        elif not paho.session_present:
            self._stay.reach(Stage.EMPTY)
            raise NoSession("the broker keeps no session")
        if not self._broker.is_web:
            paho.read_ahead()
        paho.start_reading()

    async def _subscribe(self, client: aiomqtt.Client) -> None:
        filter_ = self._broker.subscription
        granted = await client.subscribe(filter_, qos=1)
        code = granted[0]
        value = code if isinstance(code, int) else code.value
        if value != 1:
            raise Unavailable(f"subscription to {filter_}: {code} instead of QoS 1")

    async def unsubscribe(self) -> None:
        """Take nothing new from now on; what the broker has queued for us still comes."""
        if self._connected is None:
            raise Unavailable("not connected")
        try:
            await self._connected.unsubscribe(self._stay.filter)
        except aiomqtt.MqttError as exc:
            if self._paho is not None:
                self._paho.hang_up()  # a new connection tries again
            raise Unavailable(f"unsubscribing from {self._stay.filter}: {exc}") from exc
        unless_cancelled()

    async def _end_session_of_3(self) -> None:
        """End the session as in MQTT 3.1.1: connect once with Clean Session (3.1.2.4)."""
        with contextlib.suppress(aiomqtt.MqttError):
            async with self._client(asyncio.Queue, clean=True):
                self._stay.reach(Stage.LEFT)

    def _client(
        self, queue_type: type[asyncio.Queue[aiomqtt.Message]], *, clean: bool = False
    ) -> aiomqtt.Client:
        broker = self._broker
        transport: Literal["tcp", "websockets"] = "websockets" if broker.is_web else "tcp"
        return aiomqtt.Client(
            broker.host,
            broker.port,
            username=broker.username,
            password=broker.secret(),
            identifier=broker.client_id,
            queue_type=queue_type,
            protocol=(
                aiomqtt.ProtocolVersion.V5 if self._version_5 else aiomqtt.ProtocolVersion.V311
            ),
            clean_session=None if self._version_5 else clean,
            clean_start=False if self._version_5 else MQTT_CLEAN_START_FIRST_ONLY,
            properties=self._properties() if self._version_5 else None,
            transport=transport,
            websocket_path=broker.path if broker.is_web else None,
            timeout=ANSWER_TIMEOUT_S,
            keepalive=KEEP_ALIVE_S,
            tls_context=broker.tls(),
        )

    def _properties(self) -> Properties:
        broker = self._broker
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
        properties.SessionExpiryInterval = broker.session_expiry_s
        properties.ReceiveMaximum = broker.receive_maximum
        properties.MaximumPacketSize = broker.max_payload_bytes * PACKET_PER_PAYLOAD
        return properties


def _queue_into(connection: _Connection) -> type[asyncio.Queue[aiomqtt.Message]]:
    """Return a queue type that passes every message to `connection` and itself stays empty.

    Reading it with aiomqtt's message iterator would cost a task per message; with this type the
    iterator only waits for the end of the connection.
    """

    class Queue(asyncio.Queue[aiomqtt.Message]):
        def put_nowait(self, item: aiomqtt.Message) -> None:
            connection.take(item)

    return Queue
