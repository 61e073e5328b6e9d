"""Intentional mistakes of a fleet."""

from __future__ import annotations

import gzip
import json
import math
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import orjson

_NO_VALUES: tuple[Any, ...] = ("n/a", "", True, -1e12, [], {}, math.nan, -math.inf)
"""Values that no schema allows where a number is expected."""
_ENVELOPE = {"ts", "seq"}
_RESPONSE = 3
"""Place of a frame's response byte; 0x01 makes the frame the answer of a platform."""


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


def written(samples: Sequence[dict[str, Any]], chance: Random) -> bytes:
    """Return a payload of samples as some software of vehicles writes it: not quite JSON."""
    texts = [json.dumps(sample).encode() for sample in samples]
    if chance.random() < 0.2:
        texts = [text.replace(b"+00:00", b"+0000") for text in texts]
    plain = texts[0] if len(texts) == 1 else b"[" + b",".join(texts) + b"]"
    forms = (
        plain,
        BOM_UTF8 + plain,
        plain + b"\0",
        b"".join(text + b"\n" for text in texts),
        b"".join(b"\x1e" + text + b"\n" for text in texts),
        gzip.compress(plain),
    )
    return chance.choice(forms)


def garbled(frame: bytes, chance: Random) -> bytes:
    """Return a GB/T 32960 frame as no vehicle may send it."""
    answer = bytearray(frame)
    answer[_RESPONSE] = 0x01
    answer[-1] ^= frame[_RESPONSE] ^ 0x01
    forms = (
        frame[:-1] + bytes([frame[-1] ^ 0xFF]),
        frame.hex().encode(),
        frame + frame,
        bytes(answer),
    )
    return chance.choice(forms)


def _numbers(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key) of every number, however deep."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _numbers(value)
        elif type(value) in {int, float} and key not in _ENVELOPE:
            yield node, key
