"""The data unit of a report: units one after the other, of any order, and what no table knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ingest.gbt32960.items import CutShortError, Mark, Marks, Reader, within
from ingest.gbt32960.lists import Repeat
from ingest.gbt32960.tables import UNITS, Edition, Unit

Samples = dict[str, dict[str, Any]]
"""By stream."""

_REPORTED = ("nev", "battery", "alarm")
"""Streams of a report; the first of them that a frame has keeps what no table knows."""
_FIRST_CUSTOM, _SIGNATURE = 0x80, 0xFF


def read_units(edition: Edition, reader: Reader, head: dict[str, Any]) -> Samples:
    """The units of a report, as far as they can be read."""
    samples: Samples = {}
    marks: dict[str, Marks] = {}
    kept: list[dict[str, str]] = []
    undecoded = False
    while reader.left:
        start, number = reader.at, reader.count(1)
        unit = UNITS[edition].get(number)
        try:
            if unit is not None:
                part: dict[str, Any] = {}
                own: Marks = {}
                for item in unit.items:
                    item.read(reader, part, own)
                sample = samples.setdefault(unit.stream, dict(head))
                if _said(sample, part):
                    kept.append(_hex(number, reader.data[start + 1 : reader.at]))
                else:
                    marks.setdefault(unit.stream, {}).update(_merge(sample, part, own))
                continue
            if _FIRST_CUSTOM <= number < _SIGNATURE:
                kept.append(_hex(number, reader.take(reader.count(2))))
                continue
        except CutShortError:
            pass
        # A unit without a readable length: what follows it cannot be found.
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
    """Whether a unit came twice, and the second would take the place of the first."""
    for name, value in part.items():
        there = sample.get(name)
        if isinstance(there, dict) and isinstance(value, dict):
            if _said(there, value):
                return True
        elif name in sample and not (_objects(there) and _objects(value)):
            return True
    return False


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _merge(sample: dict[str, Any], part: dict[str, Any], marks: Marks) -> Marks:
    """Add a unit to a sample; its marks, moved to where its objects went.

    Voltages and temperatures of one pack come in two units: objects of a list that have the same
    `no` and nothing else in common are one.
    """
    moved = dict(marks)
    for name, value in part.items():
        there = sample.get(name)
        if isinstance(there, dict) and isinstance(value, dict):
            there.update(value)
        elif isinstance(there, list) and isinstance(value, list):
            own = {
                at: moved.pop(at) for at in marks if at.startswith(f"/{name}/")
            }  # taken out first: an index may be another's new one
            for index, entry in enumerate(value):
                to = _place(there, entry)
                there[to : to + 1] = [there[to] | entry if to < len(there) else entry]
                for at, mark in within(own, f"/{name}/{index}").items():
                    moved[f"/{name}/{to}{at}"] = mark
        else:
            sample[name] = value
    return moved


def _place(entries: list[dict[str, Any]], entry: dict[str, Any]) -> int:
    """The index of the object that `entry` completes, or of a new one."""
    for index, other in enumerate(entries):
        if other.get("no") == entry.get("no") is not None and other.keys() & entry.keys() == {"no"}:
            return index
    return len(entries)


def marked(
    sample: dict[str, Any], marks: Marks, kept: list[dict[str, str]], *, undecoded: bool = False
) -> dict[str, Any]:
    """The sample with its marks in `quality`, raw counts in `raw` and units no table knows."""
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


def _hex(number: int, data: bytes) -> dict[str, str]:
    return {"id": f"0x{number:02X}", "hex": data.hex()}


def write_units(edition: Edition, samples: Samples, out: bytearray) -> None:
    """Known units in the order of their numbers, then what was kept as hexadecimal."""
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
    """What is written as such a unit: the sample, or each object of a list without a count."""
    marks = {
        pointer: Mark(flag, (sample.get("raw") or {}).get(pointer))
        for pointer, flag in (sample.get("quality") or {}).items()
    }
    (item, *_) = unit.items
    if not isinstance(item, Repeat) or item.count_size:
        yield sample, marks
        return
    for index, entry in enumerate(sample.get(item.name) or ()):
        own = within(marks, f"/{item.name}/{index}")
        yield {item.name: [entry]}, {f"/{item.name}/0{at}": mark for at, mark in own.items()}
