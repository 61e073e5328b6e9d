"""Path of the data: bytes → delivery → samples → rows → batch → commit → acknowledge.

There is one reader and one writer: while one batch is being committed, the next one fills. The
messages of a batch are settled together, after its commit, in the order of arrival. The pipeline
keeps only these two batches. Further messages wait in the source, which stops reading when its
window is full.
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
"""Bytes after inflating, up to which checking a message takes at most a tenth of a millisecond."""
_LONGEST_CHECK_S = 0.02
"""Seconds of checking, after which other tasks get a turn.

One read may bring a thousand messages that somebody has made expensive to check.
"""

log = structlog.get_logger(__name__)


class Store(Protocol):
    """Destination of batches."""

    async def write(self, batch: Batch, more: More) -> Written:
        """Commit the batch, however long that takes, and return the result.

        `more` returns the messages that have arrived meanwhile; the store may add them to the
        batch.
        """


class Caution(Protocol):
    """Guard against messages that may have ended a process; see `store.guard`."""

    @property
    def takes_care(self) -> bool:
        """True while messages must be read in `groups`, each noted before it is read."""

    async def begin(self) -> None:
        """Find out how the last reader of the session ended."""

    def groups(self, deliveries: Sequence[Delivery]) -> Iterable[list[Delivery]]:
        """Split deliveries, in their order, into groups that are read one at a time."""

    async def note(self, group: Sequence[Delivery]) -> None:
        """Record which messages are about to be read."""

    async def read(self, group: Sequence[Delivery]) -> None:
        """Record that a group is committed."""

    def sets_aside(self, delivery: Delivery) -> bool:
        """Return True if a message is not to be read at all."""


class Pipeline:
    """Reader that fills batches from the inbox, and writer that has them stored and settled."""

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
        """Connect the parts. `committed` is called with each batch after it is settled."""
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
            # Checking the messages of one read takes milliseconds; let a COPY under way go on.
            await asyncio.sleep(0)
        self._no_more = True
        self._filled.set()

    async def _trust_clock(self, deliveries: Sequence[Delivery]) -> None:
        """Wait until our clock is right; correct arrival times from when it was wrong."""
        arrival = deliveries[0].arrival
        if not self._clock.doubts(arrival):
            return
        # The arrival time can be corrected as soon as the clock is right.
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
            except Exception as exc:  # noqa: BLE001  any error becomes one dead letter
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
        """Note, read and commit one small group of messages at a time.

        The next group is read earlier only if the store asks for more messages, to find out
        whether the batch or the server is at fault.
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
        """Return the open batch to add to `batch`; None if it is empty or `batch` is too large."""
        if not self._batcher.may_grow(batch) or (another := self._batcher.take()) is None:
            self._go_on.set()
            return None
        self._taken.set()
        return another

    async def _next(self) -> Batch | None:
        """Return the next batch as soon as it is full or has waited; None after the last batch."""
        while True:
            # Phase 1: take the open batch if there is a reason to close it.
            trigger = self._trigger()
            if trigger and (batch := self._batcher.take()):
                self._metrics.flushes.labels(trigger).inc()
                self._taken.set()
                return batch
            if self._no_more:
                return None
            # Phase 2: wait until the reader has added something, or until the batch is due. No
            # reader can add anything between the look above and this line, because nothing awaits.
            self._filled.clear()
            try:
                async with asyncio.timeout(self._batcher.due_in(time.monotonic())):
                    await self._filled.wait()
            except TimeoutError:
                continue

    def _trigger(self) -> Trigger | None:
        """Return the reason why the open batch closes now; None if it stays open."""
        if self._batcher.full:
            return "full"
        if self._no_more:
            return "drain"
        if self._batcher.due_in(time.monotonic()) == 0.0:
            return "wait" if self._batcher.waits else "idle"
        return None


def _stamped_anew(arrival: Arrival) -> Arrival:
    """Return the same moment, with the wall time computed from the clock as it is now."""
    since = timedelta(seconds=time.monotonic() - arrival.monotonic_s)
    return Arrival(datetime.now(UTC) - since, arrival.monotonic_s)
