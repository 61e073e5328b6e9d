from __future__ import annotations

import base64
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.check import Checker
from ingest.config import Settings
from ingest.errors import ConfigError
from ingest.gbt32960 import CONTENT_TYPE, Command, Frame, decode, encode
from ingest.gbt32960.tables import Edition
from ingest.model import Defect, Reason, Rejected, Row
from tests.frames import (
    AT,
    CATALOGUE,
    CHECKER,
    TIME,
    TS,
    VIN,
    frame,
    outcomes,
    rows,
    samples,
)
from tests.support import column, delivery, every_column

VEHICLE_2016 = bytes.fromhex("01 01 03 01 01D4 000315A3 0DB8 2795 47 01 2E 1FFF 0E 65")
VEHICLE_2025 = bytes.fromhex("01 01 03 01 0BB8 000315A3 1F40 7595 47 01 8E 1FFF")


def test_the_vehicle_unit_of_2016_in_engineering_units() -> None:
    assert samples(VEHICLE_2016)["nev"] == {
        "ts": TS, "status": "started", "charge_status": "not_charging", "run_mode": "ev",
        "speed_kmh": 46.8, "odometer_km": 20214.7, "pack_voltage_v": 351.2, "pack_current_a": 13.3,
        "soc_pct": 71, "dcdc": "working", "gear": "D", "drive_force": True, "brake_force": False,
        "insulation_kohm": 8191, "accel_pedal_pct": 14, "brake_pedal_pct": None,
        "brake_applied": True,
    }  # fmt: skip


def test_the_same_unit_of_2025_has_other_ranges_and_no_pedals() -> None:
    found = samples(VEHICLE_2025, edition=2025)["nev"]
    assert (found["speed_kmh"], found["pack_voltage_v"], found["pack_current_a"]) == (
        300.0, 800.0, 10.1,
    )  # fmt: skip
    assert found["gear"] is None
    assert found["quality"] == dict.fromkeys(("/gear", "/drive_force", "/brake_force"), "invalid")
    assert "accel_pedal_pct" not in found


def test_the_meaning_of_a_unit_is_chosen_by_the_start_bytes() -> None:
    extremes = bytes.fromhex("06 01 11 0F48 01 03 0F2F 01 02 47 01 09 44")
    assert samples(extremes)["nev"]["extremes"] == {
        "max_cell": {"sys": 1, "cell": 17, "v": 3.912},
        "min_cell": {"sys": 1, "cell": 3, "v": 3.887},
        "max_temp": {"sys": 1, "probe": 2, "c": 31},
        "min_temp": {"sys": 1, "probe": 9, "c": 28},
    }
    alarm = bytes.fromhex("06 04 00800800 01 00000A21 00 00 00 02 1704 0B01")
    assert samples(alarm, edition=2025)["alarm"] == {
        "ts": TS, "max_level": 4, "flags": ["insulation", "ress_thermal_event"],
        "faults": {"ress": ["0x00000A21"], "motor": [], "engine": [], "other": []},
        "flag_levels": [{"flag": "ress_thermal_event", "level": 4},
                        {"flag": "insulation", "level": 1}],
    }  # fmt: skip


def test_an_alarm_flag_is_the_least_significant_bit_first() -> None:
    found = samples(bytes.fromhex("07 02 00002000 00 00 00 00"))["alarm"]
    assert (found["max_level"], found["flags"]) == (2, ["brake_system"])


def test_level_3_without_flags_is_a_sample_like_any_other() -> None:
    payload = frame(TIME + bytes.fromhex("07 03 00000000 00 00 00 01 00000A21"))
    found = rows(payload)["alarm"]
    assert (found["max_level"], found["flags"]) == (3, [])
    assert found["faults_other"] == ["0x00000A21"]


def test_motors_of_both_editions() -> None:
    one = samples(bytes.fromhex("02 01 01 02 51 5E38 4C34 57 0DB5 26AC"))["nev"]["motors"]
    assert one == [{
        "no": 1, "state": "generating", "controller_temp_c": 41, "speed_rpm": 4120,
        "torque_nm": -49.2, "temp_c": 47, "input_v": 350.9, "dc_current_a": -10.0,
    }]  # fmt: skip
    two = samples(bytes.fromhex("02 01 01 01 51 8D18 00030EC5 57"), edition=2025)["nev"]["motors"]
    assert two == [{
        "no": 1, "state": "consuming", "controller_temp_c": 41, "speed_rpm": 4120,
        "torque_nm": 38.9, "temp_c": 47,
    }]  # fmt: skip


def test_voltages_and_temperatures_of_a_pack_are_put_together() -> None:
    volts = bytes.fromhex("08 01 01 0DB8 2795 0168 00C9 02 0F3D FFFF")
    temperatures = bytes.fromhex("09 02 02 0001 41 01 0002 47 FF")
    found = samples(volts + temperatures)["battery"]
    assert found["packs"] == [
        {"no": 1, "voltage_v": 351.2, "current_a": 13.3, "total_cells": 360, "start_index": 201,
         "cell_v": [3.901, None], "probe_temps_c": [31, None]},
        {"no": 2, "probe_temps_c": [25]},
    ]  # fmt: skip
    assert found["quality"] == {
        "/packs/0/cell_v/1": "invalid", "/packs/0/probe_temps_c/1": "invalid",
    }  # fmt: skip


def test_units_of_2025_only() -> None:
    stack = bytes.fromhex("30 01 01 089D 0371 0642 05C8 51 0002 6A FF")
    cap = bytes.fromhex("31 01 01E2 74B8 0001 0A32 0001 45")
    extremes = bytes.fromhex("32 01 0001 0A32 01 0102 0A28 01 0001 45 01 0001 44")
    found = samples(stack + cap + extremes, edition=2025)
    assert found["nev"]["fuel_cell"]["stacks"] == [{
        "no": 1, "voltage_v": 220.5, "current_a": 88.1, "h2_inlet_kpa": 60.2,
        "air_inlet_kpa": 48.0, "air_inlet_temp_c": 41, "coolant_temps_c": [66, None],
    }]  # fmt: skip
    assert found["battery"]["supercap"] == [
        {"no": 1, "voltage_v": 48.2, "current_a": -12.0, "cell_v": [2.61], "temps_c": [29]}
    ]
    assert found["battery"]["supercap_extremes"]["min_cell"] == {"sys": 1, "cell": 258, "v": 2.6}


def test_a_position_is_signed_by_its_status_and_only_2025_names_the_system() -> None:
    found = samples(bytes.fromhex("05 03 073D8CC5 01DC89C0"))["nev"]
    assert found["location"] == {"valid": False, "lon": 121.474245, "lat": -31.2304}
    assert "crs" not in found
    found = samples(bytes.fromhex("05 04 02 073D8CC5 01DC89C0"), edition=2025)["nev"]
    assert found["location"] == {"valid": True, "lon": -121.474245, "lat": 31.2304}
    assert found["crs"] == "GCJ02"


def test_sentinels_are_null_and_out_of_range_counts_are_kept() -> None:
    raw = bytes.fromhex("01 FE FF 03 FFFE FFFFFFFF FFFF 4E21 65 09 FF FFFF FE FF")
    found = samples(raw)["nev"]
    assert found["quality"]["/status"] == "abnormal"
    assert found["quality"]["/speed_kmh"] == "abnormal"
    assert found["quality"]["/odometer_km"] == "invalid"
    assert found["quality"]["/pack_current_a"] == "out_of_range"
    assert found["raw"] == {"/pack_current_a": 20001, "/soc_pct": 101, "/dcdc": 9}
    assert {found[k] for k in ("status", "speed_kmh", "pack_current_a", "soc_pct")} == {None}
    row = rows(frame(TIME + raw))["nev"]
    assert orjson.loads(row["extra"])["raw"]["/soc_pct"] == 101


def test_login_of_both_editions() -> None:
    head = TIME + bytes.fromhex("000C") + b"89860000000000000001"
    found = decode(frame(head + bytes([2, 3]) + b"AAABB\0", command=1))
    assert isinstance(found, Frame)
    session = found.samples["session"]
    assert (session["event"], session["session_seq"]) == ("login", 12)
    assert (session["bms_count"], session["pack_codes"]) == (2, ["AAA", "BB"])
    assert (session["vin"], session["response"]) == (VIN, "command")
    codes = b"001PE0AA0000AA0000000001" * 3
    found = decode(frame(head + bytes([2, 1, 2]) + codes, command=1, edition=2025))
    assert isinstance(found, Frame)
    assert found.samples["session"]["packs_per_bms"] == [1, 2]
    assert found.samples["session"]["pack_codes"] == ["001PE0AA0000AA0000000001"] * 3


def test_the_vin_of_a_login_describes_the_device_and_that_of_a_report_does_not() -> None:
    head = TIME + bytes.fromhex("000C") + b"89860000000000000001\x00\x00"
    (login,) = outcomes(frame(head, command=1))
    assert isinstance(login, Row)
    assert login.described == {"vin": VIN}
    (report,) = outcomes(frame(TIME + VEHICLE_2016))
    assert isinstance(report, Row)
    assert report.described is None


def test_activation_of_2025() -> None:
    data = TIME + b"CHIP-1          " + bytes.fromhex("0002 04AB") + VIN.encode() + b"\x01\x00"
    found = decode(frame(data, command=9, edition=2025))
    assert isinstance(found, Frame)
    session = found.samples["session"]
    assert (session["chip_id"], session["public_key"], session["rest"]) == (
        "CHIP-1",
        "04ab",
        "0100",
    )
    assert isinstance(decode(frame(data, command=9)), Defect)


def test_a_heartbeat_has_no_time_and_takes_that_of_its_arrival() -> None:
    row = rows(frame(b"", command=7))["session"]
    assert (row["event"], row["ts"]) == ("heartbeat", AT)
    assert orjson.loads(row["quality"]) == {"/ts": "estimated"}


def test_a_resent_frame_is_the_same_sample_as_the_first() -> None:
    first = rows(frame(TIME + VEHICLE_2016))["nev"]
    again = rows(frame(TIME + VEHICLE_2016, command=3))["nev"]
    assert (first["resend"], again["resend"]) == (False, True)
    assert (first["ts"], first["seq"]) == (again["ts"], again["seq"])
    assert first["seq"] < 0
    assert first["ts"] == datetime(2026, 11, 22, 8, 0, 3, tzinfo=UTC)


def test_custom_units_are_kept_as_hexadecimal() -> None:
    custom = bytes.fromhex("81 0003 0164FF") + VEHICLE_2016
    found = rows(frame(TIME + custom))["nev"]
    assert orjson.loads(found["extra"]) == {"units": [{"id": "0x81", "hex": "0164ff"}]}
    assert found["speed_kmh"] == 46.8


@pytest.mark.parametrize(
    "rest",
    ["81 FF64 010203", "0A 0001 02", "79 01"],
    ids=["a length beyond the end", "a unit of platforms", "a reserved unit"],
)
def test_a_unit_without_a_readable_length_ends_the_decoding_there(rest: str) -> None:
    data = bytes.fromhex(rest)
    found = outcomes(frame(TIME + VEHICLE_2016 + data))
    (row,) = found
    assert isinstance(row, Row)
    values = every_column(CATALOGUE["nev"], row.record, row.present)
    assert values["speed_kmh"] == 46.8
    assert orjson.loads(values["extra"]) == {
        "units": [{"id": f"0x{data[0]:02X}", "hex": data[1:].hex()}]
    }
    assert orjson.loads(values["quality"])["/units"] == "undecoded"
    assert "undecoded" in row.flags


def test_a_known_unit_that_is_cut_short_leaves_what_was_read() -> None:
    found = samples(VEHICLE_2016 + bytes.fromhex("05 00 07"))["nev"]
    assert found["speed_kmh"] == 46.8
    assert "location" not in found
    assert found["units"] == [{"id": "0x05", "hex": "0007"}]


def test_units_beyond_any_vehicles_number_are_kept_unread() -> None:
    custom = bytes.fromhex("81 0001 07")
    found = outcomes(frame(TIME + VEHICLE_2016 + custom * 5_000))
    (row,) = found
    assert isinstance(row, Row)
    values = every_column(CATALOGUE["nev"], row.record, row.present)
    assert values["speed_kmh"] == 46.8
    assert orjson.loads(values["quality"])["/units"] == "undecoded"
    *read, rest = orjson.loads(values["extra"])["units"]
    assert read == [{"id": "0x81", "hex": "07"}] * 4_095
    assert bytes.fromhex(rest["hex"]) == (custom * (5_000 - 4_095))[1:]


def test_a_unit_that_comes_twice_does_not_push_out_the_first() -> None:
    other = bytes([*VEHICLE_2016[:4], 0, 0, *VEHICLE_2016[6:]])
    found = samples(VEHICLE_2016 + other)["nev"]
    assert found["speed_kmh"] == 46.8
    assert found["units"] == [{"id": "0x01", "hex": other[1:].hex()}]
    assert found["quality"]["/units/0"] == "repeated"
    (row,) = outcomes(frame(TIME + VEHICLE_2016 + other))
    assert isinstance(row, Row)
    assert "repeated" in row.flags


def test_a_second_unit_of_stacks_adds_to_the_first() -> None:
    one = "30 01 {:02X} 089D 0371 0642 05C8 51 0000"
    stacks = bytes.fromhex(one.format(1)) + bytes.fromhex(one.format(2))
    found = samples(stacks, edition=2025)["nev"]["fuel_cell"]["stacks"]
    assert [stack["no"] for stack in found] == [1, 2]


def test_a_list_of_nothing_but_one_sentinel_has_one_mark() -> None:
    cells = bytes.fromhex("07 01 01 FFFF FFFF 03E9") + b"\xff" * 2_002
    found = outcomes(frame(TIME + cells, edition=2025))
    (row,) = found
    assert isinstance(row, Row), row
    assert orjson.loads(column(row, CATALOGUE, "quality")) == {
        "/packs/0/voltage_v": "invalid",
        "/packs/0/current_a": "invalid",
        "/packs/0/cell_v": "invalid",
    }


def test_a_battery_with_thousands_of_marks_is_stored_all_the_same() -> None:
    cells = bytes.fromhex("07 01 01 FFFF FFFF 0BB8") + b"\xff\xff\xff\xfe" * 1_500
    (row,) = outcomes(frame(TIME + cells, edition=2025))
    assert isinstance(row, Row), row
    assert len(orjson.loads(column(row, CATALOGUE, "quality"))) == 3_002


def test_a_hostile_frame_is_read_in_the_time_its_size_takes() -> None:
    # Quadratic in the number of objects this took eighty seconds.
    units = (bytes([0x09, 253]) + bytes([1, 0, 0]) * 253) * 85
    checked = CHECKER.check(delivery(frame(TIME + units), "iov/v1/V1/gbt32960", at=AT))
    (found,) = checked.outcomes
    assert isinstance(found, Rejected)
    assert found.detail == "/packs is refused (items), and nothing else is left"
    assert checked.size_bytes > len(units) + len(found.payload) - 100


def test_the_weight_of_a_frame_is_that_of_what_comes_of_it() -> None:
    probes = bytes.fromhex("08 01 01 FA00") + b"\xfe\xff" * 32_000
    checked = CHECKER.check(
        delivery(zlib.compress(frame(TIME + probes, edition=2025)), "iov/v1/V1/gbt32960", at=AT,
                 encoding="deflate")
    )  # fmt: skip
    (row,) = checked.outcomes
    assert isinstance(row, Row), row
    assert checked.size_bytes > 1_000_000


def test_counts_of_a_login_that_say_nothing_are_null_and_marked() -> None:
    head = TIME + bytes.fromhex("000C") + b"89860000000000000001"
    cases: tuple[tuple[bytes, Edition, dict[str, str]], ...] = (
        (b"\xfe\x00", 2016, {"/bms_count": "abnormal"}),
        (b"\xff\xff", 2016, {"/bms_count": "invalid", "/pack_codes": "invalid"}),
        (b"\xff", 2025, {"/bms_count": "invalid"}),
        (b"\x02\x00\x33" + b"A" * 24 * 51, 2025, {"/packs_per_bms/1": "out_of_range"}),
        (b"\x15" + b"\x00" * 21, 2025, {"/bms_count": "out_of_range"}),
    )
    for tail, edition, expected in cases:
        payload = frame(head + tail, command=1, edition=edition)
        (row,) = outcomes(payload)
        assert isinstance(row, Row), row
        assert orjson.loads(column(row, CATALOGUE, "quality")) == expected
        found = decode(payload)
        assert isinstance(found, Frame)
        assert encode(found) == payload
    bytes_as_code = frame(head + bytes([1, 60]) + b"\x01" * 60, command=1)
    (row,) = outcomes(bytes_as_code)
    assert isinstance(row, Row), row


def test_an_activation_that_failed_says_so() -> None:
    for status, response, flag in ((1, "ok", None), (2, "error", None), (9, None, "out_of_range")):
        payload = frame(bytes([status, 0]), command=10, edition=2025)
        found = decode(payload)
        assert isinstance(found, Frame)
        session = found.samples["session"]
        assert (session["response"], session["rest"]) == (response, "00")
        assert session.get("quality", {}).get("/response") == flag
        assert encode(found) == payload


def test_parts_of_a_frame_that_no_schema_describes_are_dead_letters() -> None:
    checker = Checker.of({name: s for name, s in CATALOGUE.items() if name != "alarm"}, Settings())
    payload = frame(TIME + VEHICLE_2016 + bytes.fromhex("07 00 00000000 00 00 00 00"))
    checked = checker.check(delivery(payload, "iov/v1/V1/gbt32960", at=AT))
    kept, lost = checked.outcomes
    assert isinstance(kept, Row)
    assert isinstance(lost, Rejected)
    assert (lost.reason, lost.stream, lost.label) == (Reason.UNKNOWN_STREAM, "alarm", "other")
    assert checked.samples == {"nev": 1, "other": 1}


def test_a_signature_is_kept_and_is_no_fault() -> None:
    found = samples(VEHICLE_2025 + bytes.fromhex("FF 01 0002 ABCD 0000"), edition=2025)["nev"]
    assert found["units"] == [{"id": "0xFF", "hex": "010002abcd0000"}]
    assert "/units" not in found["quality"]


GOOD = frame(TIME + VEHICLE_2016)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "begins with neither"),
        (b'{"ts": 1}', "looks like JSON"),
        (b"hello", "begins with neither"),
        (GOOD + GOOD, "more than one frame"),
        (GOOD + frame(TIME, command=7, edition=2025) + GOOD, "more than one frame"),
        (GOOD.hex().encode(), "hexadecimal"),
        (b'"' + GOOD.hex(" ").upper().encode() + b'"\n', "hexadecimal"),
        (b"0x" + GOOD.hex().encode(), "hexadecimal"),
        (base64.b64encode(GOOD), "base64"),
        (b'"' + base64.b64encode(frame(TIME, edition=2025)), "base64"),
        (GOOD[:20], "cut short after 20 bytes"),
        (GOOD[:-1], "the frame says"),
        (GOOD + b"\0", "the frame says"),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "wrong check byte"),
        (GOOD[:30] + bytes([GOOD[30] ^ 4]) + GOOD[31:], "wrong check byte"),
        (frame(TIME + VEHICLE_2016, encryption=3), "encrypted"),
        (frame(TIME + VEHICLE_2016, encryption=0xFF), "encrypted"),
        (frame(TIME[:5]), "cut short"),
        (frame(TIME + VEHICLE_2016[:9]), "cut short"),
    ],
)
def test_what_is_no_readable_frame_is_a_dead_letter_with_its_payload_where_that_is_wanted(
    payload: bytes, why: str
) -> None:
    checker = Checker.of(CATALOGUE, Settings(dead_letter_unreadable="payload"))
    checked = checker.check(delivery(payload, "iov/v1/V1/gbt32960", at=AT))
    assert (checked.stream, checked.samples) == ("gbt32960", None)
    (found,) = checked.outcomes
    assert isinstance(found, Rejected)
    assert (found.reason, found.payload, found.label) == (Reason.BAD_ENCODING, payload, "gbt32960")
    assert why in found.detail
    (found,) = CHECKER.check(delivery(payload, "iov/v1/V1/gbt32960", at=AT)).outcomes
    assert isinstance(found, Rejected)
    # A VIN or an ICCID may stand in it in clear.
    assert b"LTEST" not in found.payload


@pytest.mark.parametrize("command", [5, 6, 8, 0x80, 0x82, 0x0B, 0xC0])
def test_a_command_without_a_sample_says_so(command: int) -> None:
    (found,) = outcomes(frame(TIME, command=command, edition=2025))
    assert isinstance(found, Rejected)
    assert found.reason is Reason.BAD_ENVELOPE


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        (bytes([26, 13, 1, 0, 0, 0]), Reason.BAD_TIMESTAMP),
        (b"\xff" * 6, Reason.BAD_TIMESTAMP),
        (bytes([26, 9, 1, 0, 0, 0]), Reason.TOO_OLD),
        (bytes([26, 11, 22, 17, 0, 0]), Reason.CLOCK_AHEAD),
    ],
)
def test_the_time_of_a_frame_is_judged_like_any_other(time: bytes, reason: Reason) -> None:
    found = outcomes(frame(time + VEHICLE_2016 + bytes.fromhex("07 00 00000000 00 00 00 00")))
    assert [o.reason for o in found if isinstance(o, Rejected)] == [reason, reason]
    assert [o.stream for o in found] == ["nev", "alarm"]
    assert all(orjson.loads(o.payload)["ts"] for o in found if isinstance(o, Rejected))


def test_a_clock_that_is_utc_in_a_gmt_8_field_is_noted() -> None:
    utc = TIME[:3] + bytes([8, 0, 3])
    (row,) = outcomes(frame(utc + VEHICLE_2016))
    assert isinstance(row, Row)
    assert orjson.loads(column(row, CATALOGUE, "quality"))["/ts"] == "clock_off_8h"


def test_the_content_type_makes_a_frame_of_any_topic() -> None:
    topic = "iov/v1/V1/nev"
    (row,) = outcomes(GOOD, topic, content_type=CONTENT_TYPE)
    assert isinstance(row, Row)
    assert column(row, CATALOGUE, "seq") == rows(GOOD)["nev"]["seq"]
    (json,) = outcomes(orjson.dumps({"ts": TS}), topic, content_type="application/json")
    assert isinstance(json, Row)


def test_a_frame_on_a_topic_of_json_is_called_what_it_is() -> None:
    (found,) = outcomes(GOOD, "iov/v1/V1/nev")
    assert isinstance(found, Rejected)
    assert found.reason is Reason.BAD_JSON
    assert "looks like a GB/T 32960 frame" in found.detail


def test_the_json_of_one_sample_of_a_frame_can_be_had_again() -> None:
    payload = frame(TIME + VEHICLE_2016 + bytes.fromhex("07 00 00000000 00 00 00 00"))
    (found,) = CHECKER.samples_json(delivery(payload, "iov/v1/V1/gbt32960"), [1])
    assert orjson.loads(found)["max_level"] == 0


def test_extremes_are_compared_with_the_cells_of_the_same_frame() -> None:
    extremes = bytes.fromhex("06 06 00 0CE4 01 01 0CD0 01 02 47 01 09 44")
    cells = bytes.fromhex("08 01 01 0DB8 2795 0002 0001 02 0CD0 0CD0")
    found = {o.stream: o for o in outcomes(frame(TIME + extremes + cells))}
    nev = found["nev"]
    assert isinstance(nev, Row)
    assert orjson.loads(column(nev, CATALOGUE, "quality")) == {
        "/extremes/max_cell/v": "extremes_disagree",
        "/extremes/max_cell/sys": "extreme_points_nowhere",
        "/extremes/max_cell/cell": "extreme_points_nowhere",
    }


def test_a_sample_of_json_can_be_written_as_a_frame() -> None:
    sample = {"ts": TS, "speed_kmh": 61.04, "soc_pct": 55.4, "gear": "D", "cabin": "unknown"}
    found = decode(encode(Frame(2025, Command.REALTIME, VIN, {"nev": sample})))
    assert isinstance(found, Frame)
    nev = found.samples["nev"]
    assert (nev["speed_kmh"], nev["soc_pct"], nev["status"]) == (61.0, 55, None)
    with pytest.raises(ValueError, match=r"GMT\+8"):
        encode(Frame(2025, Command.REALTIME, VIN, {"nev": sample | {"ts": "2026-11-22T08:00:00Z"}}))
    huge = {"ts": TS, "units": [{"id": "0x80", "hex": "00" * 65_535}]}
    with pytest.raises(ValueError, match="at most"):
        encode(Frame(2025, Command.REALTIME, VIN, {"nev": huge}))


def test_old_frames_within_the_limit_are_kept() -> None:
    late = (AT - timedelta(days=7)).astimezone().timetuple()
    time = bytes([late.tm_year % 100, late.tm_mon, late.tm_mday, 8, 0, 0])
    (found,) = outcomes(frame(time + VEHICLE_2016, command=3))
    assert isinstance(found, Row)
    assert found.flags == ("placeholder",) or list(found.flags) == ["placeholder"]


@pytest.mark.parametrize(
    ("command", "data", "response", "told"),
    [
        (2, TIME + VEHICLE_2016, 1, "command 0x02: 0x01, ok"),
        (2, TIME, 1, "command 0x02: 0x01, ok"),
        (3, TIME, 2, "command 0x03: 0x02, error"),
        (1, TIME, 3, "command 0x01: 0x03, vin_duplicate"),
        (4, TIME, 1, "command 0x04: 0x01, ok"),
        (7, b"", 1, "command 0x07: 0x01, ok"),
        (7, b"", 0x55, "command 0x07: 0x55, unknown"),
    ],
)
def test_an_answer_of_a_platform_says_nothing_of_a_vehicle(
    command: int, data: bytes, response: int, told: str
) -> None:
    (found,) = outcomes(frame(data, command=command, response=response))
    assert isinstance(found, Rejected)
    assert (found.reason, found.label) == (Reason.BAD_ENVELOPE, "gbt32960")
    assert found.detail == f"answer of a platform to {told}"


@pytest.mark.parametrize("command", [2, 3])
@pytest.mark.parametrize("rest", ["", "FF 01 0002 ABCD 0000"])
def test_a_report_without_a_unit_is_no_row(command: int, rest: str) -> None:
    (found,) = outcomes(frame(TIME + bytes.fromhex(rest), command=command, edition=2025))
    assert isinstance(found, Rejected)
    assert (found.reason, found.detail) == (Reason.BAD_ENVELOPE, "a report without a unit")


def test_a_custom_unit_with_a_length_of_one_byte_is_read_where_the_rest_only_fits_so() -> None:
    short = bytes.fromhex("81 03 0164FF 82 01 07") + VEHICLE_2016
    found = samples(short)["nev"]
    assert found["speed_kmh"] == 46.8
    assert found["units"] == [
        {"id": "0x81", "hex": "0164ff", "length_bytes": 1},
        {"id": "0x82", "hex": "07", "length_bytes": 1},
    ]
    assert "/units" not in found.get("quality", {})
    read = decode(frame(TIME + short))
    assert isinstance(read, Frame)
    assert decode(encode(read)) == read


@pytest.mark.parametrize(
    "rest",
    ["80 0005 0007150102 30 0262A9", "81 0001 07 FF 00", "80 0002 0501 33", "81 03 01 FF FF 30"],
)
def test_no_length_is_guessed_where_a_unit_is_unknown(rest: str) -> None:
    found = samples(VEHICLE_2016 + bytes.fromhex(rest))["nev"]
    assert "location" not in found
    assert all("length_bytes" not in one for one in found["units"])


def test_the_length_of_the_standard_is_taken_where_both_would_fit() -> None:
    both = bytes.fromhex("81 0001 82 83 00 00")
    assert samples(both)["nev"]["units"] == [{"id": "0x81", "hex": "82"}, {"id": "0x83", "hex": ""}]


UNITS_FILE = """
{"units": [
  {"id": "0x81", "fields": [
    {"name": "accel_pedal_pct", "bytes": 1, "scale": 0.5},
    {"bytes": 1},
    {"name": "cabin.temp_c", "bytes": 1, "signed": true},
    {"name": "speeds_kmh", "bytes": 2, "scale": 0.1, "offset": -10, "count": 3},
    {"name": "drive_mode", "bytes": 1, "words": {"0": "eco", "0x01": "sport"}},
    {"name": "part", "bytes": 4, "text": true}]},
  {"id": "0x82", "length_bytes": 0, "stream": "battery", "editions": [2016],
   "fields": [{"name": "ripple_v", "bytes": 2, "scale": 0.001}]},
  {"id": "0x83", "length_bytes": 1}
]}
"""


def checker_with(tmp_path: Path, text: str) -> Checker:
    file = tmp_path / "units.json"
    file.write_text(text)
    return Checker.of(CATALOGUE, Settings(gbt32960_units_file=file))


def test_an_owner_describes_units_of_his_own(tmp_path: Path) -> None:
    checker = checker_with(tmp_path, UNITS_FILE)
    data = bytes.fromhex("82 10E1 81 000E 1C FF F6 01D4 FFFF 0064 01 41422020 83 02 ABCD")
    payload = frame(TIME + data)
    found = {
        o.stream: o for o in checker.check(delivery(payload, "iov/v1/V1/gbt32960", at=AT)).outcomes
    }
    nev, battery = found["nev"], found["battery"]
    assert isinstance(nev, Row)
    assert isinstance(battery, Row)
    values = every_column(CATALOGUE["nev"], nev.record, nev.present)
    assert values["accel_pedal_pct"] == 14
    assert orjson.loads(values["extra"]) == {
        "cabin": {"temp_c": -10},
        "speeds_kmh": [36.8, None, 0],
        "drive_mode": "sport",
        "part": "AB",
        "units": [{"id": "0x83", "hex": "abcd", "length_bytes": 1}],
    }
    assert orjson.loads(values["quality"]) == {"/speeds_kmh/1": "invalid"}
    other = every_column(CATALOGUE["battery"], battery.record, battery.present)
    assert orjson.loads(other["extra"]) == {"ripple_v": 4.321}
    (json,) = checker.samples_json(delivery(payload, "iov/v1/V1/gbt32960", at=AT), [1])
    assert orjson.loads(json)["accel_pedal_pct"] == 14


def test_a_unit_of_another_size_than_described_keeps_its_bytes(tmp_path: Path) -> None:
    checker = checker_with(tmp_path, UNITS_FILE)
    for size, there in (("0002", "1C FF"), ("000F", "1C FF F6 01D4 0000 0064 07 41422020 99")):
        payload = frame(TIME + bytes.fromhex(f"81 {size} {there}"))
        (row,) = checker.check(delivery(payload, "iov/v1/V1/gbt32960", at=AT)).outcomes
        assert isinstance(row, Row)
        values = every_column(CATALOGUE["nev"], row.record, row.present)
        assert values["accel_pedal_pct"] == 14
        (kept,) = orjson.loads(values["extra"])["units"]
        assert kept == {"id": "0x81", "hex": bytes.fromhex(there).hex()}
        assert orjson.loads(values["quality"])["/units/0"] == "undecoded"


def test_all_that_is_wrong_with_a_file_of_units_is_said_at_once(tmp_path: Path) -> None:
    units = [
        {"id": "0x01"},
        {"id": "0x81", "fields": [{"name": "Speed", "bytes": 1}]},
        {"id": "0x81", "fields": [{"name": "a", "byte": 1}]},
        {"id": "0x81", "length_bytes": 0},
        {"id": "0x81", "fields": [{"name": "ts", "bytes": 1}]},
        {"id": "0x81", "fields": [{"name": "a", "bytes": 1, "words": {"x": "y"}}]},
        {"id": "0x81", "fields": [{"name": "a", "bytes": 1, "text": True, "signed": True}]},
        {"id": "0x90"},
        {"id": "0x90", "editions": [2025]},
        {"id": "0x81", "fields": [{"name": "a", "bytes": 9}]},
    ]
    with pytest.raises(ConfigError) as caught:
        checker_with(tmp_path, orjson.dumps({"units": units}).decode())
    problems = caught.value.problems
    assert [one.split("units[")[1][0] for one in problems] == list("012345689")
    assert all(one.startswith("IOV_GBT32960_UNITS_FILE: ") for one in problems)


@pytest.mark.parametrize(
    "fields",
    [
        [{"name": "a", "bytes": 1}, {"name": "a.b", "bytes": 1}],
        [{"name": "a.b", "bytes": 1}, {"name": "a", "bytes": 1}],
        [{"name": "a", "bytes": 1}, {"name": "a", "bytes": 1}],
        [{"name": "a", "bytes": 1, "scale": 1e308}],
        [{"name": "a", "bytes": 1, "words": {"1": "a\0"}}],
        [{"name": "heart_rate", "bytes": 1}],
        [{"name": "driver.heartRate", "bytes": 1}],
    ],
)
def test_fields_that_no_row_can_hold_are_refused_at_the_start(
    tmp_path: Path, fields: list[dict[str, Any]]
) -> None:
    fields = [one | {"name": one["name"].replace("heartRate", "heart_rate")} for one in fields]
    with pytest.raises(ConfigError):
        checker_with(tmp_path, orjson.dumps({"units": [{"id": "0x81", "fields": fields}]}).decode())


def test_numbers_of_eight_bytes_are_stored(tmp_path: Path) -> None:
    fields = [{"name": "a", "bytes": 8}, {"name": "b", "bytes": 8, "signed": True}]
    text = orjson.dumps({"units": [{"id": "0x81", "fields": fields}]}).decode()
    payload = frame(TIME + bytes.fromhex("81 0010") + b"A" * 16)
    checker = checker_with(tmp_path, text)
    (row,) = checker.check(delivery(payload, "iov/v1/V1/gbt32960", at=AT)).outcomes
    assert isinstance(row, Row)


@pytest.mark.parametrize(("text", "told"), [("{", "not JSON at line 1"), ("[]", 'no list "units"')])
def test_a_file_without_units_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        checker_with(tmp_path, text)
    with pytest.raises(ConfigError, match="No such file"):
        Checker.of(CATALOGUE, Settings(gbt32960_units_file=tmp_path / "none.json"))
