"""Items that come with a count: lists of numbers and lists of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.gbt32960.items import (
    Item,
    Mark,
    Marks,
    Number,
    Reader,
    absent,
    get,
    put,
    sentinel,
    within,
)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A count, then that many numbers; no number follows a count of "abnormal" or "invalid"."""

    name: str
    count_size: int
    item: Number

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        count = reader.count(self.count_size)
        path = self.name.split(".")
        at = "/" + "/".join(path)
        flag = sentinel(count, self.count_size)
        if flag is not None:
            marks[at] = Mark(flag)
            put(into, path, None)
            return
        size = self.item.size
        data = reader.take(count * size)
        values, found = [], []
        # 65,531 probes may send the same bytes; each different value is read only once.
        known: dict[bytes, tuple[Any, Mark | None]] = {}
        for start in range(0, len(data), size):
            raw = data[start : start + size]
            if (one := known.get(raw)) is None:
                one = known[raw] = self.item.read_one(Reader(raw))
            values.append(one[0])
            found.append(one[1])
        first = found[0] if found else None
        if first is not None and first.raw is None and found.count(first) == count:
            # A car that is off sends nothing but "invalid": one mark covers the whole list.
            marks[at] = first
        else:
            marks |= {f"{at}/{n}": mark for n, mark in enumerate(found) if mark is not None}
        put(into, path, values)

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        path = self.name.split(".")
        at = "/" + "/".join(path)
        values = get(source, path)[1]
        if values is None:
            out += absent(marks.get(at), self.count_size)
            return
        out += len(values).to_bytes(self.count_size, "big")
        for index, value in enumerate(values):
            self.item.write_one(value, marks.get(f"{at}/{index}", marks.get(at)), out)

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return get(source, self.name.split("."))[0]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A count, then that many objects; with `count_size` 0, one object without a count."""

    name: str
    items: Sequence[Item]
    has: str
    """Name of a field that every object of this unit has; other objects belong to other units."""
    count_size: int = 1
    leads: bool = True
    """True for the unit that writes an empty list, if two units describe the same objects."""

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        count = reader.count(self.count_size) if self.count_size else 1
        path = self.name.split(".")
        at = "/" + "/".join(path)
        flag = sentinel(count, self.count_size) if self.count_size else None
        if flag is not None:
            marks[at] = Mark(flag)
            put(into, path, None)
            return
        entries = []
        for index in range(count):
            entry: dict[str, Any] = {}
            own: Marks = {}
            for item in self.items:
                item.read(reader, entry, own)
            entries.append(entry)
            marks |= {f"{at}/{index}{pointer}": mark for pointer, mark in own.items()}
        put(into, path, entries)

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        path = self.name.split(".")
        at = "/" + "/".join(path)
        entries = get(source, path)[1] or []
        own = [(n, entry) for n, entry in enumerate(entries) if self.has in entry]
        if self.count_size and not own and at in marks:
            out += absent(marks[at], self.count_size)
        elif self.count_size:
            out += len(own).to_bytes(self.count_size, "big")
        for index, entry in own:
            inner = within(marks, f"{at}/{index}")
            for item in self.items:
                item.write(entry, inner, out)

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        there, entries = get(source, self.name.split("."))
        if not entries:
            return there and self.leads
        return any(self.has in entry for entry in entries)
