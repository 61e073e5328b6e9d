from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from ingest.batch import Batch, Batcher, BatchLimits, Committed, More, Written
from ingest.check import Checker
from ingest.clock import Clock
from ingest.config import Settings
from ingest.decode import MessageLimits
from ingest.envelope import Ages
from ingest.metrics import Metrics
from ingest.model import Checked, Delivery
from ingest.pipeline import Pipeline
from ingest.source import Inbox
from tests.support import delivery, plenty

DEAR_S, ANSWERING_S = 0.025, 4


class Stored:
    """A store that keeps batches and says they are committed."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    async def write(self, batch: Batch, more: More) -> Written:  # noqa: ARG002  a Store
        self.batches.append(batch)
        return Written()


class Calm:
    """A guard that knows of nothing."""

    takes_care = False

    async def begin(self) -> None:
        pass


CALM: Any = Calm()


class Dear(Checker):
    """Takes its time over every message."""

    def __init__(self) -> None:
        super().__init__({}, MessageLimits.of(Settings()), Ages.of(Settings()))
        self.checked = 0

    def check(self, delivery: Delivery) -> Checked:
        began_s = time.monotonic()
        while time.monotonic() - began_s < DEAR_S:
            pass
        self.checked += 1
        return super().check(delivery)


def clock() -> Clock:
    """One that is right."""
    found = Clock()
    now = datetime.now(UTC)
    found.look(now, time.monotonic(), now)
    return found


def pipeline(inbox: Inbox, checker: Checker, store: Any, guard: Any = CALM) -> Pipeline:
    def committed(_: Committed) -> None:
        pass

    batcher = Batcher(BatchLimits.of(Settings()), plenty())
    return Pipeline(inbox, checker, batcher, store, Metrics({}), guard, clock(), committed)


async def test_others_get_a_turn_between_dear_messages_of_one_read() -> None:
    inbox, checker, store = Inbox(100), Dear(), Stored()
    inbox.put([delivery("x" * 3_000, packet_id=n) for n in range(8)], lambda: None)
    inbox.close()
    seen: list[int] = []
    running = asyncio.create_task(pipeline(inbox, checker, store).run())
    while not running.done():
        await asyncio.sleep(0)
        seen.append(checker.checked)
    await running
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= 2
    assert sum(len(batch.deliveries) for batch in store.batches) == 8


async def test_what_was_stamped_while_the_clock_was_wrong_waits_for_one_look_not_one_each() -> None:
    """The clock was looked at and is right again: nothing that was held waits any longer."""
    inbox, store = Inbox(100), Stored()
    for number in range(20):
        held = delivery("{}", packet_id=number, at=datetime.now(UTC) + timedelta(days=31))
        inbox.put([held], lambda: None)
    inbox.close()
    async with asyncio.timeout(ANSWERING_S):
        await pipeline(inbox, Checker.of({}, Settings()), store).run()
    held_until = [row.arrival.at for batch in store.batches for row in batch.deliveries]
    assert len(held_until) == 20
    assert all(abs(at - datetime.now(UTC)) < timedelta(minutes=1) for at in held_until)
