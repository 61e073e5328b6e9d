"""MQTT 5 over TCP and TLS: the fast way to read."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

import mqtt5

from ingest.broker import Broker
from ingest.errors import Unavailable
from ingest.reach import why
from ingest.source.client import (
    ANSWER_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    FLUSH_TIMEOUT_S,
    KEEP_ALIVE_S,
    PACKET_PER_PAYLOAD,
    NoSession,
    Stage,
    Stay,
    Subscribed,
    UnsupportedVersion,
)
from ingest.source.connection import Connection, words
from ingest.source.inbox import Inbox
from ingest.source.version import refuses_mqtt5

_WHO = (
    mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
    mqtt5.ConnAckReasonCode.NOT_AUTHORIZED,
)
_SUBSCRIBE_ID, _UNSUBSCRIBE_ID = 1, 2
_UNSUBSCRIBED = (
    mqtt5.UnsubAckReasonCode.SUCCESS,
    mqtt5.UnsubAckReasonCode.NO_SUBSCRIPTION_EXISTED,
)
_Answer = TypeVar("_Answer", mqtt5.ConnAckPacket, mqtt5.SubAckPacket, mqtt5.UnsubAckPacket)


class Mqtt5Client:
    """A `Client` for MQTT 5, with one connection at a time."""

    name = "mqtt5"

    def __init__(
        self, broker: Broker, inbox: Inbox, stay: Stay, *, clean_start: bool = False
    ) -> None:
        self._broker = broker
        self._inbox = inbox
        self._stay = stay
        self._clean_start = clean_start
        self._connection: Connection | None = None
        self._unsubscribing = asyncio.Lock()
        self._packet_bytes = broker.max_payload_bytes * PACKET_PER_PAYLOAD

    async def session(self, subscribed: Subscribed) -> None:
        """Hold one connection from CONNECT to its end; always raises."""
        connection = await self._open()
        try:
            connack = await self._handshake(connection)
            leaving = self._stay.stage > Stage.STAYING
            if leaving and not connack.session_present:
                self._stay.reach(Stage.EMPTY)
                raise NoSession("the broker keeps no session")
            if not leaving:
                await self._subscribe(connection)
            self._connection = connection
            if self._stay.stage > Stage.STAYING:
                await self.unsubscribe()
            subscribed(connack.session_present)
            raise await connection.ended
        except TimeoutError as exc:
            if not connection.connack.done() and await refuses_mqtt5(self._broker):
                raise UnsupportedVersion("the broker speaks MQTT 3.1.1 only") from exc
            raise Unavailable("the broker does not answer") from exc
        finally:
            self._connection = None
            ends = self._stay.stage >= Stage.EMPTY
            if connection.close(Unavailable("closed by us"), end_session=ends) and ends:
                self._stay.reach(Stage.LEFT)
            await self._flush(connection)

    async def _open(self) -> Connection:
        broker = self._broker
        try:
            tls = broker.tls()
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._inbox, self._packet_bytes),
                    broker.host,
                    broker.port,
                    ssl=tls,
                )
        except OSError as exc:  # TimeoutError is a subclass
            raise Unavailable(f"cannot connect: {why(exc, 'IOV_MQTT_CA_FILE')}") from exc
        return connection

    async def _handshake(self, connection: Connection) -> mqtt5.ConnAckPacket:
        broker = self._broker
        password = broker.secret()
        connection.send(
            mqtt5.ConnectPacket(
                broker.client_id,
                username=broker.username,
                password=password.encode() if password is not None else None,
                clean_start=self._clean_start,
                keep_alive=KEEP_ALIVE_S,
                session_expiry_interval=broker.session_expiry_s,
                receive_max=broker.receive_maximum,
                max_packet_size=self._packet_bytes,
            )
        )
        try:
            connack = await _first_of(connection.connack, connection.ended)
        except UnsupportedVersion:
            raise
        except Unavailable as exc:
            tls = "" if broker.tls() else ", and wants it mqtts://?"
            raise Unavailable(f"{exc} before CONNACK: is it a broker of MQTT{tls or '?'}") from exc
        if connack.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
            refused = f"the broker refused us: {words(connack.reason_code)}"
            if connack.reason_code == mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION:
                raise UnsupportedVersion(refused)
            if connack.reason_code in _WHO:
                refused += ": mend IOV_MQTT_USERNAME and IOV_MQTT_PASSWORD"
            raise Unavailable(refused)
        if broker.group and not connack.shared_subscription_available:
            raise Unavailable("the broker has no shared subscriptions: set IOV_MQTT_GROUP empty")
        keep_alive_s = connack.server_keep_alive
        connection.start_keep_alive(KEEP_ALIVE_S if keep_alive_s is None else keep_alive_s)
        return connack

    async def _subscribe(self, connection: Connection) -> None:
        filters = [
            mqtt5.TopicFilter(
                self._broker.subscription,
                max_qos=mqtt5.QoS.AT_LEAST_ONCE,
                retain_handling=mqtt5.RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS,
            )
        ]
        connection.send(mqtt5.SubscribePacket(_SUBSCRIBE_ID, filters))
        suback = await _first_of(connection.suback, connection.ended)
        granted = suback.reason_codes[0]
        if granted != mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE:
            raise Unavailable(f"subscription to {self._broker.subscription}: {words(granted)}")

    async def unsubscribe(self) -> None:
        """Take nothing new from now on; what the broker has queued for us still comes."""
        async with self._unsubscribing:
            connection = self._connection
            if connection is None or connection.ended.done():
                raise Unavailable("not connected")
            unsuback = connection.unsubscribe(_UNSUBSCRIBE_ID, self._stay.filter)
            try:
                code = (await _first_of(unsuback, connection.ended)).reason_codes[0]
                if code in _UNSUBSCRIBED:
                    return
                failure = Unavailable(f"unsubscribing from {self._stay.filter}: {words(code)}")
            except TimeoutError:
                failure = Unavailable("the broker does not answer UNSUBSCRIBE")
            connection.close(failure)  # a new connection tries again
            raise failure

    async def _flush(self, connection: Connection) -> None:
        """Wait until all that was written has left; drop the rest after `FLUSH_TIMEOUT_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await connection.flushed.wait()
        if not connection.flushed.is_set():
            connection.abort()


async def _first_of(answer: asyncio.Future[_Answer], ended: asyncio.Future[Unavailable]) -> _Answer:
    """Return the answer; raise the reason if the connection ends first.

    Raises TimeoutError if neither happens within `ANSWER_TIMEOUT_S`.
    """
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        waited: list[asyncio.Future[Any]] = [answer, ended]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if answer.done():
        return answer.result()
    raise ended.result()
