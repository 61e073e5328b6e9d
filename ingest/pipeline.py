"""The way of the data: bytes → delivery → samples → rows → batch → commit → acknowledge.

One reader and one writer: while a batch is being committed the next one fills. Whatever is in a
batch is settled together, after its commit, in the order it arrived. Nothing here keeps more than
the batch that fills and the batch that is written; behind them the source's window closes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

import structlog

from ingest.batch import Batch, Batcher, Committed, More, Written
from ingest.check import Checker
from ingest.clock import Clock
from ingest.metrics import Metrics, Trigger
from ingest.model import Arrival, Checked, Delivery
from ingest.source import Inbox

_LOG_INTERNAL_EVERY_S = 10.0
_SURELY_CHEAP_BYTES = 2_048
"""Inflated: so small a message is checked in a tenth of a millisecond at most."""
_LONGEST_CHECK_S = 0.02
"""A read may bring a thousand messages that were made to be dear; in between others get a turn."""

log = structlog.get_logger(__name__)


class Store(Protocol):
    """Where batches go."""

    async def write(self, batch: Batch, more: More) -> Written:
        """Commit the batch, however long that takes; what came of it.

        `more` gives what has come meanwhile, which the store may put into the batch.
        """


class Caution(Protocol):
    """Has messages read with care where one of them may have ended a process; see `store.guard`."""

    @property
    def takes_care(self) -> bool:
        """True while messages are to be read in `groups`, each noted before."""

    async def begin(self) -> None:
        """Find out how the last reader of the session ended."""

    def groups(self, deliveries: Sequence[Delivery]) -> Iterable[list[Delivery]]:
        """Return deliveries in their order, in the pieces they are to be read in."""

    async def note(self, group: Sequence[Delivery]) -> None:
        """Write down what is about to be read."""

    async def read(self, group: Sequence[Delivery]) -> None:
        """Take note that a group is committed."""

    def sets_aside(self, delivery: Delivery) -> bool:
        """Return True if a message is not to be read at all."""


class Pipeline:
    """Reads the inbox, fills batches, has them written, and settles what they hold."""

    def __init__(
        self,
        inbox: Inbox,
        checker: Checker,
        batcher: Batcher,
        store: Store,
        metrics: Metrics,
        guard: Caution,
        clock: Clock,
        committed: Callable[[Committed], None],
    ) -> None:
        """`committed` is told of each batch, once it is settled."""
        self._inbox = inbox
        self._checker = checker
        self._batcher = batcher
        self._store = store
        self._metrics = metrics
        self._guard = guard
        self._clock = clock
        self._committed = committed
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()
        self._go_on = asyncio.Event()
        self._all_settled = False
        self._unsettled: list[Delivery] = []
        self._no_more = False
        self._logged_internal_s = -_LOG_INTERNAL_EVERY_S

    async def run(self) -> None:
        """Work until the inbox is closed and everything in it is settled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(), name="read")
            tasks.create_task(self._write(), name="write")

    async def _read(self) -> None:
        async for deliveries in self._inbox:
            await self._guard.begin()
            await self._trust_clock(deliveries)
            if self._guard.takes_care:
                await self._read_carefully(deliveries)
            else:
                await self._read_on(deliveries, self._checker.check)
            # Checking a read's worth takes milliseconds; a COPY under way goes on in between.
            await asyncio.sleep(0)
        self._no_more = True
        self._filled.set()

    async def _trust_clock(self, deliveries: Sequence[Delivery]) -> None:
        """Wait until our clock is right, and stamp anew what it has stamped wrongly."""
        arrival = deliveries[0].arrival
        if not self._clock.doubts(arrival):
            return
        # What came while the clock was wrong is right as soon as it is stamped by one that is.
        while self._clock.doubts(arrival := _stamped_anew(arrival)):
            await self._clock.looked()
        for delivery in deliveries:
            delivery.arrival = arrival

    async def _read_on(
        self, deliveries: Sequence[Delivery], check: Callable[[Delivery], Checked]
    ) -> None:
        """Check deliveries and put them into the open batch."""
        messages: Counter[str] = Counter()
        samples: Counter[str] = Counter()
        now = time.monotonic()
        for delivery in deliveries:
            while self._batcher.full:
                self._filled.set()
                self._taken.clear()
                await self._taken.wait()
                now = time.monotonic()
            try:
                checked = check(delivery)
            except Exception as exc:  # noqa: BLE001  one dead letter, whatever a message sets off
                checked = self._internal_error(delivery, exc)
            messages[checked.stream] += 1
            if checked.samples is None:
                samples[checked.stream] += len(checked.outcomes)
            else:
                samples.update(checked.samples)
            self._batcher.add(delivery, checked, now)
            if checked.size_bytes > _SURELY_CHEAP_BYTES and (
                time.monotonic() - now > _LONGEST_CHECK_S
            ):
                self._filled.set()
                await asyncio.sleep(0)
                now = time.monotonic()
        self._metrics.count(self._metrics.messages_received, messages)
        self._metrics.count(self._metrics.samples_received, samples)
        self._filled.set()

    async def _read_carefully(self, deliveries: Sequence[Delivery]) -> None:
        """Read a few at a time, note them before, and have each few committed before the next.

        Or after it, where the store asks for others to show whose fault it is.
        """
        for group in self._guard.groups(deliveries):
            self._unsettled += group
            await self._guard.note(self._unsettled)
            await self._read_on(group, self._check_unless_set_aside)
            self._all_settled = False
            self._go_on.clear()
            self._batcher.close()
            await self._go_on.wait()
            if self._all_settled:
                read, self._unsettled = self._unsettled, []
                await self._guard.read(read)

    def _check_unless_set_aside(self, delivery: Delivery) -> Checked:
        if not self._guard.sets_aside(delivery):
            return self._checker.check(delivery)
        log.error("message set aside", topic=delivery.topic, why="workers have died over it")
        return self._checker.set_aside(delivery)

    def _internal_error(self, delivery: Delivery, exc: Exception) -> Checked:
        """Reject a message whose check raises `exc`."""
        now = time.monotonic()
        if now - self._logged_internal_s >= _LOG_INTERNAL_EVERY_S:
            self._logged_internal_s = now
            log.error("internal error on one message", topic=delivery.topic, exc_info=exc)
        return self._checker.internal_error(delivery)

    async def _write(self) -> None:
        while (batch := await self._next()) is not None:
            closed_s = time.monotonic()
            written = await self._store.write(batch, partial(self._more, batch))
            self._inbox.settle(batch.deliveries)
            self._committed(Committed(batch, written, closed_s, time.monotonic()))
            if self._batcher.due_in(0.0) is None:
                self._all_settled = True
                self._go_on.set()

    def _more(self, batch: Batch) -> Batch | None:
        """The open batch, for one that cannot be stored alone and is not too large for it."""
        if not self._batcher.may_grow(batch) or (another := self._batcher.take()) is None:
            self._go_on.set()
            return None
        self._taken.set()
        return another

    async def _next(self) -> Batch | None:
        """The next batch, as soon as it is full or has waited; None after the last one."""
        while True:
            trigger = self._trigger()
            if trigger and (batch := self._batcher.take()):
                self._metrics.flushes.labels(trigger).inc()
                self._taken.set()
                return batch
            if self._no_more:
                return None
            self._filled.clear()
            try:
                async with asyncio.timeout(self._batcher.due_in(time.monotonic())):
                    await self._filled.wait()
            except TimeoutError:
                continue

    def _trigger(self) -> Trigger | None:
        """Why the open batch closes now; None while it does not."""
        if self._batcher.full:
            return "full"
        if self._no_more:
            return "drain"
        if self._batcher.due_in(time.monotonic()) == 0.0:
            return "wait" if self._batcher.waits else "idle"
        return None


def _stamped_anew(arrival: Arrival) -> Arrival:
    """Give the same moment by the clock as it is now."""
    since = timedelta(seconds=time.monotonic() - arrival.monotonic_s)
    return Arrival(datetime.now(UTC) - since, arrival.monotonic_s)
