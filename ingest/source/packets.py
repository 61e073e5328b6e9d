"""Bytes from the broker become MQTT 5 packets. Pure: the caller owns the socket.

One buffer is filled by the transport and read in place; a packet that is not complete yet is
moved to the front and waits for its rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mqtt5

from ingest.errors import Unavailable
from ingest.model import Defect, Reason

_READ_BYTES = 64 * 1024
"""Bytes of one read at most: about a hundred messages.

A COPY under way waits while the messages of one read are checked. With reads four times as large,
throughput was 7 % lower (medians of four alternating runs).
"""
_PUBLISH, _QOS_BITS = 0x30, 0x06
_MOST_TOPIC_CHARACTERS = 200
_FIXED = {0x01: 1, 0x02: 4, 0x23: 2}
_SUBSCRIPTION, _CORRELATION = 0x0B, 0x09
_TEXTS = {0x03: 1, 0x08: 1, _CORRELATION: 1, 0x26: 2}
"""Properties of a PUBLISH (MQTT 5, 3.3.2.3).

`_FIXED`: size in bytes of a property with a fixed size. `_TEXTS`: number of values of a property
whose values each have their length in front.
"""
_PUBACK = 0x4002_0000
"""PUBACK without its packet identifier; its Remaining Length of 2 means "success"."""


def pubacks(packet_ids: Sequence[int]) -> bytes:
    """Return a PUBACK for each, of four bytes (MQTT 5, 3.4; MQTT 3.1.1, 3.4).

    The codec takes 0.16 µs for a PUBACK, this function 0.04 µs (measured).
    """
    return struct.pack(f">{len(packet_ids)}I", *[_PUBACK | number for number in packet_ids])


class Malformed(Unavailable):
    """The bytes are no valid MQTT 5 packet; the connection cannot be used any more."""


class Unreadable(NamedTuple):
    """The readable parts of a PUBLISH with a topic or properties that MQTT does not allow.

    Brokers pass such packets on (EMQX before 6.3 does by default). MQTT 5, 1.5.4 asks us to end
    the connection, but then the broker would send the same packet again on every new connection.
    """

    topic: str
    """Topic, cut, with escapes for bytes that are not UTF-8: to search for, not to trust."""
    packet_id: int | None
    payload: bytes
    fault: Defect


def unreadable(first: int, body: bytes, *, version_5: bool = True) -> Unreadable | None:
    """Return what can be read of a refused packet; None if it is no PUBLISH with valid lengths.

    `first` is the first byte of the fixed header, `body` what follows the header. Source: MQTT 5,
    3.3.2; MQTT 3.1.1, 3.3.2.
    """
    qos = (first & _QOS_BITS) >> 1
    if first & 0xF0 != _PUBLISH or qos == _QOS_BITS >> 1:
        return None
    after_topic = 2 + int.from_bytes(body[:2], "big")
    at = after_topic + (2 if qos else 0)
    if at > len(body):
        return None
    topic = body[2:after_topic]
    packet_id = int.from_bytes(body[after_topic:at], "big") if qos else None
    if version_5:
        length = _variable_number(body[at:])
        if length is None or at + sum(length) > len(body):
            return None
        at += sum(length)
    try:
        topic.decode()
        fault = Defect(Reason.BAD_ENCODING, "the properties of the message cannot be read")
    except UnicodeDecodeError:
        fault = Defect(Reason.BAD_TOPIC, "the topic is not UTF-8")
    told = topic[:_MOST_TOPIC_CHARACTERS].decode(errors="backslashreplace")
    return Unreadable(told, packet_id, body[at:], fault)


class PacketReader:
    """Reader of packets of at most `packet_bytes` from a stream of bytes."""

    def __init__(self, packet_bytes: int) -> None:
        self._buffer = memoryview(bytearray(packet_bytes + _READ_BYTES))
        self._packet_bytes = packet_bytes
        self._end = 0
        self._wary = False
        self.malformed: Malformed | None = None
        """Error that ended the reading; None while reading goes on."""

    def free(self) -> memoryview:
        """Return the space for the next bytes; it is never empty."""
        return self._buffer[self._end : self._end + _READ_BYTES]

    def release(self) -> None:
        """Free the buffer; nothing can be read any more.

        The buffer has more than a megabyte, and a connection that has ended is part of a reference
        cycle, which the garbage collector frees late.
        """
        self._buffer = memoryview(b"")

    def filled(self, count: int) -> list[mqtt5.Packet | Unreadable]:
        """Return the packets that are complete now that `count` more bytes have come.

        - A complete PUBLISH that the codec refuses is returned as `Unreadable`; reading goes on.
        - At any other malformed packet reading ends: the packets before it are returned, and
          `malformed` says what is wrong.
        """
        end = self._end + count
        buffer, read, start = self._buffer[:end], mqtt5.read, 0
        packets: list[mqtt5.Packet | Unreadable] = []
        while start < end:
            if self._wary and (texts := _unreadable_texts(buffer[start:])) is not None:
                packets.append(texts[0])
                start += texts[1]
                continue
            try:
                packet, size = read(buffer[start:])
                packets.append(packet)
                start += size
            except IndexError:
                self._expect_rest(buffer[start:])
                break
            except BaseException as exc:
                # On text that is not UTF-8 the codec panics, with a BaseException of its own.
                if not isinstance(exc, ValueError) and type(exc).__name__ != "PanicException":
                    raise
                if _waits_for_rest(buffer[start:]):
                    # The codec may refuse a PUBLISH before all of it has come. Skip it only when it
                    # is complete; otherwise the result would depend on how the reads cut it.
                    self._expect_rest(buffer[start:])
                    break
                skipped = _skipped(buffer[start:])
                if skipped is None:
                    what = exc if isinstance(exc, ValueError) else "text that is not UTF-8"
                    self.malformed = Malformed(f"malformed packet: {what}")
                    break
                packets.append(skipped[0])
                start += skipped[1]
                # From now on look for bad text before the codec does: each of its panics takes a
                # quarter of a millisecond and half a kilobyte of log.
                self._wary = True
        rest = end - start
        if start and rest:
            self._buffer[:rest] = bytes(buffer[start:])
        self._end = rest
        return packets

    def _expect_rest(self, begun: memoryview) -> None:
        """Set `malformed` if more bytes cannot complete the packet that has begun."""
        size = packet_size(begun)
        if size is not None and size <= len(begun):
            self.malformed = Malformed("malformed packet: shorter than its contents")
        if size is not None and size > self._packet_bytes:
            self.malformed = Malformed(f"packet of {size} bytes, above the Maximum Packet Size")


def _waits_for_rest(begun: memoryview) -> bool:
    """Return whether the packet is a PUBLISH that is not complete yet."""
    size = packet_size(begun)
    return begun[0] & 0xF0 == _PUBLISH and size is not None and size > len(begun)


def _unreadable_texts(begun: memoryview) -> tuple[Unreadable, int] | None:
    """Do the same as `_skipped`, but only for a PUBLISH with a text that is not UTF-8."""
    size = packet_size(begun)
    if begun[0] & 0xF0 != _PUBLISH or size is None or size > len(begun):
        return None
    body = bytes(begun[size - _remaining(begun) : size])
    try:
        for text in _texts(body, begun[0] & _QOS_BITS != 0):
            text.decode()
    except UnicodeDecodeError:
        return _skipped(begun)
    except (IndexError, TypeError):
        pass  # the codec says what is wrong with it
    return None


def _texts(body: bytes, has_id: bool) -> Iterator[bytes]:  # noqa: FBT001  one call, above
    """Yield the topic and the properties that are text (MQTT 5, 3.3.2).

    Raises IndexError or TypeError if they cannot be found.
    """
    at = 2 + _size(body, 0)
    yield body[2:at]
    at += 2 if has_id else 0
    taken, length = _variable_number(body[at:])  # type: ignore[misc]  # or it raises TypeError
    at += taken
    end = at + length
    while at < end:
        kind, at = body[at], at + 1
        if kind in _FIXED:
            at += _FIXED[kind]
        elif kind == _SUBSCRIPTION:
            at += _variable_number(body[at:])[0]  # type: ignore[index]  # likewise
        elif kind in _TEXTS:
            for _ in range(_TEXTS[kind]):
                size = _size(body, at)
                if kind != _CORRELATION:
                    yield body[at + 2 : at + 2 + size]
                at += 2 + size
        else:
            raise IndexError


def _size(body: bytes, at: int) -> int:
    return body[at] << 8 | body[at + 1]


def _skipped(begun: memoryview) -> tuple[Unreadable, int] | None:
    """Return a refused PUBLISH and its size; None if it is not complete or not readable."""
    size = packet_size(begun)
    if size is None or size > len(begun):
        return None
    header = size - _remaining(begun)
    found = unreadable(begun[0], bytes(begun[header:size]))
    return None if found is None else (found, size)


def packet_size(begun: memoryview) -> int | None:
    """Return the packet's size (MQTT 5, 2.1.4); None while its fixed header is not complete."""
    length = _variable_number(begun[1:5])
    return None if length is None else 1 + sum(length)


def _remaining(begun: memoryview) -> int:
    length = _variable_number(begun[1:5])
    assert length is not None
    return length[1]


def _variable_number(raw: bytes | memoryview) -> tuple[int, int] | None:
    """Return (size in bytes, value) of a Variable Byte Integer (MQTT 5, 1.5.5); None if cut off."""
    value = 0
    for index, byte in enumerate(raw[:4]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004  the continuation bit
            return index + 1, value
    return None
