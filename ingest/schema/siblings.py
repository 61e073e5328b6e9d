"""All samples of one message together, for plausibility rules that compare samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple, TypeGuard

EACH = "*"
"""Step of a rule's field that stands for every member or item."""

Sibling = tuple[str, datetime, dict[str, Any]]
"""(stream, ts, sample): one sample of a message, not checked by any schema yet."""


class Siblings:
    """All samples of a message that are objects with a time.

    What rules need from them is computed once for a message, however many of its samples need it,
    and only if a rule asks for it.
    """

    def __init__(self, samples: Iterable[Sibling] = ()) -> None:
        """Keep `samples`, which may be an iterator; they are not read before a rule asks."""
        self._given = samples
        self._arrays: dict[tuple[str, datetime, str], Array] = {}
        self._fallen: dict[tuple[str, str], Mapping[datetime, float]] = {}

    @cached_property
    def _samples(self) -> list[Sibling]:
        return list(self._given)

    @cached_property
    def _at(self) -> dict[tuple[str, datetime], list[dict[str, Any]]]:
        found: dict[tuple[str, datetime], list[dict[str, Any]]] = {}
        for stream, ts, sample in self._samples:
            found.setdefault((stream, ts), []).append(sample)
        return found

    def array(self, stream: str, ts: datetime, path: str, otherwise: dict[str, Any]) -> Array:
        """Return the numbers at a path in all samples of a stream at one instant.

        If the stream has no sample at that instant, return the numbers of `otherwise`.
        """
        there = self._at.get((stream, ts))
        if there is None:
            return _array((otherwise,), path)
        key = stream, ts, path
        if key not in self._arrays:
            self._arrays[key] = _array(there, path)
        return self._arrays[key]

    def fallen(self, stream: str, name: str) -> Mapping[datetime, float]:
        """Return the instants at which a field is lower than at an earlier one.

        Each comes with the highest earlier value. There are usually few.
        """
        key = stream, name
        if key not in self._fallen:
            self._fallen[key] = self._falls(stream, name)
        return self._fallen[key]

    def _falls(self, stream: str, name: str) -> Mapping[datetime, float]:
        told = [
            (ts, value)
            for of, ts, sample in self._samples
            if of == stream and is_number(value := sample.get(name))
        ]
        told.sort(key=itemgetter(0))
        found: dict[datetime, float] = {}
        before = highest = -math.inf
        now: datetime | None = None
        for ts, value in told:
            if ts != now:
                before, now = highest, ts
            if value < before:
                found[ts] = before
            elif value > highest:
                highest = value
        return found


class Array(NamedTuple):
    """Numbers that a path leads to."""

    values: frozenset[float]
    number: int
    """Number of values, counting equal ones separately."""
    total: float
    lowest: float
    """Lowest number; infinity if there is no number."""
    highest: float
    """Highest number; minus infinity if there is no number."""


def _array(samples: Iterable[dict[str, Any]], path: str) -> Array:
    steps = path.split("/")[1:]
    found: list[float] = []
    for sample in samples:
        for together in leaves(sample, steps):
            found += filter(is_number, together)
    values = frozenset(found)
    lowest, highest = min(values, default=math.inf), max(values, default=-math.inf)
    return Array(values, len(found), sum(found), lowest, highest)


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a number."""
    return type(value) is float or type(value) is int


def find(value: Any, steps: Sequence[str], pointer: str) -> Iterator[tuple[str, Any]]:
    """Yield (pointer, value) for every value that the steps lead to and that is not null."""
    if value is None:
        return
    if not steps:
        yield pointer, value
        return
    step, rest = steps[0], steps[1:]
    members: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        members = value.items() if step == EACH else ((step, value.get(step)),)
    elif isinstance(value, list) and step == EACH:
        members = enumerate(value)
    for name, inner in members:
        if inner is None:
            continue
        if rest:
            yield from find(inner, rest, f"{pointer}/{name}")
        else:
            yield f"{pointer}/{name}", inner


def leaves(value: Any, steps: Sequence[str]) -> Iterator[Collection[Any]]:
    """Yield the values that `find` finds, and nulls, as one collection per array or object.

    There are no pointers: a message may hold half a million numbers, and a pointer for each would
    take most of the time.
    """
    if not steps:
        yield (value,)
        return
    step, rest = steps[0], steps[1:]
    if isinstance(value, dict):
        inner: Collection[Any] = value.values() if step == EACH else (value.get(step),)
    elif isinstance(value, list) and step == EACH:
        inner = value
    else:
        return
    if not rest:
        yield inner
        return
    for one in inner:
        yield from leaves(one, rest)
