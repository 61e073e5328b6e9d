"""Abilities of paho, the client inside aiomqtt, that aiomqtt does not offer.

No other module uses private attributes of these two libraries; tests cover what this one uses.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any

import aiomqtt
from paho.mqtt import MQTTException
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from ingest.source.packets import Unreadable, pubacks, unreadable

_READ_BYTES = 65_536
_PUBACK = 0x40
_PACKETS_PER_TURN = 200


class Paho:
    """The paho client of one aiomqtt client, set to manual acknowledgement."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._paho = client._client
        self._disconnected = client._disconnected
        self._paho.manual_ack_set(on=True)
        self._reading = False
        self._recv = self._paho._sock_recv
        self._ahead, self._at = b"", 0
        self.answered = False
        """CONNACK has come."""
        self.session_present = False
        """Session Present of the CONNACK."""
        self.disconnect_reason: ReasonCode | None = None
        """Reason in the broker's DISCONNECT, or paho's own reason for the connection's end."""
        on_connect, on_disconnect = self._paho.on_connect, self._paho.on_disconnect

        def connected(paho: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
            self.answered = True
            self.session_present = bool(flags.session_present)
            on_connect(paho, data, flags, reason, properties)  # type: ignore[call-arg,misc]  # set by aiomqtt

        def disconnected(paho: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
            self.disconnect_reason = reason
            on_disconnect(paho, data, flags, reason, properties)  # type: ignore[call-arg,misc]  # likewise

        self._paho.on_connect, self._paho.on_disconnect = connected, disconnected

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Send the PUBACKs of all these packets in one write; paho itself makes one write each."""
        self._paho._packet_queue(_PUBACK, pubacks(packet_ids), packet_ids[-1], 1)

    def hand_unreadable_to(self, take: Callable[[Unreadable], None], *, version_5: bool) -> None:
        """Have `take` called with a PUBLISH that paho cannot read; otherwise paho would raise."""
        handle = self._paho._handle_publish

        def handle_publish() -> MQTTErrorCode:
            try:
                return handle()
            except (ValueError, IndexError, MQTTException, struct.error):
                # paho's MalformedPacket is an MQTTException, UnicodeDecodeError a ValueError.
                packet = self._paho._in_packet
                first, body = packet["command"], bytes(packet["packet"])
                found = unreadable(first, body, version_5=version_5)
                if found is None:
                    raise
                take(found)
                return MQTTErrorCode.MQTT_ERR_SUCCESS

        self._paho._handle_publish = handle_publish  # type: ignore[method-assign]  # the only hook

    def stop_reading(self) -> None:
        """Leave the socket alone, so that the broker's window fills."""
        self._reading = False
        socket = self._paho.socket()
        if socket is not None:
            asyncio.get_running_loop().remove_reader(socket.fileno())

    def start_reading(self) -> None:
        """Take over reading from aiomqtt, which takes one packet per turn of the event loop."""
        self._reading = True
        socket = self._paho.socket()
        if socket is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(socket.fileno(), self._read)
            loop.call_soon(self._read)

    def read_ahead(self) -> None:
        """Ask the kernel for many bytes at a time; paho itself asks four times per packet."""
        self._paho._sock_recv = self._recv_ahead  # type: ignore[assignment,method-assign]  # likewise

    def _recv_ahead(self, size: int) -> bytes:
        if self._at >= len(self._ahead):
            self._ahead, self._at = self._recv(_READ_BYTES), 0
        start, self._at = self._at, self._at + size
        return self._ahead[start : self._at]

    def _read(self) -> None:
        """Read the packets that have come, at most `_PACKETS_PER_TURN` of them."""
        try:
            for _ in range(_PACKETS_PER_TURN):
                if not self._reading or self._paho.socket() is None:
                    return
                code = self._paho._packet_read()
                if code == MQTTErrorCode.MQTT_ERR_AGAIN:
                    return
                if code > 0:
                    self._paho._loop_rc_handle(code)
                    return
        except OSError as exc:
            if not self._disconnected.done():
                self._disconnected.set_exception(exc)
            return
        # Bytes already read ahead, or decoded by TLS, do not make the file descriptor readable.
        asyncio.get_running_loop().call_soon(self._read)

    def end_session(self) -> bool:
        """Send DISCONNECT with Session Expiry Interval 0; return whether it was sent.

        Source: MQTT 5, 3.14.2.2.2.
        """
        properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]  # paho's
        properties.SessionExpiryInterval = 0
        return self._paho.disconnect(properties=properties) == MQTTErrorCode.MQTT_ERR_SUCCESS

    def hang_up(self) -> None:
        """Send DISCONNECT, which also ends aiomqtt's message iterator."""
        self._paho.disconnect()

    def close(self) -> None:
        """Close the socket, because aiomqtt leaves it open after a CONNECT without an answer."""
        self._paho._sock_close()

    def forgive_ping(self) -> None:
        """Let paho forget its last PINGREQ: the answer cannot be read while reading is stopped."""
        self._paho._ping_t = 0.0
