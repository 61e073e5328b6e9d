"""Search for the message that costs most to check, with figures of time and memory.

Every shape and frame of `ingest.lab.hostile` is compressed and measured. Then the dearest shape is
varied at random, again and again; a variation that takes longer takes its place. Only
`Checker.check` is measured, because that is where a message becomes more than its bytes.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import zstandard

from ingest import gbt32960
from ingest.check import Checker
from ingest.config import Settings
from ingest.decode import MessageLimits
from ingest.lab.bench.figures import Figures, figure
from ingest.lab.bench.plan import BenchPlan
from ingest.lab.bench.stand import Stand
from ingest.lab.hostile import Shape, frames, shapes, vary
from ingest.model import GBT32960, Arrival, Delivery
from ingest.schema import Catalogue, load_catalogue

BOUND_MS, BOUND_MB = 250, 64
"""Most CPU time and memory that one message may take."""
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = re.compile(r"VmHWM:\s+(\d+)")
_VARIATIONS_PER_RUN = 200
_REPEATS = 3
_TOLD = 5


@dataclass(slots=True)
class Cost:
    """CPU time and memory that one message took."""

    what: str
    packed_bytes: int
    seconds: float
    peak_mb: float


class Scales:
    """Measurement of messages, one at a time, in this process."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._checker = Checker.of(catalogue, Settings())
        self.at = datetime.now(UTC)
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)

    def weigh(self, what: str, topic: str, text: bytes, *, repeats: int = 1) -> Cost:
        """Return the least CPU time and most memory of some repeats; 0 for what is too large."""
        packed = zstandard.compress(text, 3)
        if len(packed) > MessageLimits.of(Settings()).payload_bytes:
            return Cost(what, len(packed), 0.0, 0.0)
        best_s, peak_mb = float("inf"), 0.0
        for _ in range(repeats):
            arrival = Arrival(self.at, time.monotonic())
            delivery = Delivery(topic, packed, "zstd", None, 1, arrival, _Silent())
            gc.collect()
            self._trim(0)
            before_mb = self._peak_mb(reset=True)
            began_s = time.process_time()
            checked = self._checker.check(delivery)
            best_s = min(best_s, time.process_time() - began_s)
            peak_mb = max(peak_mb, self._peak_mb() - before_mb)
            del checked
        return Cost(what, len(packed), best_s, peak_mb)

    def _peak_mb(self, *, reset: bool = False) -> float:
        """Return the most resident memory since the last reset (proc(5), clear_refs)."""
        if reset:
            _CLEAR_REFS.write_text("5")
        found = _PEAK.search(_STATUS.read_text())
        return int(found[1]) / 1024 if found else 0.0


class _Silent:
    """A connection that ignores acknowledgements."""

    def acknowledge(self, packet_ids: Any) -> None:
        """Ignore the acknowledgements."""


async def hostile(_: Stand, plan: BenchPlan) -> Figures:
    """Find the dearest messages within the limits: ms of CPU and MB of each, beside the bounds."""
    return await asyncio.to_thread(search, plan)


def search(plan: BenchPlan) -> Figures:
    """Weigh every shape and every frame, then vary the dearest."""
    catalogue = load_catalogue()
    scales, chance, limits = Scales(catalogue), Random(1), MessageLimits.of(Settings())
    names = catalogue if plan.streams is None else plan.streams
    tried = [shape for shape in shapes(catalogue) if shape.stream in names]
    costs: list[tuple[Cost, Shape | None]] = []

    def weigh(shape: Shape, repeats: int = 1) -> Cost:
        text = shape.text(scales.at, limits)
        topic, what = f"iov/v1/HOSTILE/{shape.stream}", f"{shape.stream}: {shape.what}"
        return scales.weigh(f"{what} in {shape.samples}", topic, text, repeats=repeats)

    for number, shape in enumerate(tried):
        plan.say(f"shape {number + 1} of {len(tried)}")
        costs.append((weigh(shape), shape))
    for what, frame in frames(scales.at) if plan.streams is None else ():
        plan.say(f"frame {what}")
        topic = f"iov/v1/HOSTILE/{GBT32960}"
        if not isinstance(gbt32960.decode(frame), gbt32960.Frame):
            continue
        costs.append((scales.weigh(what, topic, frame), None))
    dearest = max((c for c in costs if c[1] is not None), key=lambda c: c[0].seconds)
    variations = plan.runs * _VARIATIONS_PER_RUN if plan.streams is None else 1
    for number in range(variations):
        plan.say(f"variation {number + 1} of {variations}")
        assert dearest[1] is not None
        varied = vary(dearest[1], chance)
        cost = weigh(varied)
        costs.append((cost, varied))
        if cost.seconds > dearest[0].seconds:
            dearest = cost, varied
    slowest = [weigh(dearest[1], _REPEATS).seconds * 1e3 for _ in range(plan.runs)]  # type: ignore[arg-type]  # a shape, as asserted
    by_time = sorted((cost for cost, _ in costs), key=lambda c: -c.seconds)[:_TOLD]
    by_memory = sorted((cost for cost, _ in costs), key=lambda c: -c.peak_mb)[:_TOLD]
    return {
        "messages": len(costs),
        "dearest_ms": figure(slowest, 1),
        "bound_ms": BOUND_MS,
        "bound_mb": BOUND_MB,
        "most_ms": {c.what: round(c.seconds * 1e3, 1) for c in by_time},
        "most_mb": {c.what: round(c.peak_mb, 1) for c in by_memory},
    }
