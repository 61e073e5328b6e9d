"""Cost of each stage of the service for one message, each stage measured alone in this process.

The figures are CPU time of the service's own code on the same messages, `_MESSAGES` at a time,
without the database's share. They add up to less than the service takes for a message: system calls
and the event loop come on top.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import cast

import orjson

from ingest.batch import SIZE_BYTES, Batcher, BatchLimits
from ingest.budget import Budget
from ingest.check import Checker
from ingest.config import load
from ingest.decode import Decoded, MessageLimits, decode
from ingest.lab.bench.figures import Figures, figure
from ingest.lab.bench.plan import BenchPlan
from ingest.lab.bench.publisher import Traffic
from ingest.lab.bench.stand import Stand
from ingest.model import Delivery
from ingest.schema import load_catalogue
from ingest.schema.layout import sort
from ingest.source import Inbox
from ingest.source.connection import Connection
from ingest.store import connect, copy

_MESSAGES = 4_000
_PIECE = 65_536
_WARM_UP = 2
_ROUNDS_PER_RUN = 3
_PACKET_BYTES = 1024 * 1024
_DEVICES = 1_000


class _Transport:
    """Transport that discards what is written."""

    def write(self, _: bytes) -> None:
        pass


async def stages(stand: Stand, plan: BenchPlan) -> Figures:
    """Measure µs of CPU per `nev` message; `check` includes decode and extract."""
    clock = _Clock()
    rounds = plan.runs * _ROUNDS_PER_RUN
    async with stand.database(devices=_DEVICES) as url:
        settings = load(environ={"IOV_DATABASE_URL": url})
        catalogue = load_catalogue(settings.schema_dir)
        stream, checker = catalogue["nev"], Checker.of(catalogue, settings)
        limits = MessageLimits.of(settings)
        connection = await connect(settings.database, "iov-bench-stages")
        traffic = Traffic(devices=_DEVICES)
        gc.freeze()
        for number in range(_WARM_UP + rounds):
            if number == _WARM_UP:
                clock = _Clock()
            plan.say(f"round {number + 1} of {_WARM_UP + rounds}")
            raw = traffic.next(_MESSAGES)
            inbox = Inbox(2 * _MESSAGES)
            with clock.stage("read"):
                _read(inbox, raw)
            deliveries = await _all(inbox)
            at = datetime.now(UTC)
            with clock.stage("orjson"):
                documents = [orjson.loads(delivery.payload) for delivery in deliveries]
            with clock.stage("decode"):
                decoded = [decode(delivery.payload, None, limits) for delivery in deliveries]
            assert all(isinstance(found, Decoded) for found in decoded)
            with clock.stage("extract"):
                rows = [stream.exact(at, 1, at, document) for document in documents]
            del documents, decoded, rows
            batcher = Batcher(BatchLimits(2 * _MESSAGES, SIZE_BYTES, 0.0), Budget(1, 1))
            with clock.stage("check"):
                checked = list(map(checker.check, deliveries))
            with clock.stage("batch"):
                for delivery, outcome in zip(deliveries, checked, strict=True):
                    batcher.add(delivery, outcome, 0.0)
            batch = batcher.take()
            assert batch is not None
            ids = {row.device: 1 + n % _DEVICES for n, row in enumerate(batch.rows["nev"])}
            with clock.stage("records"):
                columns, records = stream.layout.records(batch.rows["nev"], ids)
                sort(records)
            with clock.stage("copy"):
                async with connection.transaction():
                    await copy(connection, "iov", stream.table, columns, records)
            with clock.stage("acknowledge"):
                inbox.settle(deliveries)
        gc.unfreeze()
        await connection.close()
    return {name: figure(costs, 2) for name, costs in clock.costs.items()}


class _Clock:
    """CPU time by stage, µs per message."""

    def __init__(self) -> None:
        self.costs: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began_s = time.process_time()
        yield
        self.costs[name].append((time.process_time() - began_s) / _MESSAGES * 1e6)


def _read(inbox: Inbox, raw: bytes) -> None:
    """Make deliveries of bytes, which come in pieces as from a socket."""
    connection = Connection(inbox, _PACKET_BYTES)
    connection.connection_made(cast("asyncio.Transport", _Transport()))
    for start in range(0, len(raw), _PIECE):
        piece = raw[start : start + _PIECE]
        connection.get_buffer(-1)[: len(piece)] = piece
        connection.buffer_updated(len(piece))


async def _all(inbox: Inbox) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < inbox.in_flight:
        found += await anext(inbox)
    return found
