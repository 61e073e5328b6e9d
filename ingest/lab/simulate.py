"""`simulate`: a fleet that publishes at a set rate for a set time, and the account of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from ingest.commands.message import Message
from ingest.commands.publisher import Publisher
from ingest.lab.fleet import Fleet


class Simulation:
    """One simulation, with counts of what was published and what the broker acknowledged."""

    def __init__(self, fleet: Fleet, rate: float, duration_s: float | None) -> None:
        self._fleet = fleet
        self._rate = rate
        self._duration_s = duration_s
        self._stopped = False
        self.messages = 0
        self.samples = 0
        self.kinds: Counter[str] = Counter()
        self.acknowledged = 0
        self.seconds = 0.0

    def stop(self) -> None:
        """Publish nothing new."""
        self._stopped = True

    async def run(self, publisher: Publisher, tick: Callable[[], None] = lambda: None) -> None:
        """Publish until the time is over or `stop`; call `tick` after each acknowledgement."""
        started_s = time.monotonic()

        def done(_: Message) -> None:
            self.acknowledged += 1
            tick()

        await publisher.publish_all(self._paced(started_s), done)
        self.seconds = time.monotonic() - started_s

    async def _paced(self, started_s: float) -> AsyncIterator[Message]:
        while not self._stopped:
            elapsed_s = time.monotonic() - started_s
            if self._duration_s is not None and elapsed_s >= self._duration_s:
                return
            if self.messages >= elapsed_s * self._rate:
                await asyncio.sleep(min(0.05, max(0.001, 1 / self._rate)))
                continue
            message = self._fleet.message(datetime.now(UTC))
            self.messages += 1
            self.samples += message.samples
            self.kinds[message.kind] += message.samples
            yield message

    def account(self) -> dict[str, Any]:
        """Return the keys of `simulate --json`."""
        return {
            "messages": self.messages,
            "samples": self.samples,
            "bad": self.kinds["bad"],
            "dirty": self.kinds["dirty"],
            "duplicates": self.kinds["duplicate"],
            "late": self.kinds["late"],
            "acknowledged": self.acknowledged,
            "seconds": round(self.seconds, 3),
        }
