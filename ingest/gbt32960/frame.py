"""A whole frame: start bytes, command, response, identifier, length, check byte, data.

One frame becomes at most one sample for each of `session`, `nev`, `battery` and `alarm`, in the
form vehicles send as JSON; `ts` is text with the zone the wire does not carry, GMT+8. What a frame
says that no table knows is kept as hexadecimal under `units`, and a frame that cannot be read to
its end is read as far as it goes. Source: GB/T 32960.3-2016, clause 6 and annex B; -2025.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import xor
from typing import Any

from ingest.gbt32960.items import (
    OUT_OF_RANGE,
    CutShortError,
    Mark,
    Marks,
    Number,
    Reader,
    Repeat,
    Text,
    padded,
    text,
    within,
)
from ingest.gbt32960.tables import UNITS, Edition, Unit
from ingest.model import Fault, Reason

CONTENT_TYPE = "application/vnd.gbt32960"
"""MQTT 5 content type of a frame."""

FLAGS = ("abnormal", "invalid", "out_of_range", "undecoded", "estimated")
"""What is noted in `quality` of the samples of a frame; the last where `ts` is its arrival."""
STREAMS = ("session", "nev", "battery", "alarm")
"""What frames hold samples of."""

_STARTS: dict[bytes, Edition] = {b"##": 2016, b"$$": 2025}
_START_OF = {edition: start for start, edition in _STARTS.items()}
_HEADER_BYTES = 24
_TIME_BYTES = 6
_VIN_BYTES = 17
_PLAIN = 1
_MOST_DATA_BYTES = 65_531
_FIRST_CUSTOM, _SIGNATURE = 0x80, 0xFF
_PACK_CODE_BYTES_2025 = 24
_RESPONSES = {
    1: "ok", 2: "error", 3: "vin_duplicate", 4: "vin_not_exist", 5: "signature_error",
    6: "structure_error", 7: "decrypt_error", 0xFE: "command",
}  # fmt: skip
_SERIAL = Number("session_seq", 2, 65_531, low=1)
_ICCID = Text("iccid", 20)
_CHIP_ID = Text("chip_id", 16)


class Command(enum.IntEnum):
    """Commands that carry data of a vehicle."""

    LOGIN = 1
    REALTIME = 2
    RESEND = 3
    LOGOUT = 4
    HEARTBEAT = 7
    ACTIVATE = 9
    ACTIVATE_ACK = 10


_EVENTS = {
    Command.LOGIN: "login", Command.LOGOUT: "logout", Command.HEARTBEAT: "heartbeat",
    Command.ACTIVATE: "activate", Command.ACTIVATE_ACK: "activate_ack",
}  # fmt: skip
_UNTIMED = (Command.HEARTBEAT, Command.ACTIVATE_ACK)
"""Commands whose data unit has no time."""
_2025_ONLY = (Command.ACTIVATE, Command.ACTIVATE_ACK)

_REPORTED = ("nev", "battery", "alarm")
"""Streams of a report; the first of them that a frame has keeps what no table knows."""

Samples = dict[str, dict[str, Any]]
"""By stream."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, as read or to be written."""

    edition: Edition
    command: Command
    vin: str
    """Or another unique identifier, up to 17 characters."""
    samples: Samples
    """Without `ts` where the command carries no time."""
    response: int = 0xFE
    """0xFE: a command, as vehicles send it."""


def decode(payload: bytes) -> Frame | Fault:
    """The frame of a payload, or why it is none; `bad_encoding` for all but its command."""
    if len(payload) <= _HEADER_BYTES or payload[:2] not in _STARTS:
        return Fault(Reason.BAD_ENCODING, "no GB/T 32960 frame: begins with neither ## nor $$")
    data = payload[_HEADER_BYTES:-1]
    told = int.from_bytes(payload[22:24], "big")
    if told != len(data):
        return Fault(Reason.BAD_ENCODING, f"data unit of {len(data)} bytes, the frame says {told}")
    if reduce(xor, payload[2:]) != 0:
        return Fault(Reason.BAD_ENCODING, "wrong check byte")
    if payload[21] != _PLAIN:
        return Fault(Reason.BAD_ENCODING, f"encrypted data unit, method 0x{payload[21]:02X}")
    edition = _STARTS[payload[:2]]
    if payload[2] not in set(Command) - set(_2025_ONLY if edition == 2016 else ()):  # noqa: PLR2004  a year
        return Fault(Reason.BAD_ENVELOPE, f"command 0x{payload[2]:02X} carries no sample")
    command = Command(payload[2])
    vin = text(payload[4:21])
    try:
        samples = _samples(edition, command, payload[3], vin, data)
    except CutShortError:
        return Fault(Reason.BAD_ENCODING, "the data unit is cut short")
    return Frame(edition, command, vin, samples, payload[3])


def encode(frame: Frame) -> bytes:
    """The bytes of a frame; raises ValueError for what no frame can hold.

    Fields that have no place in the edition are left out, absent ones are written as "invalid".
    """
    data = _data(frame)
    if len(data) > _MOST_DATA_BYTES:
        raise ValueError(f"data unit of {len(data)} bytes, at most {_MOST_DATA_BYTES}")
    body = bytes([frame.command, frame.response]) + padded(frame.vin, _VIN_BYTES)
    body += bytes([_PLAIN]) + len(data).to_bytes(2, "big") + data
    return _START_OF[frame.edition] + body + bytes([reduce(xor, body)])


def _samples(edition: Edition, command: Command, response: int, vin: str, data: bytes) -> Samples:
    reader = Reader(data)
    head: dict[str, Any] = {}
    if command not in _UNTIMED:
        head["ts"] = _time(reader.take(_TIME_BYTES))
    if command in (Command.REALTIME, Command.RESEND):
        if command is Command.RESEND:
            head["resend"] = True
        return _units(edition, reader, head)
    session = head | {"event": _EVENTS[command], "vin": vin}
    marks: Marks = {}
    session["response"] = _RESPONSES.get(response)
    if session["response"] is None:
        marks["/response"] = Mark(OUT_OF_RANGE, response)
    match command:
        case Command.LOGIN:
            _read_login(edition, reader, session, marks)
        case Command.LOGOUT:
            _SERIAL.read(reader, session, marks)
        case Command.ACTIVATE:
            _CHIP_ID.read(reader, session, marks)
            session["public_key"] = reader.take(reader.count(2)).hex()
            reader.take(_VIN_BYTES)
        case Command.ACTIVATE_ACK:
            session["response"] = {1: "ok", 2: "error"}.get(reader.count(1))
    if reader.left:
        # A signature, for one; nothing is lost.
        session["rest"] = reader.take(reader.left).hex()
    return {"session": _marked(session, marks, [])}


def _read_login(edition: Edition, reader: Reader, session: dict[str, Any], marks: Marks) -> None:
    _SERIAL.read(reader, session, marks)
    _ICCID.read(reader, session, marks)
    session["bms_count"] = count = reader.count(1)
    if edition == 2016:  # noqa: PLR2004  a year
        length = reader.count(1)
        codes = count if length else 0
    else:
        session["packs_per_bms"] = list(reader.take(count))
        length, codes = _PACK_CODE_BYTES_2025, sum(session["packs_per_bms"])
    session["pack_codes"] = [text(reader.take(length), exact=True) for _ in range(codes)]


def _units(edition: Edition, reader: Reader, head: dict[str, Any]) -> Samples:
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
        _marked(sample, marks.get(stream, {}), more, undecoded=undecoded and stream == first)
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


def _marked(
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


def _time(raw: bytes) -> str:
    """RFC 3339 in GMT+8; a time that is none is left for the reader of `ts` to refuse."""
    year, month, day, hour, minute, second = raw
    return f"20{year:02d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}+08:00"


def _raw_time(ts: str) -> bytes:
    if not (ts.startswith("20") and ts.endswith("+08:00")):
        raise ValueError("the time of a frame is written in GMT+8")
    return bytes(int(ts[at : at + 2]) for at in (2, 5, 8, 11, 14, 17))


def _data(frame: Frame) -> bytes:
    out = bytearray()
    first = next(iter(frame.samples.values()))
    if frame.command not in _UNTIMED:
        out += _raw_time(first["ts"])
    if frame.command in (Command.REALTIME, Command.RESEND):
        _write_units(frame, out)
    else:
        _write_session(frame, first, out)
        out += bytes.fromhex(first.get("rest", ""))
    return bytes(out)


def _write_units(frame: Frame, out: bytearray) -> None:
    """Known units in the order of their numbers, then what was kept as hexadecimal."""
    for number, unit in UNITS[frame.edition].items():
        for source, marks in _sources(unit, frame.samples.get(unit.stream, {})):
            if any(item.present(source) for item in unit.items):
                out.append(number)
                for item in unit.items:
                    item.write(source, marks, out)
    for sample in frame.samples.values():
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


def _code_bytes(code: str) -> int:
    return (len(code) - 2) // 2 if code.startswith("0x") else len(code)


def _write_session(frame: Frame, session: Mapping[str, Any], out: bytearray) -> None:
    match frame.command:
        case Command.LOGIN:
            codes = session.get("pack_codes") or ()
            _SERIAL.write(session, {}, out)
            _ICCID.write(session, {}, out)
            out.append(session.get("bms_count") or 0)
            if frame.edition == 2016:  # noqa: PLR2004  a year
                length = max(map(_code_bytes, codes), default=0)
                out.append(length)
            else:
                length = _PACK_CODE_BYTES_2025
                out += bytes(session.get("packs_per_bms") or ())
            for code in codes:
                out += padded(code, length)
        case Command.LOGOUT:
            _SERIAL.write(session, {}, out)
        case Command.ACTIVATE:
            key = bytes.fromhex(session.get("public_key") or "")
            _CHIP_ID.write(session, {}, out)
            out += len(key).to_bytes(2, "big") + key + padded(frame.vin, _VIN_BYTES)
        case Command.ACTIVATE_ACK:
            out.append(1 if session.get("response") == "ok" else 2)
