"""Custom units (0x80 to 0xFE) that an owner describes in a file: names, sizes, scales, offsets.

Their values go into the sample under the names that the file gives; names that the stream's schema
does not have end in `extra`. What the file leaves open has the defaults of `UnitFile` and
`FieldFile`. Source of the form of custom units: GB/T 32960.3-2016, 7.2.3, table 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

from ingest.errors import ConfigError
from ingest.gbt32960.items import (
    OUT_OF_RANGE,
    CutShortError,
    Mark,
    Marks,
    Reader,
    put,
    sentinel,
    text,
)

_ID = re.compile("0x([89a-e][0-9a-f]|f[0-9a-e])", re.IGNORECASE)
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){0,3}")
_MOST_WHOLE = 2**53
"""Greatest number that is written as an integer; JSON's readers know no greater ones exactly."""
_MOST_NUMBER_BYTES = 8
_MOST_SCALE = 1e15
_TAKEN = {"ts", "seq", "resend", "quality", "raw", "units"}
"""First steps of names that a sample of a frame uses itself."""


class FieldFile(Struct, forbid_unknown_fields=True):
    """One field, or several of a kind, as the file describes it."""

    bytes: Annotated[int, Meta(ge=1, le=256)]
    name: str | None = None
    """Name in the sample, with dots between an object and its member; without one: skipped."""
    scale: float = 1
    offset: float = 0
    """The value is raw * scale + offset."""
    signed: bool = False
    """In two's complement; such a field has no numbers for "abnormal" and "invalid"."""
    count: Annotated[int, Meta(ge=1, le=1_000)] = 1
    """More than one: an array."""
    words: dict[str, str] | None = None
    """Word for each raw number, which is the key."""
    text: bool = False
    """ASCII, padded at its end."""


class UnitFile(Struct, forbid_unknown_fields=True):
    """One unit, as the file describes it."""

    id: str
    """0x80 to 0xFE."""
    fields: list[FieldFile] = []
    stream: Literal["nev", "battery", "alarm"] = "nev"
    editions: tuple[Literal[2016, 2025], ...] = (2016, 2025)
    length_bytes: Literal[0, 1, 2] = 2
    """Size of the length in front of the unit; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class OwnField:
    """One field: its place in the sample and how it is read."""

    path: Sequence[str]
    """Empty for bytes that are skipped."""
    size: int
    count: int
    scale: Decimal
    offset: Decimal
    signed: bool
    words: Mapping[int, str] | None
    text: bool

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """Read the field and put its value into `into`, its marks into `marks`."""
        raws = [reader.take(self.size) for _ in range(self.count)]
        if not self.path:
            return
        found = [self._value(raw) for raw in raws]
        at = "/" + "/".join(self.path)
        one = self.count == 1
        for number, (_, mark) in enumerate(found):
            if mark is not None:
                marks[at if one else f"{at}/{number}"] = mark
        values = [value for value, _ in found]
        put(into, self.path, values[0] if one else values)

    def _value(self, raw: bytes) -> tuple[Any, Mark | None]:
        number = int.from_bytes(raw, "big", signed=self.signed)
        # A text of nothing but 0xFF is the greatest number of its size, as in the standard's texts.
        flag = None if self.signed else sentinel(number, self.size)
        if flag is not None:
            return None, Mark(flag)
        if self.text:
            return text(raw), None
        if self.words is not None:
            word = self.words.get(number)
            return word, Mark(OUT_OF_RANGE, number) if word is None else None
        value = number * self.scale + self.offset
        whole = abs(value) <= _MOST_WHOLE and value == value.to_integral_value()
        return int(value) if whole else float(value), None


@dataclass(frozen=True, slots=True)
class OwnUnit:
    """One unit that an owner has described."""

    stream: str
    length_bytes: int
    fields: Sequence[OwnField]

    @property
    def names(self) -> list[str]:
        """Names of its fields, dotted."""
        return [".".join(field.path) for field in self.fields if field.path]

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> bool:
        """Read the unit; return whether its fields are all of it.

        A unit that is shorter than its fields has only those that are there; raises CutShortError
        if the report ends before the unit does.
        """
        if not self.length_bytes:
            for field in self.fields:
                field.read(reader, into, marks)
            return True
        inner = Reader(reader.take(reader.count(self.length_bytes)))
        try:
            for field in self.fields:
                field.read(inner, into, marks)
        except CutShortError:
            return False
        return not inner.left


OwnUnits = Mapping[tuple[int, int], OwnUnit]
"""Units by (edition, number)."""


def own_units(file: Path | None) -> OwnUnits:
    """Return the units of a file, none if there is no file.

    Raises ConfigError with all problems if the file cannot be read or describes no units.
    """
    if file is None:
        return {}
    where = f"IOV_GBT32960_UNITS_FILE: {file}"
    try:
        document = orjson.loads(file.read_bytes())
    except OSError as exc:
        raise ConfigError([f"{where}: {exc.strerror}"]) from exc
    except orjson.JSONDecodeError as exc:
        raise ConfigError([f"{where}: not JSON at line {exc.lineno}, column {exc.colno}"]) from exc
    described = document.get("units") if isinstance(document, dict) else None
    if not isinstance(described, list):
        raise ConfigError([f'{where}: no list "units"'])
    units: dict[tuple[int, int], OwnUnit] = {}
    problems: list[str] = []
    for place, one in enumerate(described):
        try:
            unit = msgspec.convert(one, UnitFile)
            _add(units, unit)
        except (msgspec.ValidationError, ValueError) as exc:
            problems.append(f"{where}: units[{place}]: {exc}")
    if problems:
        raise ConfigError(problems)
    return units


def _add(units: dict[tuple[int, int], OwnUnit], unit: UnitFile) -> None:
    """Add a unit; raises ValueError if it cannot be read, or is there already."""
    if not _ID.fullmatch(unit.id):
        raise ValueError(f"the id {unit.id} is not from 0x80 to 0xFE")
    if not unit.length_bytes and not unit.fields:
        raise ValueError("length_bytes 0 needs fields: nothing else says where the unit ends")
    names = sorted(f"{one.name}." for one in unit.fields if one.name)
    for name, after in pairwise(names):
        if after.startswith(name):
            raise ValueError(f"the name {name[:-1]} comes twice, or is an object in another")
    made = OwnUnit(unit.stream, unit.length_bytes, [_field(one) for one in unit.fields])
    for edition in unit.editions:
        place = (edition, int(unit.id, 16))
        if place in units:
            raise ValueError(f"{unit.id} is described twice for the edition {edition}")
        units[place] = made


def _field(one: FieldFile) -> OwnField:
    path = one.name.split(".") if one.name is not None else []
    if path and not _NAME.fullmatch(".".join(path)):
        raise ValueError(f"the name {one.name} is not like speed_kmh, or cabin.temp_c")
    if path and path[0] in _TAKEN:
        raise ValueError(f"the name {one.name} is taken: every sample of a frame has it")
    if one.text and (one.words or one.signed or one.scale != 1 or one.offset != 0):
        raise ValueError(f"{one.name}: a text has neither words nor a scale, offset or sign")
    if not one.text and one.bytes > _MOST_NUMBER_BYTES and one.name:
        raise ValueError(f"{one.name}: a number has at most {_MOST_NUMBER_BYTES} bytes")
    if max(abs(one.scale), abs(one.offset)) > _MOST_SCALE:
        raise ValueError(f"{one.name}: scale and offset are at most {_MOST_SCALE:g}")
    if any("\0" in word for word in (one.words or {}).values()):
        raise ValueError(f"{one.name}: a word holds U+0000, which PostgreSQL cannot store")
    words = None if one.words is None else {int(raw, 0): word for raw, word in one.words.items()}
    return OwnField(
        path,
        one.bytes,
        one.count,
        Decimal(repr(one.scale)),
        Decimal(repr(one.offset)),
        one.signed,
        words,
        one.text,
    )
