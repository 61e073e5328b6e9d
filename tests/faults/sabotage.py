"""A worker with a fault of its own, to see that `verify` finds it.

`sabotage.py early|lose|alter|twice|never`; everything else about it is the service as it is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta

import uvloop
from msgspec.structs import replace

from ingest import log
from ingest.batch import Batch, Committed, More, Written
from ingest.config import load
from ingest.model import Delivery
from ingest.pipeline import Pipeline
from ingest.schema import load_catalogue
from ingest.schema.layout import keep_extra
from ingest.source import Inbox
from ingest.store import Writer
from ingest.worker.service import Service, signals

_EVERY = 50


async def early(self: Pipeline) -> None:
    """Acknowledge before the commit."""
    while (batch := await self._next()) is not None:
        self._inbox.settle(batch.deliveries)
        written = await self._store.write(batch, lambda: None)
        self._committed(Committed(batch, written, 0.0, 0.0))


def never(inbox: Inbox) -> None:
    """Leave one message in so many without its acknowledgement."""
    settle, count = inbox.settle, 0

    def some(deliveries: Sequence[Delivery]) -> None:
        nonlocal count
        for delivery in deliveries:
            count += 1
            if count % _EVERY == 0:
                delivery.packet_id = None
        settle(deliveries)

    inbox.settle = some  # type: ignore[method-assign]  # the sabotage


class Spoilt:
    """The store with something done to a sample now and then, as by a slip of ours."""

    def __init__(self, writer: Writer, how: str) -> None:
        self._writer, self._how, self._count = writer, how, 0

    async def write(self, batch: Batch, more: More) -> Written:
        for rows in batch.rows.values():
            self._count += len(rows)
            if self._count < _EVERY:
                continue
            self._count = 0
            match self._how:
                case "lose":
                    del rows[-1]
                case "alter":
                    keep_extra(rows[-1].record, b'{"altered": true}')
                case "twice":
                    last = rows[-1]
                    later = last.ts + timedelta(microseconds=1)
                    again = [later if value is last.ts else value for value in last.record]
                    rows.append(replace(last, ts=later, record=again))
        return await self._writer.write(batch, more)


async def main(how: str) -> None:
    """Run one worker until SIGTERM."""
    settings = load()
    log.configure(settings.log_format, settings.log_level)
    if how == "early":
        Pipeline._write = early  # type: ignore[method-assign]  # the sabotage
    worker = Service(settings, load_catalogue())
    if how == "never":
        never(worker.source.inbox)
    elif how != "early":
        worker.pipeline._store = Spoilt(worker.writer, how)
    with signals(worker.stop):
        await worker.run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
