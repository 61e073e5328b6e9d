"""The data unit of a report: a series of units in any order, some of which no table knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any

from ingest.gbt32960.items import CutShortError, Mark, Marks, Reader, within
from ingest.gbt32960.lists import Repeat
from ingest.gbt32960.own import OwnUnit, OwnUnits
from ingest.gbt32960.tables import UNITS, Edition, Unit

Samples = dict[str, dict[str, Any]]
"""Samples by stream."""

_REPORTED = ("nev", "battery", "alarm")
"""Streams of a report. The first one in a frame keeps the units that no table knows."""
_FIRST_CUSTOM, _SIGNATURE = 0x80, 0xFF
_SIGNATURE_ID = "0xFF"
_LENGTH_BYTES = 2
"""Size of the length of a custom unit (GB/T 32960.3-2016, table 8)."""
_MOST_TIMES_READ, _UNIT_BYTES = 2, 8
"""How often the bytes of a report are read to find the sizes of lengths, and the bytes that one
unit counts for besides its own."""
_MOST_UNITS = 4_096
"""Number of units read in one frame. Vehicles send each unit once or once per pack; a frame of
65 kB may have 32,762 units, at 10 µs each (measured)."""


def read_units(edition: Edition, reader: Reader, head: dict[str, Any], own: OwnUnits) -> Samples:
    """Return the samples of a report, read as far as possible; none if it has no unit.

    `own` are the units that an owner has described. Raises CutShortError if nothing can be read.
    """
    report = _Report(edition, reader, head, own)
    for number in range(_MOST_UNITS + 1):
        if not reader.left:
            break
        start = reader.at
        try:
            if number < _MOST_UNITS and report.read_one():
                continue
        except CutShortError:
            pass
        # The length of this unit is unknown, so the next cannot be found; or it is one too many.
        report.keep_rest(start)
        break
    return report.marked_samples()


class _Report:
    """Samples, marks and kept units of one report, while it is read."""

    def __init__(
        self, edition: Edition, reader: Reader, head: dict[str, Any], own: OwnUnits
    ) -> None:
        self._edition, self._reader, self._head, self._own = edition, reader, head, own
        self._samples: Samples = {}
        self._marks: dict[str, Marks] = {}
        self._kept = _Kept()
        self._lists = _Lists()
        self._lengths: Mapping[int, int] | None = None

    def read_one(self) -> bool:
        """Read the next unit; return False if nothing tells where it ends.

        Raises CutShortError if it is not whole.
        """
        reader = self._reader
        start, number = reader.at, reader.count(1)
        unit = UNITS[self._edition].get(number) or self._own.get((self._edition, number))
        if unit is not None:
            self._add(number, unit)
            return True
        if not _FIRST_CUSTOM <= number < _SIGNATURE:
            return False
        if self._lengths is None:
            self._lengths = _lengths(self._edition, reader.data, start, self._own)
        length_bytes = self._lengths.get(start, _LENGTH_BYTES)
        data = reader.take(reader.count(length_bytes))
        self._kept.add(number, data, length_bytes=length_bytes)
        return True

    def _add(self, number: int, unit: Unit | OwnUnit) -> None:
        """Read a unit that is described, and add it to the sample of its stream."""
        reader = self._reader
        part: dict[str, Any] = {}
        marks: Marks = {}
        length_bytes, start, flag = _LENGTH_BYTES, reader.at, None
        complete = _read(unit, reader, part, marks)
        if isinstance(unit, OwnUnit):
            length_bytes = unit.length_bytes
            start += length_bytes
            if not complete:
                flag = "undecoded" if unit.fields else ""
        sample = self._samples.get(unit.stream)
        if sample is None:
            sample = self._samples[unit.stream] = dict(self._head)
        if _said(sample, part):
            flag = "repeated"
        else:
            merged = _merge(sample, part, marks, self._lists)
            self._marks.setdefault(unit.stream, {}).update(merged)
        if flag is not None:
            self._kept.add(number, reader.data[start : reader.at], flag, length_bytes)

    def keep_rest(self, start: int) -> None:
        """Keep all bytes from the unit that begins at `start`."""
        data = self._reader.data
        self._kept.rest(data[start], data[start + 1 :])

    def marked_samples(self) -> Samples:
        """Return the samples with their marks; none if the report has no unit.

        Raises CutShortError if its only unit is cut short.
        """
        kept, samples = self._kept, self._samples
        if not samples:
            if all(one["id"] == _SIGNATURE_ID for one in kept.units):
                return {}
            if kept.undecoded and len(kept.units) == 1:
                number = int(kept.units[0]["id"], 16)
                if number in UNITS[self._edition]:
                    raise CutShortError
            samples["nev"] = dict(self._head)
        first = next(stream for stream in _REPORTED if stream in samples)
        for stream, sample in samples.items():
            marks = self._marks.get(stream, {})
            if stream == first:
                marked(sample, marks | kept.marks, kept.units)
            else:
                marked(sample, marks, [])
        return samples


class _Kept:
    """Units of a report that are kept as hexadecimal."""

    def __init__(self) -> None:
        self.units: list[dict[str, Any]] = []
        self.marks: Marks = {}
        self.undecoded = False
        """True if the last one holds all the rest of the report."""

    def add(
        self, number: int, data: bytes, flag: str = "", length_bytes: int = _LENGTH_BYTES
    ) -> None:
        """Keep a unit, with a flag if something is wrong with it."""
        if flag:
            self.marks[f"/units/{len(self.units)}"] = Mark(flag)
        self.units.append(_hex(number, data))
        if length_bytes != _LENGTH_BYTES:
            self.units[-1]["length_bytes"] = length_bytes

    def rest(self, number: int, data: bytes) -> None:
        """Keep the rest of a report, which begins with a unit that cannot be read to its end."""
        if number != _SIGNATURE:
            self.undecoded = True
            self.marks["/units"] = Mark("undecoded")
        self.units.append(_hex(number, data))


def _read(unit: Unit | OwnUnit, reader: Reader, part: dict[str, Any], marks: Marks) -> bool:
    """Read one unit into a part of a sample and its marks; return whether that is all of it."""
    if isinstance(unit, OwnUnit):
        return unit.read(reader, part, marks)
    for item in unit.items:
        item.read(reader, part, marks)
    return True


def _lengths(edition: Edition, data: bytes, start: int, own: OwnUnits) -> Mapping[int, int]:
    """Return how many bytes the length of each custom unit has, by where the unit begins.

    The standard says two. Some makers write one: that is tried where the report cannot be read to
    its end otherwise, and never for an empty unit. If nothing leads to its end, or a unit that no
    table knows is met on the way, nothing is returned: a wrong guess would invent values.
    """
    came_from: dict[int, tuple[int, int]] = {}
    open_ = [start]
    # Units may overlap here, so what is tried is bounded in bytes, not by the size of the report.
    may_read = _MOST_TIMES_READ * len(data)
    while open_ and may_read > 0:
        at = open_.pop()
        if at == len(data):
            return _chosen(came_from, start, at)
        reader = Reader(data)
        reader.at = at + 1
        unit = UNITS[edition].get(data[at]) or own.get((edition, data[at]))
        ends: list[tuple[int, int]] = []
        if unit is not None:
            with suppress(CutShortError):
                _read(unit, reader, {}, {})
                ends = [(reader.at, 0)]
        elif _FIRST_CUSTOM <= data[at] < _SIGNATURE:
            ends = [
                (at + 1 + size + int.from_bytes(data[at + 1 : at + 1 + size], "big"), size)
                for size in (1, _LENGTH_BYTES)
                if size == _LENGTH_BYTES or any(data[at + 1 : at + 2])
            ]
        else:
            return {}
        may_read -= reader.at - at + _UNIT_BYTES
        for end, size in ends:  # the last one is tried first
            if end <= len(data) and end not in came_from:
                came_from[end] = (at, size)
                open_.append(end)
    return {}


def _chosen(came_from: Mapping[int, tuple[int, int]], start: int, at: int) -> Mapping[int, int]:
    """Return the sizes of the lengths on the way from `start` to `at`."""
    sizes: dict[int, int] = {}
    while at != start:
        at, size = came_from[at]
        if size:
            sizes[at] = size
    return sizes


def _said(sample: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Return whether a unit came twice, so that the second would replace the first."""
    for name, value in part.items():
        there = sample.get(name)
        if isinstance(there, dict) and isinstance(value, dict):
            if _said(there, value):
                return True
        elif name in sample and not (_objects(there) and _objects(value)):
            return True
    return False


def _objects(value: Any) -> bool:
    """Return whether a value is a list of objects; all items of a list are of one kind."""
    return isinstance(value, list) and (not value or isinstance(value[0], dict))


class _Lists:
    """Objects of a report's lists that may be completed by a later unit.

    Voltages and temperatures of one pack come in two units: two objects of a list become one if
    they have the same `no` and no other field in common. Waiting objects are looked up by their
    field names and their `no`, because a frame may hold ten thousand objects.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, dict[frozenset[str], dict[Any, list[int]]]] = {}

    def join(self, there: list[dict[str, Any]], value: list[dict[str, Any]]) -> list[int]:
        """Merge each object into one that it completes, or append it; return the place of each."""
        waiting = self._waiting.get(id(there))
        if waiting is None:
            waiting = self._waiting[id(there)] = {}
            for index, entry in enumerate(there):
                _wait(waiting, entry, index)
        fields = {name for entry in value for name in entry} - {"no"}
        places, joined = [], set()
        for entry in value:
            no, to = entry.get("no"), len(there)
            if no is not None and no not in joined:
                to = _first_of(waiting, fields, no, to)
            if to < len(there):
                joined.add(no)
                there[to] |= entry
            else:
                there.append(entry)
            places.append(to)
        for to in places:
            _wait(waiting, there[to], to)
        return places


def _wait(
    waiting: dict[frozenset[str], dict[Any, list[int]]], entry: dict[str, Any], index: int
) -> None:
    if entry.get("no") is not None:
        alike = waiting.setdefault(frozenset(entry), {})
        heappush(alike.setdefault(entry["no"], []), index)


def _first_of(
    waiting: dict[frozenset[str], dict[Any, list[int]]], fields: set[str], no: Any, otherwise: int
) -> int:
    """Take out the first object with this `no` and without any of `fields`; return its index.

    If there is no such object, return `otherwise`.
    """
    found = [
        alike[no] for names, alike in waiting.items() if alike.get(no) and fields.isdisjoint(names)
    ]
    return heappop(min(found)) if found else otherwise


def _merge(sample: dict[str, Any], part: dict[str, Any], marks: Marks, lists: _Lists) -> Marks:
    """Add a unit to a sample; return its marks, with pointers to where its objects went."""
    moved: Marks = {}
    for name, value in part.items():
        there, own = sample.get(name), _below(marks, name)
        if isinstance(there, dict) and isinstance(value, dict):
            own = _merge(there, value, own, lists)
        elif isinstance(there, list) and isinstance(value, list):
            places = lists.join(there, value)
            own = {at: mark for at, mark in own.items() if not at} | {
                f"/{places[int(step)]}{rest}": mark
                for (step, rest), mark in ((_split(at), mark) for at, mark in own.items() if at)
            }
        else:
            sample[name] = value
        moved |= {f"/{name}{at}": mark for at, mark in own.items()}
    return moved


def _below(marks: Marks, name: str) -> Marks:
    """Return the marks of a field and of everything in it, relative to the field."""
    at = f"/{name}"
    return {
        pointer[len(at) :]: mark
        for pointer, mark in marks.items()
        if pointer == at or pointer.startswith(at + "/")
    }


def _split(pointer: str) -> tuple[str, str]:
    """Split "/0/rest" into ("0", "/rest")."""
    step, slash, rest = pointer[1:].partition("/")
    return step, slash + rest


def marked(sample: dict[str, Any], marks: Marks, kept: list[dict[str, Any]]) -> dict[str, Any]:
    """Add flags as `quality`, raw counts as `raw` and kept units to a sample; return the sample."""
    quality = {pointer: mark.flag for pointer, mark in marks.items()}
    raw = {pointer: mark.raw for pointer, mark in marks.items() if mark.raw is not None}
    if kept:
        sample["units"] = kept
    if raw:
        sample["raw"] = raw
    if quality:
        sample["quality"] = quality
    return sample


def marks_of(sample: Mapping[str, Any]) -> Marks:
    """Return the marks that `quality` and `raw` of a sample stand for."""
    raw = sample.get("raw") or {}
    return {at: Mark(flag, raw.get(at)) for at, flag in (sample.get("quality") or {}).items()}


def _hex(number: int, data: bytes) -> dict[str, Any]:
    return {"id": f"0x{number:02X}", "hex": data.hex()}


def write_units(edition: Edition, samples: Samples, out: bytearray) -> None:
    """Write known units in the order of their numbers, then units kept as hexadecimal."""
    for number, unit in UNITS[edition].items():
        for source, marks in _sources(unit, samples.get(unit.stream, {})):
            if any(item.present(source) for item in unit.items):
                out.append(number)
                for item in unit.items:
                    item.write(source, marks, out)
    for sample in samples.values():
        kept = sample.get("units", ())
        undecoded = (sample.get("quality") or {}).get("/units") == "undecoded"
        for index, unit_kept in enumerate(kept):
            number, data = int(unit_kept["id"], 16), bytes.fromhex(unit_kept["hex"])
            out.append(number)
            cut = undecoded and index == len(kept) - 1
            length_bytes = unit_kept.get("length_bytes", _LENGTH_BYTES)
            if _FIRST_CUSTOM <= number < _SIGNATURE and length_bytes and not cut:
                out += len(data).to_bytes(length_bytes, "big")
            out += data


def _sources(unit: Unit, sample: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Marks]]:
    """Yield the sample, or for a list without a count each object: one unit is written for each."""
    marks = marks_of(sample)
    (item, *_) = unit.items
    if not isinstance(item, Repeat) or item.count_size:
        yield sample, marks
        return
    for index, entry in enumerate(sample.get(item.name) or ()):
        own = within(marks, f"/{item.name}/{index}")
        yield {item.name: [entry]}, {f"/{item.name}/0{at}": mark for at, mark in own.items()}
