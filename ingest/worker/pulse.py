"""Notices when the event loop was blocked: nothing is read, committed or answered meanwhile."""

from __future__ import annotations

import asyncio
import time

import structlog

BEAT_S = 0.5
BLOCKED_S = 2.0
"""Seconds by which a beat must be late to count as a block.

A batch of the largest messages takes some tenths of a second.
"""
HOLD_S = 10.0
"""Seconds for which a block is reported after its end.

This is longer than the usual period of a probe, because no probe is answered during the block.
"""

log = structlog.get_logger(__name__)


class Pulse:
    """A beat that should come in time."""

    def __init__(self) -> None:
        self._blocked_s = 0.0
        self._seen_s = -HOLD_S

    @property
    def problem(self) -> str | None:
        """Report of a block in the last `HOLD_S` seconds; None if there was no block."""
        if time.monotonic() - self._seen_s >= HOLD_S:
            return None
        return f"the event loop was blocked for {self._blocked_s:.1f} s"

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            due_s = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            late_s = time.monotonic() - due_s
            if late_s >= BLOCKED_S:
                self._blocked_s, self._seen_s = late_s, time.monotonic()
                log.warning(
                    "event loop blocked",
                    seconds=round(late_s, 1),
                    hint="is the machine or the container out of CPU?",
                )
