"""Coverage-guided fuzzing of the packet reader and the connection above it: `make fuzz`.

The first two bytes of an input say how the rest is cut into reads. However it is cut, the same
packets come out of it; nothing raises; and the connection takes whatever a broker may send.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris
import mqtt5

# The codec panics on text that is not UTF-8, and would print a stack for each.
os.environ["RUST_BACKTRACE"] = "0"
sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["ingest"]):
    from ingest.source.connection import Connection
    from ingest.source.inbox import Inbox
    from ingest.source.packets import PacketReader
from tests.fuzz.corpus import sow

MOST_BYTES = 4096
_LOOP = asyncio.new_event_loop()


class _Transport(asyncio.Transport):
    """Takes what is written and goes nowhere."""

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """The data in pieces of one size."""
    return (data[start : start + size] for start in range(0, len(data), size))


def packets(pieces: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """(what is read, written out again; whether the stream ended malformed)."""
    reader = PacketReader(MOST_BYTES)
    found: list[bytes] = []
    for piece in pieces:
        free = reader.free()
        assert len(free) >= len(piece)
        free[: len(piece)] = piece
        found += [repr(packet).encode() for packet in reader.filled(len(piece))]
        if reader.malformed is not None:
            return found, True
    return found, False


async def connection(pieces: Iterator[bytes]) -> None:
    """Give the pieces to a connection as its transport would, settling what it takes in."""
    inbox = Inbox(100)
    link = Connection(inbox, MOST_BYTES)
    link.connection_made(_Transport())
    for piece in pieces:
        if link.ended.done():
            break
        link.get_buffer(-1)[: len(piece)] = piece
        link.buffer_updated(len(piece))
    link.connection_lost(None)
    inbox.close()
    async for deliveries in inbox:
        inbox.settle(deliveries)
    assert inbox.in_flight == 0
    assert link.ended.done()


def one_input(data: bytes) -> None:
    """Read one input in one piece and in many; an assertion that fails is a finding."""
    size = int.from_bytes(data[:2], "big") % 300 + 1
    stream = data[2:]
    at_once = packets(iter([stream]))
    in_pieces = packets(cut(stream, size))
    assert at_once == in_pieces, f"cut into {size} bytes it reads otherwise"
    _LOOP.run_until_complete(connection(cut(stream, size)))


def seeds() -> Iterator[bytes]:
    """One packet of each sort that a broker sends, and streams of many."""
    publish = mqtt5.PublishPacket
    properties = [("content-encoding", "gzip")]
    made: list[Any] = [
        mqtt5.ConnAckPacket(session_present=True, receive_max=100, server_keep_alive=10),
        mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]),
        mqtt5.UnsubAckPacket(2, [mqtt5.UnsubAckReasonCode.SUCCESS]),
        mqtt5.PingRespPacket(),
        mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER),
        publish("iov/v1/V1/nev", b"{}"),
        publish("iov/v1/V1/nev", b"{}", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=7),
        publish("a/b", b"", qos=mqtt5.QoS.EXACTLY_ONCE, packet_id=8, topic_alias=1),
        publish("a", b"x" * 300, user_properties=properties, content_type="text/plain"),
    ]
    for packet in made:
        yield b"\0\0" + packet.write()
        yield b"\0\5" + made[0].write() + packet.write() * 3
    yield b"\0\x40" + b"".join(packet.write() for packet in made[:4]) + made[6].write() * 50


def main() -> None:
    """Fuzz until libFuzzer's options say stop; the first directory named receives `seeds`."""
    random.seed(0)
    asyncio.set_event_loop(_LOOP)
    sow(seeds())
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
