"""Intentional mistakes of a fleet."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import orjson

_NO_VALUES: tuple[Any, ...] = ("n/a", "", True, -1e12, [], {})
"""Values that no schema allows where a number is expected."""
_ENVELOPE = {"ts", "seq"}


class Mischief(NamedTuple):
    """Shares of the messages that are bad, duplicate or late, each from 0 to 1."""

    bad: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    dirty: float = 0.5
    """Share of the bad ones that cost a field of each sample; the others cost the samples."""


def soiled(sample: dict[str, Any], chance: Random) -> dict[str, Any]:
    """Return a copy of a sample with one value that its schema refuses beside good ones."""
    copy: dict[str, Any] = {"trigger": "timer"} | orjson.loads(orjson.dumps(sample))
    holder, key = chance.choice([(copy, "sent_at"), *_numbers(copy)])
    holder[key] = chance.choice(_NO_VALUES)
    return copy


def _numbers(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key) of every number, however deep."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _numbers(value)
        elif type(value) in {int, float} and key not in _ENVELOPE:
            yield node, key
