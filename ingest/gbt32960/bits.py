"""Items with a format of their own: gear, brake pedal, location, alarm flags, fault codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingest.gbt32960.items import (
    ABNORMAL,
    INVALID,
    OUT_OF_RANGE,
    Choice,
    Mark,
    Marks,
    Number,
    Reader,
    absent,
    sentinel,
    within,
)

ALARM_FLAGS = (
    "temp_diff", "battery_high_temp", "ress_overvoltage", "ress_undervoltage", "soc_low",
    "cell_overvoltage", "cell_undervoltage", "soc_too_high", "soc_jump", "ress_mismatch",
    "cell_poor_consistency", "insulation", "dcdc_temp", "brake_system", "dcdc_status",
    "motor_controller_temp", "hv_interlock", "motor_temp", "ress_overcharge",
    # 2025 from here on
    "motor_overspeed", "motor_overcurrent", "supercap_overtemp", "supercap_overvoltage",
    "ress_thermal_event", "h2_leak", "h2_pressure", "h2_temp", "fc_stack_overtemp",
)  # fmt: skip
"""Names by bit, the least significant first: GB/T 32960.3-2016, table 18, and 2025, unit 06."""

_GEARS = ("N", *map(str, range(1, 13)), "R", "D", "P")
_BRAKE_FORCE, _DRIVE_FORCE, _GEAR_INVALID = 0x10, 0x20, 0x80
_BRAKE_WITHOUT_TRAVEL = 101
_LOCATION_INVALID, _SOUTH, _WEST = 1, 2, 4
_FLAGS_SIZE = 4
_MOST_LEVEL = 4


@dataclass(frozen=True, slots=True)
class Gear:
    """Gear, drive force and brake force in one byte (2016, table A.1)."""

    may_be_invalid: bool = False
    """True for the 2025 edition: bit 7 means "invalid". In 2016 bit 7 is reserved."""

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        raw = reader.count(1)
        into |= {"gear": None, "drive_force": None, "brake_force": None}
        if sentinel(raw, 1) or (self.may_be_invalid and raw & _GEAR_INVALID):
            flag = ABNORMAL if sentinel(raw, 1) == ABNORMAL else INVALID
            marks |= {f"/{name}": Mark(flag) for name in ("gear", "drive_force", "brake_force")}
            return
        into["gear"] = _GEARS[raw & 0x0F]
        into["drive_force"] = bool(raw & _DRIVE_FORCE)
        into["brake_force"] = bool(raw & _BRAKE_FORCE)

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        if source.get("gear") is None:
            out += absent(marks.get("/gear"), 1)
            return
        raw = _GEARS.index(source["gear"])
        raw |= _DRIVE_FORCE if source.get("drive_force") else 0
        raw |= _BRAKE_FORCE if source.get("brake_force") else 0
        out.append(raw)

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return "gear" in source


@dataclass(frozen=True, slots=True)
class BrakePedal:
    """Travel of the brake pedal; 101 means that it is applied but its travel is not known."""

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        if reader.left and reader.data[reader.at] == _BRAKE_WITHOUT_TRAVEL:
            reader.take(1)
            into |= {"brake_pedal_pct": None, "brake_applied": True}
        else:
            _TRAVEL.read(reader, into, marks)

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        if source.get("brake_pedal_pct") is None and source.get("brake_applied"):
            out.append(_BRAKE_WITHOUT_TRAVEL)
        else:
            _TRAVEL.write(source, marks, out)

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return "brake_pedal_pct" in source or "brake_applied" in source


_TRAVEL = Number("brake_pedal_pct", 1, 100)


_CRS = Choice("crs", {1: "WGS84", 2: "GCJ02", 3: "OTHER"})
_COORDINATES = tuple(
    (name, Number(name, 4, most), negative)
    for name, most, negative in (("lon", 180_000_000, _WEST), ("lat", 90_000_000, _SOUTH))
)


@dataclass(frozen=True, slots=True)
class Location:
    """Status byte, coordinate system (if the edition has it), longitude, latitude (table 15)."""

    with_crs: bool = False

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        status = reader.count(1)
        if self.with_crs:
            _CRS.read(reader, into, marks)
        place: dict[str, Any] = {"valid": not status & _LOCATION_INVALID}
        for name, number, negative in _COORDINATES:
            own: Marks = {}
            number.read(reader, place, own)
            marks |= {f"/location{pointer}": mark for pointer, mark in own.items()}
            if place[name] is not None:
                place[name] = place[name] / 1e6 * (-1 if status & negative else 1)
        into["location"] = place

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        place = source.get("location") or {}
        status = 0 if place.get("valid") else _LOCATION_INVALID
        counts: dict[str, int | None] = {}
        for name, _, negative in _COORDINATES:
            degrees = place.get(name)
            counts[name] = None if degrees is None else round(abs(degrees) * 1e6)
            status |= negative if degrees is not None and degrees < 0 else 0
        out.append(status)
        if self.with_crs:
            _CRS.write(source, marks, out)
        for _, number, _ in _COORDINATES:
            number.write(counts, within(marks, "/location"), out)

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return source.get("location") is not None


@dataclass(frozen=True, slots=True)
class Flags:
    """Four bytes, a bit for each general alarm; a set reserved bit becomes an out-of-range mark."""

    name: str
    count: int
    """Number of bits that the edition names."""

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        raw = reader.count(_FLAGS_SIZE)
        flag = sentinel(raw, _FLAGS_SIZE)
        if flag is not None:
            into[self.name] = None
            marks[f"/{self.name}"] = Mark(flag)
            return
        into[self.name] = [ALARM_FLAGS[bit] for bit in range(self.count) if raw >> bit & 1]
        if raw >> self.count:
            marks[f"/{self.name}"] = Mark(OUT_OF_RANGE, raw)

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        mark = marks.get(f"/{self.name}")
        flags = source.get(self.name)
        if flags is None:
            out += absent(mark, _FLAGS_SIZE)
        else:
            bits = sum(1 << ALARM_FLAGS.index(flag) for flag in flags)
            reserved = mark.raw if mark is not None and mark.raw is not None else 0
            out += (bits | reserved).to_bytes(_FLAGS_SIZE, "big")

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return self.name in source


@dataclass(frozen=True, slots=True)
class FlagLevels:
    """List N5: a count, then the bit number and the level of each flag (2025, unit 06)."""

    name: str

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        count = reader.count(1)
        flag = sentinel(count, 1)
        if flag is not None:
            into[self.name] = None
            marks[f"/{self.name}"] = Mark(flag)
            return
        pairs = reader.take(2 * count)
        known, foreign = [], []
        for bit, level in zip(pairs[::2], pairs[1::2], strict=True):
            if bit < len(ALARM_FLAGS) and level <= _MOST_LEVEL:
                known.append({"flag": ALARM_FLAGS[bit], "level": level})
            else:
                foreign.append([bit, level])
        into[self.name] = known
        if foreign:
            marks[f"/{self.name}"] = Mark(OUT_OF_RANGE, foreign)

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        mark = marks.get(f"/{self.name}")
        levels = source.get(self.name)
        if levels is None and mark is not None:
            out += absent(mark, 1)
            return
        pairs = [[ALARM_FLAGS.index(one["flag"]), one["level"]] for one in levels or ()]
        pairs += mark.raw if mark is not None and mark.raw is not None else []
        out.append(len(pairs))
        for pair in pairs:
            out += bytes(pair)

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return self.name in source


@dataclass(frozen=True, slots=True)
class HexCodes:
    """A count, then that many codes of four bytes, kept as the maker wrote them."""

    name: str

    def read(self, reader: Reader, into: dict[str, Any], marks: Marks) -> None:
        """See Item."""
        count = reader.count(1)
        group, part = self.name.split(".")
        flag = sentinel(count, 1)
        if flag is not None:
            marks[f"/{group}/{part}"] = Mark(flag)
            codes = None
        else:
            codes = [f"0x{reader.count(4):08X}" for _ in range(count)]
        into.setdefault(group, {})[part] = codes

    def write(self, source: Mapping[str, Any], marks: Marks, out: bytearray) -> None:
        """See Item."""
        group, part = self.name.split(".")
        codes = (source.get(group) or {}).get(part)
        mark = marks.get(f"/{group}/{part}")
        if codes is None and mark is not None:
            out += absent(mark, 1)
            return
        out.append(len(codes or ()))
        for code in codes or ():
            out += int(code, 16).to_bytes(4, "big")

    def present(self, source: Mapping[str, Any]) -> bool:
        """See Item."""
        return bool(source.get(self.name.split(".")[0]))
