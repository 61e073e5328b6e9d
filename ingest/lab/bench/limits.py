"""Limits of the parts around the service, measured without it: no service can be faster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

import asyncpg
import mqtt5
import orjson

from ingest.check import Checker
from ingest.config import load
from ingest.lab.bench.figures import Figures, figure
from ingest.lab.bench.plan import BenchPlan
from ingest.lab.bench.publisher import Traffic, connected, nev
from ingest.lab.bench.stand import Stand
from ingest.model import Arrival, Delivery, Row
from ingest.schema import Stream, load_catalogue
from ingest.schema.layout import Record
from ingest.source.packets import PacketReader
from ingest.store import connect, copy

_COPY_ROWS = 4_000
_DEVICES = 1_000
_PACKET_BYTES = 1024 * 1024
_PIECE = 65_536
_CHUNK, _AHEAD = 500, 20_000


async def limits(stand: Stand, plan: BenchPlan) -> Figures:
    """Measure COPY of ready rows into `iov.nev`, and the broker's delivery to a bare subscriber."""
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


class _Nobody:
    """A connection that ignores acknowledgements."""

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        pass


def ready_records(checker: Checker, stream: Stream, first: int) -> tuple[list[str], list[Record]]:
    """Return columns and records as the service would copy them, of 1,000 devices in turn."""
    arrival = Arrival(datetime.now(UTC), time.monotonic())
    rows = []
    for seq in range(first, first + _COPY_ROWS):
        payload = orjson.dumps(nev(arrival.at) | {"seq": seq})
        topic = f"iov/v1/{seq % _DEVICES}/{stream.name}"
        checked = checker.check(Delivery(topic, payload, None, None, None, arrival, _Nobody()))
        rows += [outcome for outcome in checked.outcomes if isinstance(outcome, Row)]
    assert len(rows) == _COPY_ROWS
    return stream.layout.records(rows, {str(n): n + 1 for n in range(_DEVICES)})


async def _copy(url: str, seconds: float, number: int) -> float:
    """Return rows per second by the writer's own COPY, `_COPY_ROWS` in a transaction."""
    settings = load(environ={"IOV_DATABASE_URL": url})
    catalogue = load_catalogue(settings.schema_dir)
    stream, checker = catalogue["nev"], Checker.of(catalogue, settings)
    connection: asyncpg.Connection = await connect(settings.database, "iov-bench-copy")
    copied, took_s = 0, 0.0
    while took_s < seconds:
        columns, records = ready_records(checker, stream, number * 100_000_000 + copied)
        began_s = time.monotonic()
        async with connection.transaction():
            await copy(connection, "iov", stream.table, columns, records)
        took_s += time.monotonic() - began_s
        copied += len(records)
    await connection.close()
    return copied / took_s


class _Subscriber(asyncio.Protocol):
    """Subscriber that acknowledges every message and does nothing else with it."""

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
    """Return messages per second from the broker's queue to one subscriber, QoS 1."""
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
