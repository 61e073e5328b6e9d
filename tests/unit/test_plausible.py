from __future__ import annotations

import gzip
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.check import Checker
from ingest.config import Settings
from ingest.errors import SchemaError
from ingest.model import Row
from ingest.schema import load_catalogue
from ingest.schema.plausible import check_rules
from ingest.schema.vin import check_digit_agrees
from tests.support import (
    CATALOGUE,
    column,
    delivery,
)

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
CHECKER = Checker.of(CATALOGUE, Settings())
GOOD_VIN, BAD_VIN = "LSVAA4181E2123456", "LSVAA4182E2123456"


def noted(
    payload: Any, stream: str = "nev", device: str = "V1"
) -> list[tuple[dict[str, str] | None, Collection[str]]]:
    """(quality, flags) of each sample of a message; all of them are accepted."""
    found = []
    for outcome in CHECKER.check(delivery(payload, f"iov/v1/{device}/{stream}", at=NOW)).outcomes:
        assert isinstance(outcome, Row), outcome
        quality = column(outcome, CATALOGUE, "quality")
        found.append((None if quality is None else orjson.loads(quality), outcome.flags))
    return found


def quality(payload: Any, stream: str = "nev", device: str = "V1") -> dict[str, str] | None:
    ((found, _),) = noted(payload, stream, device)
    return found


def at(seconds: float = 0, /, **fields: Any) -> dict[str, Any]:
    return {"ts": (NOW - timedelta(seconds=seconds)).isoformat()} | fields


def test_an_ordinary_sample_has_nothing_noted() -> None:
    assert noted(at(soc_pct=71, speed_kmh=40, insulation_kohm=8000)) == [(None, ())]


@pytest.mark.parametrize(
    ("seconds", "flag"),
    [
        (300, None),
        (301, "clock_off"),
        (8 * 3600, "clock_off_8h"),
        (8 * 3600 - 60, "clock_off_8h"),
        (8 * 3600 + 60, "clock_off_8h"),
        (8 * 3600 - 61, "clock_off"),
        (8 * 3600 + 61, "clock_off"),
        (5 * 86_400, "clock_off"),
    ],
)
def test_a_clock_that_is_off_is_noted_eight_hours_apart_from_the_rest(
    seconds: float, flag: str | None
) -> None:
    assert quality(at(seconds)) == (None if flag is None else {"/ts": flag})
    assert quality(at(seconds, resend=True)) is None


def test_a_clock_eight_hours_ahead_is_noted_where_that_is_allowed() -> None:
    checker = Checker.of(load_catalogue(), Settings(max_ahead_s=86_400))
    (row,) = checker.check(delivery(at(-8 * 3600), at=NOW)).outcomes
    assert isinstance(row, Row)
    assert row.flags == ["clock_off_8h"]


@pytest.mark.parametrize("soc", [0, 0.01, 0.85, 1, 1.01, 85])
@pytest.mark.parametrize(
    ("evidence", "flag"),
    [
        ({}, None),
        ({"speed_kmh": 60, "charge_status": "parked_charging"}, None),
        ({"speed_kmh": 60.1}, "soc_fraction"),
        ({"charge_status": "complete"}, "soc_fraction"),
        ({"speed_kmh": None, "charge_status": "complete"}, "soc_fraction"),
    ],
)
def test_a_state_of_charge_is_a_fraction_only_with_other_evidence(
    soc: float, evidence: dict[str, Any], flag: str | None
) -> None:
    found = quality(at(soc_pct=soc, **evidence))
    assert found == ({"/soc_pct": flag} if flag and 0 < soc <= 1 else None)


@pytest.mark.parametrize(
    ("cells", "marked"),
    [
        ([3.2, 0, 3.3, 0.0], ["1", "3"]),
        ([None, 0, 3.3], ["1"]),
        ([0, 0, 0], []),
        ([0, 0.9], []),
        ([0, None], []),
        ([3.1, None], []),
    ],
)
def test_a_cell_at_0_v_among_others_is_noted(cells: list[float | None], marked: list[str]) -> None:
    found = quality(at(packs=[{"no": 1, "cell_v": None}, {"no": 2, "cell_v": cells}]), "battery")
    wanted = {f"/packs/1/cell_v/{one}": "cell_voltage_implausible" for one in marked}
    assert found == (wanted or None)


def test_an_odometer_that_runs_backwards_within_a_message_is_noted() -> None:
    message = [at(3, odometer_km=10.0), at(2, odometer_km=10.1), at(1, odometer_km=9.9)]
    assert [flags for _, flags in noted(message)] == [(), (), ["odometer_backwards"]]
    # The order in the message says nothing; the order in time does.
    assert [flags for _, flags in noted(message[::-1])] == [["odometer_backwards"], (), ()]
    assert [flags for _, flags in noted([message[2], message[2]])] == [(), ()]
    spike = [at(4, odometer_km=10.0), at(3, odometer_km=10.4), at(1, odometer_km=10.2)]
    assert [flags for _, flags in noted(spike)] == [(), (), ["odometer_backwards"]]
    truck = [at(2, total_distance_m=500), at(1, total_distance_m=400)]
    assert noted(truck, "truck")[1][0] == {"/total_distance_m": "odometer_backwards"}
    broken = [at(2, odometer_km="ten"), at(1, odometer_km=3)]
    outcomes = CHECKER.check(delivery(broken, at=NOW)).outcomes
    assert isinstance(outcomes[1], Row)
    assert outcomes[1].flags == ()


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5)), min_size=2, max_size=12))
def test_a_fall_is_noted_where_any_earlier_sample_has_more(told: list[tuple[int, int]]) -> None:
    message = [at(10 - second, odometer_km=km) for second, km in told]
    wanted = [any(then < now and more > km for then, more in told) for now, km in told]
    assert [flags == ["odometer_backwards"] for _, flags in noted(message)] == wanted


def test_the_check_digit_of_a_chinese_vin_as_device_or_field_is_noted() -> None:
    assert quality(at(), device=GOOD_VIN) is None
    assert quality(at(), device=BAD_VIN) == {"/device": "vin_check_digit"}
    session = at(event="login", vin=BAD_VIN)
    assert quality(session, "session") == {"/vin": "vin_check_digit"}
    assert quality(session | {"vin": GOOD_VIN}, "session") is None
    trailers = [{"no": 1, "vin": GOOD_VIN}, {"no": 2, "vin": BAD_VIN}]
    assert quality(at(trailers=trailers), "truck") == {"/trailers/1/vin": "vin_check_digit"}


@pytest.mark.parametrize(
    ("vin", "agrees"),
    [
        ("LSVAA4181E2123456", True),
        ("LSVAA4183E2123456", False),
        ("1M8GDM9AXKP042788", True),  # the example of 49 CFR 565.15
        ("1M8GDM9A1KP042788", True),  # not Chinese: not looked at
        ("LSVAA418OE2123456", True),  # holds an O: no VIN at all
        ("LSVAA418", True),
        ("", True),
    ],
)
def test_only_chinese_vins_are_looked_at(vin: str, agrees: bool) -> None:  # noqa: FBT001  what is expected
    assert check_digit_agrees(vin) is agrees


def test_the_arithmetic_is_that_of_the_standard() -> None:
    # The example of 49 CFR 565.15 with a first letter of the same weight and value as L would have.
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", map(int, "12345678123457923456789"), strict=True))
    vin = "LM8GDM9A?KP042788"
    total = sum(
        w * (int(c) if c.isdigit() else values.get(c, 0)) for w, c in zip(weights, vin, strict=True)
    )
    digit = "0123456789X"[total % 11]
    assert [check_digit_agrees(vin.replace("?", d)) for d in "0123456789X"].count(True) == 1
    assert check_digit_agrees(vin.replace("?", digit))


CELLS: dict[str, Any] = {"packs": [{"no": 1, "total_cells": 3, "cell_v": [3.28, 3.27, 3.26]}]}


@pytest.mark.parametrize(
    ("extremes", "flagged"),
    [
        ({"max_cell": {"v": 3.28}, "min_cell": {"v": 3.26}}, set()),
        ({"max_cell": {"v": 3.284}}, set()),
        ({"max_cell": {"v": 3.3}}, {"/extremes/max_cell/v"}),
        ({"max_cell": {"v": 3.27}}, {"/extremes/max_cell/v"}),
        ({"min_cell": {"v": 3.2}}, {"/extremes/min_cell/v"}),
        ({"max_cell": {"v": None}}, set()),
    ],
)
def test_extremes_that_disagree_with_the_cells_are_noted(
    extremes: dict[str, Any], flagged: set[str]
) -> None:
    found = quality(at(0, extremes=extremes, **CELLS), "battery") or {}
    assert found == dict.fromkeys(flagged, "extremes_disagree")


def test_part_of_a_pack_proves_a_highest_value_too_low_and_never_too_high() -> None:
    part: dict[str, Any] = {
        "packs": [{"no": 1, "total_cells": 360, "start_index": 201, "cell_v": [3.28, 3.3]}]
    }
    assert quality(at(0, extremes={"max_cell": {"v": 3.9}}, **part), "battery") is None
    found = quality(at(0, extremes={"max_cell": {"v": 3.28}}, **part), "battery")
    assert found == {"/extremes/max_cell/v": "extremes_disagree"}


def test_extremes_that_point_nowhere_are_noted_and_kept() -> None:
    found = quality(at(extremes={"max_cell": {"sys": 0, "cell": 0}, "max_temp": {"probe": 251}}))
    assert found == dict.fromkeys(
        ("/extremes/max_cell/sys", "/extremes/max_cell/cell", "/extremes/max_temp/probe"),
        "extreme_points_nowhere",
    )


def test_extremes_are_compared_with_the_packs_that_are_there() -> None:
    packs = {"packs": [{"no": 1, "total_cells": 2, "cell_v": [3.2, 3.3]}]}
    extremes = {"max_cell": {"sys": 8, "cell": 2}, "min_cell": {"sys": 1, "cell": 9}}
    assert quality(at(0, extremes=extremes, **packs), "battery") == dict.fromkeys(
        ("/extremes/max_cell/sys", "/extremes/min_cell/cell"), "extreme_points_nowhere"
    )


def test_a_first_probe_with_nothing_after_it_is_a_placeholder() -> None:
    for temperatures, flagged in (([-26, None, None], True), ([-26, 20], False), ([-26], False)):
        found = quality(at(packs=[{"no": 1, "probe_temps_c": temperatures}]), "battery")
        assert found == ({"/packs/0/probe_temps_c/0": "placeholder"} if flagged else None)


def test_a_neighbour_that_is_nonsense_harms_no_other_sample() -> None:
    good = at(0, extremes={"max_cell": {"v": 3.3}}, **CELLS)
    nonsense = [{"total_cells": "x", "cell_v": [True, "y", {}], "no": []}]
    found = CHECKER.check(
        delivery([good, at(0, packs=nonsense), at(1)], "iov/v1/V1/battery", at=NOW)
    ).outcomes
    assert [isinstance(outcome, Row) for outcome in found] == [True, False, True]


def test_many_samples_of_one_instant_cost_no_more_than_their_number() -> None:
    # Each of them asking all of the others anew took minutes.
    pack = {"no": 1, "cell_v": [3.3] * 1_000}
    many = [at(0, seq=n, extremes={"max_cell": {"v": 3.3}}, packs=[pack]) for n in range(280)]
    packed = delivery(
        gzip.compress(orjson.dumps(many)), "iov/v1/V1/battery", at=NOW, encoding="gzip"
    )
    assert sum(isinstance(outcome, Row) for outcome in CHECKER.check(packed).outcomes) == 280


def test_implausible_cells_and_placeholders_are_noted() -> None:
    packs = [{"no": 1, "cell_v": [3.2, None, 6.5]}]
    found = quality(at(packs=packs), "battery")
    assert found == {"/packs/0/cell_v/2": "cell_voltage_implausible"}
    assert quality(at(insulation_kohm=8191)) == {"/insulation_kohm": "placeholder"}


def test_what_the_device_said_itself_stays_and_is_not_counted() -> None:
    sample = at(soc_pct=0.5, insulation_kohm=8191, quality={"/soc_pct": "estimated"})
    ((found, flags),) = noted(sample)
    assert found == {"/soc_pct": "estimated", "/insulation_kohm": "placeholder"}
    assert flags == ["placeholder"]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"rules": {}},
        {"rules": [{"flag": "x", "test": "no such test", "streams": ["*"], "field": "/a"}]},
        {"rules": [{"flag": "x", "test": "inside", "streams": ["*"], "field": "/a"}]},
        {"rules": [{"test": "equals", "streams": ["*"], "field": "/a", "value": 1}]},
        {"rules": [{"flag": "x", "test": "equals", "streams": "nev", "field": "/a", "value": 1}]},
    ],
)
def test_a_rule_that_says_nothing_known_is_refused(document: Any) -> None:
    with pytest.raises(SchemaError, match=r"rules.json: "):
        check_rules(document, "rules.json")


@pytest.mark.parametrize("value", ["a text", [1], {"a": 1}, True])
@pytest.mark.parametrize("name", ["sys", "cell", "probe"])
def test_a_member_no_schema_knows_may_be_anything(name: str, value: Any) -> None:
    """`/extremes/*/cell` leads there too (found by fuzzing)."""
    packs = [{"no": 1, "total_cells": 2, "cell_v": [3.1, 3.2], "probe_temps_c": [20]}]
    sample = at(extremes={"newest_cell": {name: value}}, packs=packs)
    assert quality(sample, "battery") is None
    assert quality(at(extremes={"newest_cell": {name: value}}), "nev") is None
