"""The samples of one message beside each other, as far as plausibility asks about them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple, TypeGuard

EACH = "*"
"""Step of a rule's field that stands for every member or item."""


class Sibling(NamedTuple):
    """One sample of a message, not looked at by any schema yet."""

    stream: str
    ts: datetime
    sample: dict[str, Any]


class Siblings:
    """All samples of a message that are objects with a time.

    What rules ask of them is found once for a message, however many of its samples ask.
    """

    def __init__(self, samples: Sequence[Sibling] = ()) -> None:
        self._at: dict[tuple[str, datetime], list[dict[str, Any]]] = {}
        for stream, ts, sample in samples:
            self._at.setdefault((stream, ts), []).append(sample)
        self._arrays: dict[tuple[str, datetime, str], Array] = {}
        self._highest: dict[tuple[str, str], tuple[list[datetime], list[float]]] = {}

    def __bool__(self) -> bool:
        return bool(self._at)

    def array(self, stream: str, ts: datetime, path: str, otherwise: dict[str, Any]) -> Array:
        """The numbers of a path at one instant, or those of a sample that has no siblings then."""
        there = self._at.get((stream, ts))
        if there is None:
            return _array((otherwise,), path)
        key = stream, ts, path
        if key not in self._arrays:
            self._arrays[key] = _array(there, path)
        return self._arrays[key]

    def highest_before(self, stream: str, name: str, ts: datetime) -> float:
        """The highest value of a field in the samples before an instant."""
        if (stream, name) not in self._highest:
            told: list[tuple[datetime, float]] = []
            for (of, at), samples in self._at.items():
                values = (sample.get(name) for sample in samples if of == stream)
                told += [(at, value) for value in values if is_number(value)]
            told.sort()
            running: list[float] = list(accumulate((value for _, value in told), max))
            self._highest[stream, name] = [at for at, _ in told], running
        instants, highest = self._highest[stream, name]
        before = bisect_left(instants, ts)
        return highest[before - 1] if before else -math.inf


class Array(NamedTuple):
    """Numbers that a path leads to."""

    values: frozenset[float]
    number: int
    """How many there are, equal ones too."""
    total: float

    @property
    def lowest(self) -> float:
        """Infinity where there is none."""
        return min(self.values, default=math.inf)

    @property
    def highest(self) -> float:
        """Minus infinity where there is none."""
        return max(self.values, default=-math.inf)


def _array(samples: Iterable[dict[str, Any]], path: str) -> Array:
    steps = path.split("/")[1:]
    found = [n for sample in samples for _, n in find(sample, steps, "") if is_number(n)]
    return Array(frozenset(found), len(found), sum(found))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def find(value: Any, steps: Sequence[str], pointer: str) -> Iterator[tuple[str, Any]]:
    """(pointer, value) of everything the steps lead to that is not null."""
    if value is None:
        return
    if not steps:
        yield pointer, value
        return
    step, rest = steps[0], steps[1:]
    if isinstance(value, dict):
        names = list(value) if step == EACH else [step]
        for name in names:
            yield from find(value.get(name), rest, f"{pointer}/{name}")
    elif isinstance(value, list) and step == EACH:
        for index, item in enumerate(value):
            yield from find(item, rest, f"{pointer}/{index}")
