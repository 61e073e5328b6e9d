"""The units of both editions, as data: place, range, scale and stream of every item.

An edition is chosen by the start bytes of a frame, never by a unit's number: 06, 07 and 08 changed
their meaning. Source: GB/T 32960.3-2016, tables 9 to 18 and annex B; GB/T 32960.3-2025 from two
transcriptions that agree (no official copy was seen).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from ingest.gbt32960.bits import BrakePedal, FlagLevels, Flags, Gear, HexCodes, Location
from ingest.gbt32960.items import Choice, Item, Number
from ingest.gbt32960.lists import Numbers, Repeat

Edition = Literal[2016, 2025]

_WORKING = {1: "working", 2: "off"}


class Unit(NamedTuple):
    """One unit: the stream it belongs to and its items in the order of the wire."""

    stream: str
    items: Sequence[Item]


def _vehicle(speed: int, volts: int, amperes: int) -> list[Item]:
    """Return the items of table 9; the two pedals of annex B are listed separately."""
    return [
        Choice("status", {1: "started", 2: "off", 3: "other"}),
        Choice(
            "charge_status",
            {1: "parked_charging", 2: "driving_charging", 3: "not_charging", 4: "complete"},
        ),
        Choice("run_mode", {1: "ev", 2: "hybrid", 3: "fuel"}),
        Number("speed_kmh", 2, speed * 10, 10),
        Number("odometer_km", 4, 9_999_999, 10),
        Number("pack_voltage_v", 2, volts * 10, 10),
        Number("pack_current_a", 2, amperes * 20, 10, -amperes),
        Number("soc_pct", 1, 100),
        Choice("dcdc", _WORKING),
    ]


def _temperature(name: str, high: int = 250) -> Number:
    return Number(name, 1, high, 1, -40)


_INSULATION = Number("insulation_kohm", 2, 60_000)
_MOTOR_STATE = Choice("state", {1: "consuming", 2: "generating", 3: "off", 4: "ready"})


def _extremes(name: str, code_size: int, most_v: int) -> list[Item]:
    """Return items of table 16 (2016) or unit 32 (2025): system, number and value, four times."""
    codes = 250 if code_size == 1 else 65_531
    found: list[Item] = []
    for which, number, value in (
        ("max_cell", "cell", Number(f"{name}.max_cell.v", 2, most_v, 1000)),
        ("min_cell", "cell", Number(f"{name}.min_cell.v", 2, most_v, 1000)),
        ("max_temp", "probe", _temperature(f"{name}.max_temp.c")),
        ("min_temp", "probe", _temperature(f"{name}.min_temp.c")),
    ):
        size = code_size if number == "cell" else 1
        # Vehicles name systems and cells that do not exist, so any number is read.
        found += [
            Number(f"{name}.{which}.sys", 1, 253),
            Number(f"{name}.{which}.{number}", size, 253 if size == 1 else codes),
            value,
        ]
    return found


def _alarm(levels: int, flags: int, *more: Item) -> list[Item]:
    return [
        Number("max_level", 1, levels),
        Flags("flags", flags),
        *(HexCodes(f"faults.{part}") for part in ("ress", "motor", "engine", "other")),
        *more,
    ]


_CELL_V = Number("", 2, 60_000, 1000)
_PROBE_C = _temperature("")

_2016: dict[int, Unit] = {
    0x01: Unit("nev", [
        *_vehicle(220, 1000, 1000), Gear(), _INSULATION,
        Number("accel_pedal_pct", 1, 100), BrakePedal(),
    ]),
    0x02: Unit("nev", [Repeat("motors", [
        Number("no", 1, 253, low=1), _MOTOR_STATE, _temperature("controller_temp_c"),
        Number("speed_rpm", 2, 65_531, 1, -20_000), Number("torque_nm", 2, 65_531, 10, -2_000),
        _temperature("temp_c"), Number("input_v", 2, 60_000, 10),
        Number("dc_current_a", 2, 20_000, 10, -1_000),
    ], "no")]),
    0x03: Unit("nev", [
        Number("fuel_cell.voltage_v", 2, 20_000, 10), Number("fuel_cell.current_a", 2, 20_000, 10),
        Number("fuel_cell.h2_rate_kg_100km", 2, 60_000, 100),
        Numbers("fuel_cell.probe_temps_c", 2, _temperature("", 240)),
        Number("fuel_cell.h2_max_temp_c", 2, 2_400, 10, -40),
        Number("fuel_cell.h2_max_temp_probe", 1, 252, low=1),
        Number("fuel_cell.h2_max_conc_mgkg", 2, 60_000),
        Number("fuel_cell.h2_max_conc_sensor", 1, 252, low=1),
        Number("fuel_cell.h2_max_pressure_mpa", 2, 1_000, 10),
        Number("fuel_cell.h2_max_pressure_sensor", 1, 252, low=1),
        Choice("fuel_cell.hv_dcdc", _WORKING),
    ]),
    0x04: Unit("nev", [
        Choice("engine.state", {1: "on", 2: "off"}), Number("engine.crank_rpm", 2, 60_000),
        Number("engine.fuel_l_per_100km", 2, 60_000, 100),
    ]),
    0x05: Unit("nev", [Location()]),
    0x06: Unit("nev", _extremes("extremes", 1, 15_000)),
    0x07: Unit("alarm", _alarm(3, 19)),
    0x08: Unit("battery", [Repeat("packs", [
        Number("no", 1, 250, low=1), Number("voltage_v", 2, 10_000, 10),
        Number("current_a", 2, 20_000, 10, -1_000), Number("total_cells", 2, 65_531, low=1),
        Number("start_index", 2, 65_531, low=1), Numbers("cell_v", 1, _CELL_V),
    ], "cell_v")]),
    0x09: Unit("battery", [Repeat("packs", [
        Number("no", 1, 250, low=1), Numbers("probe_temps_c", 2, _PROBE_C),
    ], "probe_temps_c", leads=False)]),
}  # fmt: skip

_2025: dict[int, Unit] = {
    0x01: Unit("nev", [*_vehicle(500, 6000, 3000), Gear(may_be_invalid=True), _INSULATION]),
    0x02: Unit("nev", [Repeat("motors", [
        Number("no", 1, 253, low=1), _MOTOR_STATE, _temperature("controller_temp_c"),
        Number("speed_rpm", 2, 65_531, 1, -32_000), Number("torque_nm", 4, 400_000, 10, -20_000),
        _temperature("temp_c"),
    ], "no")]),
    0x03: Unit("nev", [
        Number("fuel_cell.h2_max_temp_c", 2, 250, 1, -40),
        Number("fuel_cell.h2_max_temp_probe", 1, 253, low=1),
        Number("fuel_cell.h2_max_conc_pct", 2, 60_000, 10_000),
        Number("fuel_cell.h2_max_conc_sensor", 1, 253, low=1),
        Number("fuel_cell.h2_max_pressure_mpa", 2, 1_000, 10),
        Number("fuel_cell.h2_max_pressure_sensor", 1, 253, low=1),
        Choice("fuel_cell.hv_dcdc", _WORKING), Number("fuel_cell.h2_remaining_pct", 1, 100),
        _temperature("fuel_cell.dcdc_temp_c"),
    ]),
    0x04: Unit("nev", [Number("engine.crank_rpm", 2, 60_000)]),
    0x05: Unit("nev", [Location(with_crs=True)]),
    0x06: Unit("alarm", _alarm(4, 28, FlagLevels("flag_levels"))),
    0x07: Unit("battery", [Repeat("packs", [
        Number("no", 1, 50, low=1), Number("voltage_v", 2, 60_000, 10),
        Number("current_a", 2, 60_000, 10, -3_000), Numbers("cell_v", 2, _CELL_V),
    ], "cell_v")]),
    0x08: Unit("battery", [Repeat("packs", [
        Number("no", 1, 50, low=1), Numbers("probe_temps_c", 2, _PROBE_C),
    ], "probe_temps_c", leads=False)]),
    0x30: Unit("nev", [Repeat("fuel_cell.stacks", [
        Number("no", 1, 253, low=1), Number("voltage_v", 2, 20_000, 10),
        Number("current_a", 2, 20_000, 10), Number("h2_inlet_kpa", 2, 5_000, 10, -100),
        Number("air_inlet_kpa", 2, 5_000, 10, -100), _temperature("air_inlet_temp_c"),
        Numbers("coolant_temps_c", 2, _PROBE_C),
    ], "no")]),
    0x31: Unit("battery", [Repeat("supercap", [
        Number("no", 1, 253, low=1), Number("voltage_v", 2, 10_000, 10),
        Number("current_a", 2, 60_000, 10, -3_000), Numbers("cell_v", 2, _CELL_V),
        Numbers("temps_c", 2, _PROBE_C),
    ], "no", count_size=0)]),
    0x32: Unit("battery", _extremes("supercap_extremes", 2, 60_000)),
}  # fmt: skip

UNITS: Mapping[Edition, Mapping[int, Unit]] = {2016: _2016, 2025: _2025}
