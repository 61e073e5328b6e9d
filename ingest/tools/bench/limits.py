"""What the parts around the service can do without it: no service is faster than these."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any, cast

import asyncpg
import mqtt5
import orjson

from ingest.config import load
from ingest.schema import Stream, load_catalogue
from ingest.source.packets import PacketReader
from ingest.store import connect, copy
from ingest.tools.bench.figures import Figures, figure
from ingest.tools.bench.plan import Plan
from ingest.tools.bench.publisher import Traffic, connected, nev
from ingest.tools.bench.stand import Stand

_COPY_ROWS = 4_000
_DEVICES = 1_000
_PACKET_BYTES = 1024 * 1024
_PIECE = 65_536
_ACKNOWLEDGE_EVERY = 500
_CHUNK, _AHEAD = 500, 20_000


async def limits(stand: Stand, plan: Plan) -> Figures:
    """COPY of ready rows into the same table; broker to a subscriber that throws away."""
    copied, delivered = [], []
    async with stand.database(devices=_DEVICES) as url:
        for number in range(plan.runs):
            plan.say(f"COPY, run {number + 1} of {plan.runs}")
            copied.append(await _copy(url, plan.seconds, number))
            plan.say(f"delivery, run {number + 1} of {plan.runs}")
            delivered.append(await _deliver(stand, plan.seconds))
    return {
        "copy_rows_per_s": figure(copied),
        "delivered_messages_per_s": figure(delivered),
    }


def ready_rows(stream: Stream, first: int, number: int) -> tuple[list[list[Any]], list[str]]:
    """Rows as the service would copy them, and their columns."""
    at = datetime.now(UTC)
    sample = orjson.loads(orjson.dumps(nev(at)))
    rows = []
    present = 0
    for seq in range(first, first + number):
        found = stream.row("", at, seq, at, sample)
        assert not isinstance(found, str)
        values, present, _ = found
        values[0] = seq % _DEVICES + 1
        rows.append(values)
    return rows, stream.layout.columns(present)


async def _copy(url: str, seconds: float, number: int) -> float:
    """Rows a second, in transactions of a batch's size, as the service's writer does it."""
    settings = load(environ={"IOV_DATABASE_URL": url})
    stream = load_catalogue(settings.schema_dir)["nev"]
    connection: asyncpg.Connection = await connect(settings, "iov-bench-copy")
    rows, columns = ready_rows(stream, number * 1_000_000_000, _COPY_ROWS)
    copied, started_s = 0, time.monotonic()
    while time.monotonic() - started_s < seconds:
        async with connection.transaction():
            await copy(connection, "iov", stream.table, columns, rows)
        copied += len(rows)
        for row in rows:
            row[2] += len(rows)
    elapsed_s = time.monotonic() - started_s
    await connection.close()
    return copied / elapsed_s


class _Subscriber(asyncio.Protocol):
    """Reads, acknowledges and forgets."""

    def __init__(self) -> None:
        self._reader = PacketReader(_PACKET_BYTES)
        self._transport: asyncio.Transport | None = None
        self.subscribed = asyncio.Event()
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        filter_ = mqtt5.TopicFilter("iov/v1/+/+", max_qos=mqtt5.QoS.AT_LEAST_ONCE)
        connect_ = mqtt5.ConnectPacket("iov-bench-subscriber", clean_start=True, receive_max=65_535)
        self._transport.write(connect_.write() + mqtt5.SubscribePacket(1, [filter_]).write())

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._reader.free()[: len(piece)] = piece
            answers = []
            for packet in self._reader.filled(len(piece)):
                if isinstance(packet, mqtt5.PublishPacket) and packet.packet_id is not None:
                    answers.append(mqtt5.PubAckPacket(packet.packet_id).write())
                elif isinstance(packet, mqtt5.SubAckPacket):
                    self.subscribed.set()
            self.received += len(answers)
            self._transport.write(b"".join(answers))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def _deliver(stand: Stand, seconds: float) -> float:
    """Messages a second from the broker's queue to one subscriber, QoS 1."""
    subscriber = _Subscriber()
    await asyncio.get_running_loop().create_connection(
        lambda: subscriber, "127.0.0.1", stand.broker.port
    )
    await subscriber.subscribed.wait()
    publisher = await connected(stand.broker.port)
    traffic = Traffic()
    started_s = time.monotonic()
    while time.monotonic() - started_s < seconds:
        if traffic.sent - subscriber.received < _AHEAD:
            await publisher.send(traffic.next(_CHUNK))
        await asyncio.sleep(0)
    elapsed_s = time.monotonic() - started_s
    publisher.close()
    subscriber.close()
    return subscriber.received / elapsed_s
