"""Items, the parts of a frame's units: each reads itself from bytes and writes itself back.

Every item knows its place in the sample, its raw range, scale and offset, and the values that mean
"abnormal" and "invalid". All numbers are big-endian. A mark under the JSON pointer of a value says
what the value alone cannot: a flag for `quality` and, if the value was out of range, the raw count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

ABNORMAL, INVALID, OUT_OF_RANGE = "abnormal", "invalid", "out_of_range"
_PRINTABLE = (0x20, 0x7E)


class Mark(NamedTuple):
    """Reason why a field is null, or not as it should be."""

    flag: str
    raw: Any = None
    """Raw value from the wire if `flag` is `out_of_range`."""


Marks = dict[str, Mark]
"""Marks by JSON pointer, relative to the object an item reads into."""


class CutShortError(ValueError):
    """The data ends inside an item."""


class Reader:
    """Reader of bytes from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        """Number of bytes not read yet."""
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; raises CutShortError if there are fewer."""
        if self.left < count:
            raise CutShortError
        self.at += count
        return self.data[self.at - count : self.at]

    def count(self, size: int) -> int:
        """Return the next `size` bytes as one unsigned number."""
        return int.from_bytes(self.take(size), "big")


class Item(Protocol):
    """One piece of a unit."""

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """Read the item and put its value into `into`, its marks into `marks`."""

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """Write the value in `source`; if it is absent, what its mark says, otherwise "invalid"."""

    def present(self, source: Mapping[str, Any]) -> bool:
        """Return whether `source` says anything about the item."""


def sentinel(raw: int, size: int) -> str | None:
    """Return `abnormal` for 0xFE, 0xFFFE, 0xFFFFFFFE, `invalid` for one more, otherwise None.

    Source: GB/T 32960.3-2016, the effective values of every table.
    """
    return {(1 << 8 * size) - 2: ABNORMAL, (1 << 8 * size) - 1: INVALID}.get(raw)


def absent(mark: Mark | None, size: int) -> bytes:
    """Return the bytes for an absent value: "abnormal" if its mark says so, otherwise "invalid"."""
    abnormal = mark is not None and mark.flag == ABNORMAL
    return ((1 << 8 * size) - (2 if abnormal else 1)).to_bytes(size, "big")


def put(into: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value where a path leads, making the objects on the way."""
    for name in path[:-1]:
        into = into.setdefault(name, {})
    into[path[-1]] = value


def get(source: Mapping[str, Any], path: Sequence[str]) -> tuple[bool, Any]:
    """Return (whether the name at a path is there, value)."""
    for name in path[:-1]:
        source = source.get(name) or {}
    return path[-1] in source, source.get(path[-1])


class _Field(ABC):
    """An item that is one number on the wire and one value in the sample."""

    name: str
    size: int

    @abstractmethod
    def value(self, raw: int) -> Any:
        """Return the value of a raw count; None if the count is out of range."""

    @abstractmethod
    def raw(self, value: Any) -> int:
        """Return the raw count of a value."""

    def read_one(self, reader: Reader) -> tuple[Any, Mark | None]:
        """Read the next value; return it and its mark."""
        raw = reader.count(self.size)
        flag = sentinel(raw, self.size)
        if flag is not None:
            return None, Mark(flag)
        value = self.value(raw)
        return value, Mark(OUT_OF_RANGE, raw) if value is None else None

    def write_one(self, value: Any, mark: Mark | None, out: bytearray) -> None:
        """Write the raw count of a value, or if it is None, what its mark says."""
        if value is not None:
            out += self.raw(value).to_bytes(self.size, "big")
        elif mark is not None and mark.raw is not None:
            out += mark.raw.to_bytes(self.size, "big")
        else:
            out += absent(mark, self.size)

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        value, mark = self.read_one(reader)
        path = self.name.split(".")
        put(into, path, value)
        if mark is not None:
            marks["/" + "/".join(path)] = mark

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        path = self.name.split(".")
        self.write_one(get(source, path)[1], marks.get("/" + "/".join(path)), out)

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return get(source, self.name.split("."))[0]


@dataclass(frozen=True, slots=True)
class Number(_Field):
    """A number: `raw` from `low` to `high`, divided by `per_unit`, plus `offset`."""

    name: str
    size: int
    high: int
    per_unit: int = 1
    offset: int = 0
    low: int = 0

    def value(self, raw: int) -> float | int | None:
        """Return the value in the unit of the sample; None if `raw` is out of range."""
        if not self.low <= raw <= self.high:
            return None
        counts = raw + self.offset * self.per_unit
        return counts if self.per_unit == 1 else counts / self.per_unit

    def raw(self, value: float) -> int:
        """Return the raw count, rounded to the resolution and kept within the range."""
        return min(max(round((value - self.offset) * self.per_unit), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Choice(_Field):
    """One word of a list; a number on the wire."""

    name: str
    values: Mapping[int, str]
    size: int = 1

    def value(self, raw: int) -> str | None:
        """Return the word for a number; None if no word has it."""
        return self.values.get(raw)

    def raw(self, value: str) -> int:
        """Return the number of a word."""
        return next(raw for raw, word in self.values.items() if word == value)


def within(marks: Marks, at: str) -> Marks:
    """Return the marks below a pointer, relative to that pointer."""
    return {
        pointer[len(at) :]: mark for pointer, mark in marks.items() if pointer.startswith(at + "/")
    }


@dataclass(frozen=True, slots=True)
class Text:
    """ASCII of a fixed length, padded at its end."""

    name: str
    length: int

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        raw = reader.take(self.length)
        if raw in (b"\xff" * self.length, b"\xfe" * self.length):
            marks[f"/{self.name}"] = Mark(INVALID if raw[:1] == b"\xff" else ABNORMAL)
            into[self.name] = None
        else:
            into[self.name] = text(raw)

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        value = source.get(self.name)
        if value is None:
            out += absent(marks.get(f"/{self.name}"), 1) * self.length
        else:
            out += padded(value, self.length)

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return self.name in source


def text(raw: bytes, *, exact: bool = False) -> str:
    """Return ASCII without the padding; any other byte becomes a question mark.

    With `exact`, a text with such a byte is returned in hexadecimal instead, `0x…`, because some
    makers fill codes with bytes.
    """
    kept = raw.rstrip(b"\0 ")
    if exact and not all(_PRINTABLE[0] <= byte <= _PRINTABLE[1] for byte in kept):
        return "0x" + raw.hex()
    return "".join(chr(b) if _PRINTABLE[0] <= b <= _PRINTABLE[1] else "?" for b in kept)


def padded(value: str, length: int) -> bytes:
    """Return ASCII of a fixed length, or the bytes that `text` wrote in hexadecimal."""
    if value.startswith("0x") and len(value) == 2 + 2 * length:
        return bytes.fromhex(value[2:])
    return value.encode("ascii", "replace")[:length].ljust(length, b"\0")
