"""Listens to a worker and its broker: records which message was acknowledged, and when.

A PUBLISH to the worker has the message's number in a user property, which links its packet
identifier to the message. A PUBACK with that identifier on the same connection is the worker's
promise that the message is stored. Its time is the Unix time at which it was read: if the commit
is later, the promise was too early.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import mqtt5

from ingest.lab.proxy import Listener
from ingest.source.packets import PacketReader, Unreadable

PROPERTY = "number"
"""User property that carries a message's number."""
_PACKET_BYTES = 4 * 1024 * 1024

Settle = Callable[[int, float], None]
Complain = Callable[[str], None]


class Tap:
    """One MQTT connection of a worker, as the proxy sees it."""

    def __init__(self, settle: Settle, subscribed: Callable[[], None], complain: Complain) -> None:
        """`complain` is called with the reason if packets can no longer be read."""
        self._settle, self._subscribed, self._complain = settle, subscribed, complain
        self._from_worker = PacketReader(_PACKET_BYTES)
        self._from_broker = PacketReader(_PACKET_BYTES)
        self._numbers: dict[int, int] = {}

    def listener(self) -> Listener:
        """Return the listener for the proxy."""
        return Listener(self._request, self._answer)

    def _answer(self, data: bytes) -> None:
        for packet in self._read(self._from_broker, data):
            match packet:
                case mqtt5.PublishPacket(packet_id=int(packet_id)) if packet.user_properties:
                    if number := dict(packet.user_properties).get(PROPERTY):
                        self._numbers[packet_id] = int(number)
                case mqtt5.SubAckPacket():
                    self._subscribed()

    def _request(self, data: bytes) -> None:
        at_s = time.time()
        for packet in self._read(self._from_worker, data):
            if isinstance(packet, mqtt5.PubAckPacket) and packet.packet_id in self._numbers:
                self._settle(self._numbers.pop(packet.packet_id), at_s)

    def _read(self, reader: PacketReader, data: bytes) -> list[mqtt5.Packet | Unreadable]:
        if bool(reader.malformed):
            return []
        free = reader.free()
        free[: len(data)] = data
        packets = reader.filled(len(data))
        if bool(reader.malformed):
            self._complain(f"a tap went deaf: {reader.malformed}")
        return packets
