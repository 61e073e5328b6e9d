"""Hostile messages: small on the wire, and as expensive to process as the limits allow.

`shapes` goes through each stream's schema. Each shape is a message that repeats one element as
often as the limits allow. `frames` does the same with GB/T 32960. `vary` changes one thing about a
shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import reduce
from operator import xor
from random import Random
from typing import Any

import orjson

from ingest.config import Settings
from ingest.decode import MessageLimits, values
from ingest.gbt32960.tables import UNITS
from ingest.schema import Catalogue
from ingest.schema.columns import json_types

_MOST_FRAME_BYTES = 65_531
_ELEMENTS = (
    "-9", "0.25", "1e15", "null", "true", '""', '"\\u0000"', '"\\\\"', '"abcdefgh"', "{}", "[]",
    '{"a":1}', '{"no":-1}', '{"no":1}', "[[]]", '{"heart_rate":1}', '{"_":{"_":{}}}',
)  # fmt: skip
_DEEP = '{"x":' * 200 + "1" + "}" * 200
_COUNTED = "#"
"""Placeholder in an element for its index, so that no two elements are the same."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A message that repeats one element as often as the limits allow, between two texts."""

    what: str
    stream: str
    element: str
    around: tuple[str, str] = ("", "")
    """Text before and after the elements of each sample; the envelope comes before it."""
    samples: int = 1
    seq: bool = True

    def text(self, at: datetime, limits: MessageLimits) -> bytes:
        """Return the JSON text, just within the limits."""
        heads = [self._head(at, number) for number in range(self.samples)]
        digits = len(str(limits.values)) if _COUNTED in self.element else 0
        element_bytes = len(self.element.encode()) + 1 + digits
        one, two = (self._filled([""], count) for count in (1, 2))
        element_values = max(1, values(two, 0) - values(one, 0))
        empty = self._filled(heads, 0)
        room = (
            (limits.inflated_bytes - len(empty)) // element_bytes,
            # 2 % less: after 100,000 texts, marks inside of texts count as values too.
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
    """Yield shapes for every stream: allowed and other array elements, members, texts, samples."""
    for name, stream in catalogue.items():
        for element in _ELEMENTS:
            yield Shape(f"unknown array of {element}", name, element, ('"x":[', "]"))
        for what, element in (
            ("members", f'"k{_COUNTED}":1'), ("members with a dash", f'"k-{_COUNTED}":1'),
            ("members of U+0000", f'"k-{_COUNTED}":"\\u0000"'),
            ("the same member", '"x":1'), ("never stored", '"heart_rate":1'),
            ("long members", f'"{"-A" * 20_000}{_COUNTED}":1'),
            ("deep members", f'"k{_COUNTED}":{_DEEP}'),
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
    """Return the largest number of samples that one message may have."""
    return MessageLimits.of(Settings()).samples


def _arrays(schema: dict[str, Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (text up to its value, field) of every array of a schema, also inside of arrays."""
    for name, field in schema.get("properties", {}).items():
        here = f'{at}"{name}":'
        if "array" in json_types(field):
            yield here, field
            for inner, deeper in _arrays(field.get("items", {}), ""):
                yield f"{here}[{{{inner}", deeper | {"items": deeper.get("items", {})}
        elif "object" in json_types(field):
            yield from _arrays(field, f"{here}{{")


def _valid(items: dict[str, Any]) -> Iterator[str]:
    """Yield elements that an array may hold, by the type of its items."""
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
    """Yield (name, GB/T 32960 frame); each frame repeats one unit until it is full."""
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


def vary(shape: Shape, chance: Random) -> Shape:
    """Return a shape with one thing about it changed."""
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
