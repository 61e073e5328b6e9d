"""A whole frame: start bytes, command, response, identifier, length, check byte, data.

One frame becomes at most one sample for each of `session`, `nev`, `battery` and `alarm`, in the
form vehicles send as JSON. `ts` is text with the zone GMT+8, which the frame itself does not carry.
Units that no table knows are kept as hexadecimal under `units`. A report that cannot be read to its
end is read as far as possible. Source: GB/T 32960.3-2016, clause 6 and annex B; -2025.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import xor
from types import MappingProxyType
from typing import Any

from ingest.gbt32960.items import (
    OUT_OF_RANGE,
    Choice,
    CutShortError,
    Mark,
    Marks,
    Number,
    Reader,
    Text,
    absent,
    padded,
    sentinel,
    text,
)
from ingest.gbt32960.own import OwnUnits
from ingest.gbt32960.report import Samples, marked, marks_of, read_units, write_units
from ingest.gbt32960.tables import Edition
from ingest.model import Defect, Reason

CONTENT_TYPE = "application/vnd.gbt32960"
"""MQTT 5 content type of a frame."""

FLAGS = ("abnormal", "invalid", "out_of_range", "undecoded", "repeated", "estimated")
"""Flags noted in `quality` of a frame's samples.

`repeated`: the unit came before, so this one is kept as hexadecimal. `estimated`: `ts` is the time
of arrival.
"""
STREAMS = ("session", "nev", "battery", "alarm")
"""Streams that frames hold samples of."""

STARTS: dict[bytes, Edition] = {b"##": 2016, b"$$": 2025}
"""Start bytes of frames, and the edition that they stand for."""
_START_OF = {edition: start for start, edition in STARTS.items()}
_HEADER_BYTES = 24
_TIME_BYTES = 6
_VIN_BYTES = 17
_PLAIN = 1
_IS_COMMAND = 0xFE
"""Response byte of a frame that is no answer; GB/T 32960.3-2016, 6.3.2, table 4."""
_HEX = re.compile(
    rb"[\s\"']*+(?:0[xX])?+(?:23\s*+23|24\s*+24)(?:[\s\"']*+[0-9A-Fa-f]{2})*+[\s\"']*+$"
)
"""Pattern of `##` or `$$` and more bytes in hexadecimal, with white space or quotes around."""
_BASE64 = (b"IyM", b"JCQ")
"""Beginnings of base64 of `##` and `$$` (RFC 4648, 4): the first 16 bits, and 2 of the command."""
_QUOTES = b" \t\r\n\"'"
_MOST_DATA_BYTES = 65_531
_PACK_CODE_BYTES_2025 = 24
_RESPONSES = {
    1: "ok", 2: "error", 3: "vin_duplicate", 4: "vin_not_exist", 5: "signature_error",
    6: "structure_error", 7: "decrypt_error", 0xFE: "command",
}  # fmt: skip
_SERIAL = Number("session_seq", 2, 65_531, low=1)
_ICCID = Text("iccid", 20)
_CHIP_ID = Text("chip_id", 16)
_ACTIVATED = Choice("response", {1: "ok", 2: "error"})
_MOST_SYSTEMS = {2016: 250, 2025: 20}
_MOST_PACKS = 50


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


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, as read or to be written."""

    edition: Edition
    command: Command
    vin: str
    """VIN or another unique identifier, up to 17 characters."""
    samples: Samples
    """Samples by stream, without `ts` if the command carries no time."""
    response: int = _IS_COMMAND
    """Response byte. 0xFE: the frame is a command, as vehicles send it."""


def decode(payload: bytes, own: OwnUnits = MappingProxyType({})) -> Frame | Defect:
    """Return the frame of a payload, or a Defect if the payload is refused.

    `own` are units that the owner has described. The reason is `bad_envelope` for a frame without a
    sample of a vehicle, otherwise `bad_encoding`.
    """
    if len(payload) <= _HEADER_BYTES or payload[:2] not in STARTS:
        return Defect(Reason.BAD_ENCODING, f"no GB/T 32960 frame: {_looks_like(payload)}")
    data = payload[_HEADER_BYTES:-1]
    told = int.from_bytes(payload[22:24], "big")
    if told != len(data):
        if payload[_HEADER_BYTES + told + 1 :][:2] in STARTS:
            return Defect(Reason.BAD_ENCODING, "more than one frame in one message")
        return Defect(Reason.BAD_ENCODING, f"data unit of {len(data)} bytes, the frame says {told}")
    if reduce(xor, payload[2:]) != 0:
        return Defect(Reason.BAD_ENCODING, "wrong check byte")
    if payload[21] != _PLAIN:
        return Defect(Reason.BAD_ENCODING, f"encrypted data unit, method 0x{payload[21]:02X}")
    edition = STARTS[payload[:2]]
    fault = _no_vehicle(edition, payload[2], payload[3])
    if fault is not None:
        return Defect(Reason.BAD_ENVELOPE, fault)
    command = Command(payload[2])
    vin = text(payload[4:21])
    try:
        samples = _samples(edition, command, payload[3], vin, data, own)
    except CutShortError:
        return Defect(Reason.BAD_ENCODING, "the data unit is cut short")
    if not samples:
        return Defect(Reason.BAD_ENVELOPE, "a report without a unit")
    return Frame(edition, command, vin, samples, payload[3])


def _looks_like(payload: bytes) -> str:
    """Return what a payload is instead of a frame."""
    if payload[:2] in STARTS:
        return f"cut short after {len(payload)} bytes"
    if _HEX.match(payload):
        return "it looks like hexadecimal text of one; its bytes are wanted"
    if payload.lstrip(_QUOTES).startswith(_BASE64):
        return "it looks like base64 of one; its bytes are wanted"
    if payload.lstrip()[:1] in (b"{", b"["):
        return "it looks like JSON, whose topic ends with the name of its stream"
    return "begins with neither ## nor $$"


def _no_vehicle(edition: Edition, command: int, response: int) -> str | None:
    """Return why a frame says nothing of a vehicle; None if it does."""
    if command not in set(Command) - set(_2025_ONLY if edition == 2016 else ()):
        return f"command 0x{command:02X} carries no sample"
    if response != _IS_COMMAND and command != Command.ACTIVATE_ACK:
        told = _RESPONSES.get(response, "unknown")
        return f"answer of a platform to command 0x{command:02X}: 0x{response:02X}, {told}"
    return None


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame; raises ValueError for data that no frame can hold.

    Fields that have no place in the edition are left out; absent fields are written as "invalid".
    """
    data = _data(frame)
    if len(data) > _MOST_DATA_BYTES:
        raise ValueError(f"data unit of {len(data)} bytes, at most {_MOST_DATA_BYTES}")
    body = bytes([frame.command, frame.response]) + padded(frame.vin, _VIN_BYTES)
    body += bytes([_PLAIN]) + len(data).to_bytes(2, "big") + data
    return _START_OF[frame.edition] + body + bytes([reduce(xor, body)])


def _samples(
    edition: Edition, command: Command, response: int, vin: str, data: bytes, own: OwnUnits
) -> Samples:
    reader = Reader(data)
    head: dict[str, Any] = {}
    if command not in _UNTIMED:
        head["ts"] = _time(reader.take(_TIME_BYTES))
    if command in (Command.REALTIME, Command.RESEND):
        if command is Command.RESEND:
            head["resend"] = True
        return read_units(edition, reader, head, own)
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
            marks.pop("/response", None)
            _ACTIVATED.read(reader, session, marks)
    if reader.left:
        # For example a signature; it is kept, so nothing is lost.
        session["rest"] = reader.take(reader.left).hex()
    return {"session": marked(session, marks, [])}


def _read_login(edition: Edition, reader: Reader, session: dict[str, Any], marks: Marks) -> None:
    _SERIAL.read(reader, session, marks)
    _ICCID.read(reader, session, marks)
    count = _read_count(reader, session, marks, _MOST_SYSTEMS[edition])
    if edition == 2016:
        length = reader.count(1)
        flag = sentinel(length, 1)
        if flag is not None:
            marks["/pack_codes"] = Mark(flag)
            session["pack_codes"] = None
            return
        codes = count if length else 0
    else:
        raws = reader.take(count)
        session["packs_per_bms"] = [raw if raw <= _MOST_PACKS else None for raw in raws]
        for index, raw in enumerate(raws):
            if raw > _MOST_PACKS:
                flag = sentinel(raw, 1)
                marks[f"/packs_per_bms/{index}"] = Mark(flag) if flag else Mark(OUT_OF_RANGE, raw)
        length = _PACK_CODE_BYTES_2025
        codes = sum(raw for raw in raws if sentinel(raw, 1) is None)
    session["pack_codes"] = [text(reader.take(length), exact=True) for _ in range(codes)]


def _read_count(reader: Reader, session: dict[str, Any], marks: Marks, most: int) -> int:
    """Return how many battery systems follow, even if the count is beyond the edition's range."""
    raw = reader.count(1)
    flag = sentinel(raw, 1)
    session["bms_count"] = raw if raw <= most else None
    if flag is not None:
        marks["/bms_count"] = Mark(flag)
        return 0
    if raw > most:
        marks["/bms_count"] = Mark(OUT_OF_RANGE, raw)
    return raw


def _time(raw: bytes) -> str:
    """Return RFC 3339 text in GMT+8; the reader of `ts` refuses it if there is no such time."""
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
        write_units(frame.edition, frame.samples, out)
    else:
        _write_session(frame, first, out)
        out += bytes.fromhex(first.get("rest", ""))
    return bytes(out)


def _write_session(frame: Frame, session: Mapping[str, Any], out: bytearray) -> None:
    marks = marks_of(session)
    match frame.command:
        case Command.LOGIN:
            _SERIAL.write(session, marks, out)
            _ICCID.write(session, marks, out)
            _write_packs(frame.edition, session, marks, out)
        case Command.LOGOUT:
            _SERIAL.write(session, marks, out)
        case Command.ACTIVATE:
            key = bytes.fromhex(session.get("public_key") or "")
            _CHIP_ID.write(session, marks, out)
            out += len(key).to_bytes(2, "big") + key + padded(frame.vin, _VIN_BYTES)
        case Command.ACTIVATE_ACK:
            _ACTIVATED.write(session, marks, out)


def _write_packs(
    edition: Edition, session: Mapping[str, Any], marks: Marks, out: bytearray
) -> None:
    codes = session.get("pack_codes")
    count, mark = session.get("bms_count"), marks.get("/bms_count")
    if count is None and mark is None:
        count = len(session.get("packs_per_bms") or codes or ())
    Number("bms_count", 1, _MOST_SYSTEMS[edition]).write_one(count, mark, out)
    if edition == 2016:
        length = max(map(_code_bytes, codes or ()), default=0)
        if codes is None and "/pack_codes" in marks:
            out += absent(marks["/pack_codes"], 1)
        else:
            out.append(length)
    else:
        length = _PACK_CODE_BYTES_2025
        for index, packs in enumerate(session.get("packs_per_bms") or ()):
            one = marks.get(f"/packs_per_bms/{index}")
            Number("packs", 1, _MOST_PACKS).write_one(packs, one, out)
    for code in codes or ():
        out += padded(code, length)


def _code_bytes(code: str) -> int:
    return (len(code) - 2) // 2 if code.startswith("0x") else len(code)
