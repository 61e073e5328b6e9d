"""Other names of fields: VSS paths, OVMS metrics, Tesla's fields."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from ingest.check import Checker
from ingest.config import Settings
from ingest.errors import SchemaError
from ingest.model import Rejected, Row
from ingest.schema import load_catalogue
from ingest.schema.vocabulary import vocabulary, without_field
from tests.support import delivery, every_column

CATALOGUE = load_catalogue()
CHECKER = Checker.of(CATALOGUE, Settings())
NOW = datetime(2026, 11, 29, 8, tzinfo=UTC)
BATTERY = "Vehicle.Powertrain.TractionBattery"
SCHEMA: dict[str, Any] = {
    "properties": {
        "speed_kmh": {"x-vss": "Vehicle.Speed"},
        "range_km": {"type": "number", "x-vss": {"path": "Vehicle.Range", "factor": 0.001}},
        "far_m": {"type": "number", "x-vss": {"path": "Vehicle.Far", "factor": 1000}},
        "place": {"properties": {"lon": {"x-vss": "Vehicle.Lon"}, "lat": {"x-vss": "Vehicle.Lat"}}},
    }
}


def values(sample: dict[str, Any], stream: str = "nev") -> dict[str, Any]:
    [row] = CHECKER.check(
        delivery({"ts": NOW.isoformat()} | sample, f"iov/v1/V1/{stream}", at=NOW)
    ).outcomes
    assert isinstance(row, Row), row
    found = every_column(CATALOGUE[stream], row.record, row.present)
    leading = ("ts", "seq", "received_at", "device_id")
    return {n: v for n, v in found.items() if v is not None and n not in leading}


@pytest.mark.parametrize(
    ("stream", "sent", "stored"),
    [
        ("nev", {"Vehicle.Speed": 46.8}, {"speed_kmh": 46.8}),
        ("nev", {"Vehicle.TraveledDistance": 123456789}, {"odometer_km": 123456.789}),
        ("nev", {f"{BATTERY}.CurrentCurrent": 11.2}, {"pack_current_a": -11.2}),
        (
            "nev",
            {"Vehicle.CurrentLocation.Longitude": 121.5, "Vehicle.CurrentLocation.Latitude": 31.2},
            {"location_lon": 121.5, "location_lat": 31.2},
        ),
        ("truck", {"Vehicle.CurrentLocation.Latitude": 31.2}, {"position_lat": 31.2}),
        ("chassis", {"Vehicle.ADAS.ABS.IsEngaged": True}, {"abs_active": True}),
        ("nev", {"v.p.speed": 46.8, "v.b.12v.voltage": 12.3},
         {"speed_kmh": 46.8, "aux_battery_v": 12.3}),
        ("battery", {"TimeToFullCharge": 0.5}, {"charging_time_to_full_s": 1800}),
        ("nev", {"VehicleSpeed": 50, "Soc": 71.5}, {"speed_kmh": 80.4672, "soc_pct": 71.5}),
    ],
)  # fmt: skip
def test_other_vocabularies_fill_the_same_columns(
    stream: str, sent: dict[str, Any], stored: dict[str, Any]
) -> None:
    assert values(sent, stream) == pytest.approx(stored | {"resend": False})


def test_an_own_name_stays_and_an_unknown_one_is_kept_as_it_came() -> None:
    sent = {"speed_kmh": 10, "Vehicle.Speed": 20, "Vehicle.Unheard.Of": 3, "soc_pct": 50}
    found = values(sent)
    assert found["speed_kmh"] == 10
    assert orjson.loads(found["extra"]) == {"Vehicle.Speed": 20, "Vehicle.Unheard.Of": 3}


def test_what_a_schema_refuses_of_it_costs_its_own_field() -> None:
    found = values({"Vehicle.Speed": "fast", f"{BATTERY}.StateOfCharge.Current": 71})
    assert found["soc_pct"] == 71
    assert orjson.loads(found["quality"]) == {"/speed_kmh": "invalid"}
    assert orjson.loads(found["extra"]) == {"refused": {"/speed_kmh": "fast"}}


def test_a_dead_letter_keeps_the_sample_as_it_came() -> None:
    sent = {"ts": NOW.isoformat(), "Vehicle.Speed": "fast"}
    [letter] = CHECKER.check(delivery(sent, at=NOW)).outcomes
    assert isinstance(letter, Rejected)
    assert orjson.loads(letter.payload) == sent


def test_names_that_are_never_stored_stay_so_in_every_vocabulary() -> None:
    found = values({"Vehicle.Driver.HeartRate": 61, "Vehicle.Driver.FatigueLevel": 4}, "cockpit")
    assert found["driver_fatigue_pct"] == 4
    assert "extra" not in found


def test_a_current_of_zero_has_no_sign() -> None:
    found = values({f"{BATTERY}.CurrentCurrent": 0.0})
    assert str(found["pack_current_a"]) == "0.0"


def test_samples_of_one_message_are_compared_whatever_they_call_their_fields() -> None:
    sent = [
        {"ts": (NOW - timedelta(seconds=3 - n)).isoformat(), "v.p.odometer": km}
        for n, km in enumerate((1_000, 900, 1_001))
    ]
    rows = CHECKER.check(delivery(sent, at=NOW)).outcomes
    flags = [row.flags for row in rows if isinstance(row, Row)]
    assert flags == [(), ["odometer_backwards"], ()]


@pytest.mark.parametrize(
    "name",
    ["Vehicle.Driver.Identifier.Subject", "Vehicle.Occupant.Row1.DriverSide.Identifier.Issuer"],
)
def test_who_somebody_is_in_vss_is_never_stored(name: str) -> None:
    assert "extra" not in values({name: "7331677", "soc_pct": 50})


def test_the_sample_itself_is_not_changed() -> None:
    place = {"lon": 1.0}
    sample = {"place": place, "Vehicle.Lat": 2.0, "speed_kmh": 3}
    before = deepcopy(sample)
    found = vocabulary("s", SCHEMA, {}).translated(sample)
    assert found == {"place": {"lon": 1.0, "lat": 2.0}, "speed_kmh": 3}
    assert sample == before


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ({"Vehicle.Range": 3}, {"range_km": 0.003}),
        ({"Vehicle.Range": True}, {"range_km": True}),
        ({"Vehicle.Range": None}, {"Vehicle.Range": None}),
        ({"place": 7, "Vehicle.Lat": 2}, {"place": 7, "Vehicle.Lat": 2}),
        ({"place": None, "Vehicle.Lat": 2}, {"place": {"lat": 2}}),
        ({"place": {"lat": 1}, "Vehicle.Lat": 2}, {"place": {"lat": 1}, "Vehicle.Lat": 2}),
        ({"Vehicle.Far": 1e308}, {"Vehicle.Far": 1e308}),
        ({"Vehicle.Far": 10**400}, {"Vehicle.Far": 10**400}),
    ],
)
def test_odd_values_are_left_to_the_schema(sent: dict[str, Any], read: dict[str, Any]) -> None:
    assert vocabulary("s", SCHEMA, {}).translated(sent) == read


def test_a_name_for_a_field_that_is_not_there_stands_for_nothing() -> None:
    others = {"o": {"fields": {"s": {"a.b": "/nothing", "c": "/place/lon", "d": 7}}}}
    assert without_field("s", SCHEMA, others) == ["a.b", "d"]
    assert vocabulary("s", SCHEMA, others).translated({"a.b": 1}) == {"a.b": 1}


@pytest.mark.parametrize(
    ("field", "others", "words"),
    [
        ({"x-vss": "Speed"}, {}, "no path of VSS"),
        ({"x-vss": {"factor": 2}}, {}, "no path of VSS"),
        ({"x-vss": {"path": "Vehicle.A", "factor": 0}}, {}, "not 0"),
        ({"x-vss": {"path": "Vehicle.A", "factor": "2"}}, {}, "not 0"),
        ({"x-vss": {"path": "Vehicle.A", "factor": 2}, "type": "string"}, {}, "for numbers"),
        ({"x-vss": "Vehicle.A", "x-hash": "sha256"}, {}, "as a digest"),
        ({"x-vss": "Vehicle.A", "x-device": True}, {}, "as a digest"),
        ({"x-vss": "Vehicle.A", "items": {}}, {}, "no single value"),
        ({}, {"o": {"fields": {"s": {"speed": "/speed"}}}}, "a name of our own"),
        ({}, {"o": 1}, "no fields by stream"),
        ({}, {"o": {"fields": []}}, "no fields by stream"),
        ({}, {"o": {"fields": {"s": 7}}}, "no fields by stream"),
        ({}, {"o": {"fields": {"s": {"a.b": "/speed"}}}, "p": {"fields": {"s": {"a.b": "/speed"}}}},
         "two fields"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_is_wrong_is_refused(
    field: dict[str, Any], others: dict[str, Any], words: str
) -> None:
    with pytest.raises(SchemaError, match=words):
        vocabulary("s", {"properties": {"speed": field}}, others)
