"""The data unit of a report: a series of units in any order, some of which no table knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from typing import Any

from ingest.gbt32960.items import CutShortError, Mark, Marks, Reader, within
from ingest.gbt32960.lists import Repeat
from ingest.gbt32960.tables import UNITS, Edition, Unit

Samples = dict[str, dict[str, Any]]
"""Samples by stream."""

_REPORTED = ("nev", "battery", "alarm")
"""Streams of a report. The first one in a frame keeps the units that no table knows."""
_FIRST_CUSTOM, _SIGNATURE = 0x80, 0xFF
_MOST_UNITS = 4_096
"""Number of units read in one frame. Vehicles send each unit once or once per pack; a frame of
65 kB may have 32,762 units, at 10 µs each (measured)."""


def read_units(edition: Edition, reader: Reader, head: dict[str, Any]) -> Samples:
    """Return the samples of a report, read as far as possible."""
    samples: Samples = {}
    marks: dict[str, Marks] = {}
    kept: list[dict[str, str]] = []
    lists = _Lists()
    undecoded = False
    units = 0
    while reader.left:
        start, number = reader.at, reader.count(1)
        unit = UNITS[edition].get(number)
        units += 1
        readable = units <= _MOST_UNITS
        try:
            if readable and unit is not None:
                part: dict[str, Any] = {}
                own: Marks = {}
                for item in unit.items:
                    item.read(reader, part, own)
                sample = samples.setdefault(unit.stream, dict(head))
                if _said(sample, part):
                    kept.append(_hex(number, reader.data[start + 1 : reader.at]))
                else:
                    marks.setdefault(unit.stream, {}).update(_merge(sample, part, own, lists))
                continue
            if readable and _FIRST_CUSTOM <= number < _SIGNATURE:
                kept.append(_hex(number, reader.take(reader.count(2))))
                continue
        except CutShortError:
            pass
        # The length of this unit is unknown, so the next cannot be found; or it is one too many.
        undecoded = number != _SIGNATURE
        kept.append(_hex(number, reader.data[start + 1 :]))
        break
    if undecoded and not samples and len(kept) == 1 and number in UNITS[edition]:
        raise CutShortError
    if not samples:
        samples["nev"] = dict(head)
    first = next(stream for stream in _REPORTED if stream in samples)
    for stream, sample in samples.items():
        more = kept if stream == first else []
        marked(sample, marks.get(stream, {}), more, undecoded=undecoded and stream == first)
    return samples


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


def marked(
    sample: dict[str, Any], marks: Marks, kept: list[dict[str, str]], *, undecoded: bool = False
) -> dict[str, Any]:
    """Add flags as `quality`, raw counts as `raw` and kept units to a sample; return the sample."""
    quality = {pointer: mark.flag for pointer, mark in marks.items()}
    raw = {pointer: mark.raw for pointer, mark in marks.items() if mark.raw is not None}
    if kept:
        sample["units"] = kept
    if undecoded:
        quality["/units"] = "undecoded"
    if raw:
        sample["raw"] = raw
    if quality:
        sample["quality"] = quality
    return sample


def marks_of(sample: Mapping[str, Any]) -> Marks:
    """Return the marks that `quality` and `raw` of a sample stand for."""
    raw = sample.get("raw") or {}
    return {at: Mark(flag, raw.get(at)) for at, flag in (sample.get("quality") or {}).items()}


def _hex(number: int, data: bytes) -> dict[str, str]:
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
            if _FIRST_CUSTOM <= number < _SIGNATURE and not cut:
                out += len(data).to_bytes(2, "big")
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
