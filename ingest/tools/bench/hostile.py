"""What the dearest message costs: a search for it, with figures of time and memory.

`shapes` goes through what each stream's schema says and makes a message for each keyword: as much
of one element as the limits let in, packed. Then chance takes over: a shape is varied again and
again, and what takes longer is varied further. Only `Checker.check` is measured, for that is where
a message becomes more than its bytes.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from operator import xor
from pathlib import Path
from random import Random
from typing import Any

import orjson
import zstandard

from ingest import gbt32960
from ingest.check import Checker
from ingest.decode import Limits, values
from ingest.gbt32960.tables import UNITS
from ingest.model import GBT32960, Arrival, Delivery
from ingest.schema import Catalogue, load_catalogue
from ingest.schema.columns import json_types
from ingest.tools.bench.figures import Figures, figure
from ingest.tools.bench.plan import Plan
from ingest.tools.bench.stand import Stand

BOUND_MS, BOUND_MB = 250, 64
"""What the dearest message may take."""
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = re.compile(r"VmHWM:\s+(\d+)")
_VARIATIONS_PER_RUN = 200
_REPEATS = 3
_TOLD = 5
_MOST_FRAME_BYTES = 65_531
_ELEMENTS = (
    "-9", "0.25", "1e15", "null", "true", '""', '"\\u0000"', '"\\\\"', '"abcdefgh"', "{}", "[]",
    '{"a":1}', '{"no":-1}', '{"no":1}', "[[]]", '{"heart_rate":1}', '{"_":{"_":{}}}',
)  # fmt: skip
_COUNTED = "#"
"""In an element: the number of its place, so that no two are the same."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A message: as many of an element as go in, with something around them."""

    what: str
    stream: str
    element: str
    around: tuple[str, str] = ("", "")
    """Of the elements in each sample, without the envelope."""
    samples: int = 1
    seq: bool = True

    def text(self, at: datetime, limits: Limits) -> bytes:
        """The JSON, just within the limits."""
        heads = [self._head(at, number) for number in range(self.samples)]
        digits = len(str(limits.values)) if _COUNTED in self.element else 0
        element_bytes = len(self.element.encode()) + 1 + digits
        one, two = (self._filled([""], count) for count in (1, 2))
        element_values = max(1, values(two, 0) - values(one, 0))
        empty = self._filled(heads, 0)
        room = (
            (limits.inflated_bytes - len(empty)) // element_bytes,
            # A little less: beyond 100,000 texts what stands in them counts.
            (limits.values * 49 // 50 - values(empty, 0)) // element_values,
        )
        return self._filled(heads, max(1, min(room) // self.samples))

    def _head(self, at: datetime, number: int) -> str:
        seq = f',"seq":{number}' if self.seq else f',"sent_at":{number}'
        return f'{{"ts":"{at.isoformat()}"{seq}'

    def _filled(self, heads: list[str], count: int) -> bytes:
        if _COUNTED in self.element:
            elements = [self.element.replace(_COUNTED, str(n)) for n in range(count)]
        else:
            elements = [self.element] * count
        begin, end = self.around
        inner = begin + ",".join(elements) + end
        samples = [f"{head},{inner}}}" for head in heads]
        return (samples[0] if len(samples) == 1 else f"[{','.join(samples)}]").encode()


def shapes(catalogue: Catalogue) -> Iterator[Shape]:
    """Shapes for every stream: what arrays may hold and may not, members, texts, samples."""
    for name, stream in catalogue.items():
        for element in _ELEMENTS:
            yield Shape(f"unknown array of {element}", name, element, ('"x":[', "]"))
        for what, element in (
            ("members", f'"k{_COUNTED}":1'), ("members with a dash", f'"k-{_COUNTED}":1'),
            ("the same member", '"x":1'), ("never stored", '"heart_rate":1'),
        ):  # fmt: skip
            yield Shape(f"unknown {what}", name, element)
            yield Shape(f"unknown {what}, no seq", name, element, seq=False)
        yield Shape("long text", name, "a,:[{" * 100, ('"x":"', '"'))
        yield Shape("samples", name, '"x":[{}]', samples=limits_samples())
        for path, field in _arrays(stream.schema, ""):
            end = "}" * path.count("{")
            for element in (*_ELEMENTS, *_valid(field.get("items", {}))):
                around = f"{path}[", f"]{end}"
                yield Shape(f"{path} {element}", name, element, around)
                yield Shape(f"{path} {element}", name, element, around, limits_samples())


def limits_samples() -> int:
    """Most samples of a message."""
    return Limits().samples


def _arrays(schema: dict[str, Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(text up to its value, field) of every array a schema names, also in objects of arrays."""
    for name, field in schema.get("properties", {}).items():
        here = f'{at}"{name}":'
        if "array" in json_types(field):
            yield here, field
            for inner, deeper in _arrays(field.get("items", {}), ""):
                yield f"{here}[{{{inner}", deeper | {"items": deeper.get("items", {})}
        elif "object" in json_types(field):
            yield from _arrays(field, f"{here}{{")


def _valid(items: dict[str, Any]) -> Iterator[str]:
    """Elements that an array may hold, by the type of its items."""
    kinds = json_types(items)
    if kinds & {"number", "integer"}:
        yield str(items.get("maximum", 9))
        yield str(items.get("minimum", 0))
    if "object" in kinds:
        members = items.get("properties", {})
        numbers = {
            n: f.get("maximum", 1) for n, f in members.items() if json_types(f) <= {"integer"}
        }
        yield orjson.dumps(numbers).decode()


def frames(at: datetime) -> Iterator[tuple[str, bytes]]:
    """GB/T 32960 frames of one unit over and over, as many as a frame takes."""
    local = bytes([at.year - 2000, at.month, at.day, (at.hour + 8) % 24, at.minute, at.second])
    for edition, start in ((2016, b"##"), (2025, b"$$")):
        numbers = [*UNITS[edition], 0x80]  # type: ignore[index]  # an edition is a literal
        for number in numbers:
            for length in (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 20, 30, 40):
                for fill in (0, 1, 0xFE):
                    unit = bytes([number]) + bytes([fill]) * length
                    data = local + unit * ((_MOST_FRAME_BYTES - 6) // len(unit))
                    body = bytes([2, 0xFE]) + b"LTEST000000000001" + b"\x01"
                    body += len(data).to_bytes(2, "big") + data
                    frame = start + body + bytes([reduce(xor, body)])
                    yield f"{edition} unit {number:02X} of {length} bytes {fill:02X}", frame


@dataclass(slots=True)
class Cost:
    """What one message took."""

    what: str
    packed_bytes: int
    seconds: float
    peak_mb: float


class Scales:
    """Weighs messages one at a time, in this process."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._checker = Checker(catalogue)
        self.at = datetime.now(UTC)
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)

    def weigh(self, what: str, topic: str, text: bytes, *, repeats: int = 1) -> Cost:
        """The least CPU time of some repeats, and the most memory."""
        packed = zstandard.compress(text, 3)
        if len(packed) > Limits().payload_bytes:
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
        """Most resident memory since the last reset (proc(5), clear_refs)."""
        if reset:
            _CLEAR_REFS.write_text("5")
        found = _PEAK.search(_STATUS.read_text())
        return int(found[1]) / 1024 if found else 0.0


class _Silent:
    """A connection that takes acknowledgements and tells nobody."""

    def acknowledge(self, packet_ids: Any) -> None:
        """Take them."""


async def hostile(_: Stand, plan: Plan) -> Figures:
    """The dearest messages within the limits: ms of CPU and MB for one, against their bounds."""
    return await asyncio.to_thread(search, plan)


def search(plan: Plan) -> Figures:
    """Weigh every shape and every frame, then vary the dearest."""
    catalogue = load_catalogue()
    scales, chance, limits = Scales(catalogue), Random(1), Limits()
    names = list(catalogue)[: plan.streams]
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


def vary(shape: Shape, chance: Random) -> Shape:
    """A shape with one thing about it changed."""
    begin, end = shape.around
    match chance.randrange(5):
        case 0:
            element = chance.choice(_ELEMENTS)
            if shape.element.startswith('"') and ":" in shape.element:
                element = f'"k{_COUNTED}":{element}'
            return replace(shape, what=f"{shape.what} → {element}", element=element)
        case 1:
            element = f"{shape.element},{shape.element}"
            return replace(shape, what=f"{shape.what} twice", element=element)
        case 2:
            return replace(shape, samples=chance.choice((1, 2, 30, limits_samples())))
        case 3:
            return replace(shape, seq=not shape.seq)
        case _:
            more = chance.choice(('"y":{"z":"\\u0000"},', '"soc_pct":900,', '"y":"heart_rate",'))
            return replace(shape, what=f"{shape.what} + {more}", around=(more + begin, end))
