"""One MQTT 5 connection as an `asyncio.BufferedProtocol`, on the `mqtt5` codec.

Everything one read of the socket brought is handed over as one list. Acknowledgements of a batch
leave in one write. The keep-alive goes on while reading is paused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

import mqtt5

from ingest.errors import Unavailable
from ingest.model import Arrival, Delivery
from ingest.source.client import (
    KEEP_ALIVE_S,
    MOST_PROPERTY_CHARACTERS,
    MOST_TOPIC_CHARACTERS,
    TakenOver,
    UnsupportedVersion,
    content_encoding,
)
from ingest.source.inbox import Inbox
from ingest.source.packets import PacketReader, Unreadable, pubacks
from ingest.source.version import CONNACK_OF_MQTT_3

_Disconnect = mqtt5.DisconnectReasonCode


class Connection(asyncio.BufferedProtocol):
    """One network connection; `ended` holds the reason for its end."""

    def __init__(self, inbox: Inbox, packet_bytes: int) -> None:
        self._inbox = inbox
        self._reader = PacketReader(packet_bytes)
        self._first = b""
        self._transport: asyncio.Transport | None = None
        self._keep_alive_s = float(KEEP_ALIVE_S)
        self._ping: asyncio.TimerHandle | None = None
        self._heard_s = 0.0
        self._paused = False
        self._closing = False
        loop = asyncio.get_running_loop()
        self.connack: asyncio.Future[mqtt5.ConnAckPacket] = loop.create_future()
        self.suback: asyncio.Future[mqtt5.SubAckPacket] = loop.create_future()
        self._unsuback: asyncio.Future[mqtt5.UnsubAckPacket] = loop.create_future()
        self.ended: asyncio.Future[Unavailable] = loop.create_future()
        """Done once the connection is over, with the reason as its result."""
        self.flushed = asyncio.Event()
        """Set once the transport is closed and all that was written has left."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the new connection."""
        # uvloop's transports have asyncio's methods but do not inherit from its classes.
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  fixed by asyncio
        """Return the buffer that asyncio reads the next bytes into."""
        return self._reader.free()

    def buffer_updated(self, nbytes: int) -> None:
        """Process the `nbytes` bytes that were read into the buffer."""
        if self._closing:
            return
        if not self.connack.done():
            self._first += bytes(self._reader.free()[: min(nbytes, 4)])
        self._heard_s = time.monotonic()
        self._receive(self._reader.filled(nbytes))
        if self._reader.malformed is not None:
            if self._first.startswith(CONNACK_OF_MQTT_3):
                self._end(UnsupportedVersion("the broker speaks MQTT 3.1.1 only"))
            else:
                self.close(self._reader.malformed, _Disconnect.MALFORMED_PACKET)

    def _receive(self, packets: Sequence[mqtt5.Packet | Unreadable]) -> None:  # noqa: C901  a call for each packet would cost 0.1 µs
        arrival = Arrival(datetime.now(UTC), self._heard_s)
        deliveries: list[Delivery] = []
        for packet in packets:
            if type(packet) is mqtt5.PublishPacket:
                if packet.topic_alias is not None:
                    self.close(Unavailable("topic alias sent"), _Disconnect.TOPIC_ALIAS_INVALID)
                    break
                if packet.qos == mqtt5.QoS.EXACTLY_ONCE:
                    self.close(Unavailable("QoS 2 sent"), _Disconnect.QOS_NOT_SUPPORTED)
                    break
                encoding = None
                if packet.user_properties:
                    encoding = content_encoding(packet.user_properties)
                content_type = packet.content_type
                if content_type is not None:
                    content_type = content_type[:MOST_PROPERTY_CHARACTERS]
                topic = packet.topic
                if len(topic) > MOST_TOPIC_CHARACTERS:
                    topic = topic[:MOST_TOPIC_CHARACTERS]
                deliveries.append(
                    Delivery(
                        topic,
                        packet.payload,
                        encoding,
                        content_type,
                        packet.packet_id,
                        arrival,
                        self,
                    )
                )
            elif type(packet) is Unreadable:
                deliveries.append(
                    Delivery(
                        packet.topic, packet.payload, None, None, packet.packet_id, arrival, self,
                        packet.fault,
                    )
                )  # fmt: skip
            else:
                assert not isinstance(packet, Unreadable)
                self._control(packet)
        if deliveries:
            # This includes messages that came just before the connection ended: stored now, they
            # are duplicates when the broker sends them again.
            self._inbox.put(deliveries, self._resume)
            if self._inbox.full and not self._closing:
                self._pause()

    def _control(self, packet: mqtt5.Packet) -> None:
        match packet:
            case mqtt5.ConnAckPacket() if not self.connack.done():
                self.connack.set_result(packet)
            case mqtt5.SubAckPacket() if not self.suback.done():
                self.suback.set_result(packet)
            case mqtt5.UnsubAckPacket() if not self._unsuback.done():
                self._unsuback.set_result(packet)
            case mqtt5.PingRespPacket():
                pass  # any byte proves that the broker is there
            case mqtt5.DisconnectPacket():
                why = f"the broker disconnected us: {words(packet.reason_code)}"
                taken_over = packet.reason_code == _Disconnect.SESSION_TAKEN_OVER
                self._end((TakenOver if taken_over else Unavailable)(why))
            case _:
                self.close(
                    Unavailable(f"unexpected {type(packet).__name__}"), _Disconnect.PROTOCOL_ERROR
                )

    def eof_received(self) -> None:
        """Let asyncio close the transport: the broker will send no more."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection has ended."""
        self._end(Unavailable(f"connection lost: {exc}" if exc else "connection closed by broker"))
        self._reader.release()
        self.flushed.set()

    def send(self, packet: mqtt5.ConnectPacket | mqtt5.SubscribePacket) -> None:
        """Write one packet of the handshake."""
        assert self._transport is not None
        self._transport.write(packet.write())

    def unsubscribe(self, packet_id: int, filter_: str) -> asyncio.Future[mqtt5.UnsubAckPacket]:
        """Send UNSUBSCRIBE; return its answer, which comes after all earlier messages."""
        assert self._transport is not None
        self._unsuback = asyncio.get_running_loop().create_future()
        self._transport.write(mqtt5.UnsubscribePacket(packet_id, [filter_]).write())
        return self._unsuback

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Write PUBACK for all of these at once; do nothing once the connection has ended."""
        if self._transport is None or self._closing or not packet_ids:
            return
        self._transport.write(pubacks(packet_ids))

    def start_keep_alive(self, seconds: float) -> None:
        """Send PINGREQ twice per interval, for as long as the connection lives (MQTT 5, 3.1.2.10).

        0 seconds turns the keep-alive off; a broker may ask for that.
        """
        self._keep_alive_s = seconds
        if seconds and not self._closing:
            self._ping = asyncio.get_running_loop().call_later(seconds / 2, self._on_ping_time)

    def _on_ping_time(self) -> None:
        assert self._transport is not None
        silent_s = time.monotonic() - self._heard_s
        # No timeout while reading is paused, because the answer cannot be read then.
        if not self._paused and silent_s > self._keep_alive_s:
            self.close(
                Unavailable(f"nothing heard for {silent_s:.0f} s"), _Disconnect.KEEP_ALIVE_TIMEOUT
            )
            return
        self._transport.write(mqtt5.PingReqPacket().write())
        self.start_keep_alive(self._keep_alive_s)

    def _pause(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._transport is not None and self._paused and not self._closing:
            self._paused = False
            self._heard_s = time.monotonic()
            self._transport.resume_reading()

    def close(
        self,
        why: Unavailable,
        reason: mqtt5.DisconnectReasonCode = _Disconnect.NORMAL_DISCONNECTION,
        *,
        end_session: bool = False,
    ) -> bool:
        """Send DISCONNECT after all earlier writes, and end; return whether it was sent.

        `end_session` has the broker forget the session at once (MQTT 5, 3.14.2.2.2).
        """
        told = False
        if self._transport is not None and not self._closing and self.connack.done():
            expiry_s = 0 if end_session else None
            packet = mqtt5.DisconnectPacket(reason_code=reason, session_expiry_interval=expiry_s)
            self._transport.write(packet.write())
            told = True
        self._end(why)
        return told

    def abort(self) -> None:
        """Drop the socket with whatever is still to be written."""
        if self._transport is not None:
            self._transport.abort()

    def _end(self, why: Unavailable) -> None:
        self._closing = True
        if self._ping is not None:
            self._ping.cancel()
        if not self.ended.done():
            self.ended.set_result(why)
        if self._transport is not None:
            self._transport.close()


def words(
    reason: mqtt5.ConnAckReasonCode
    | mqtt5.SubAckReasonCode
    | mqtt5.UnsubAckReasonCode
    | _Disconnect,
) -> str:
    """Return the name of a reason code in the standard, with its number."""
    return f"{reason.name.lower().replace('_', ' ')} (0x{reason.value:02X})"
