from __future__ import annotations

import copy
from typing import Any

import pytest

from ingest.commands.schema.diff import Change, diff
from ingest.schema import default_directory
from ingest.schema.catalogue import vocabularies
from ingest.schema.stream import Stream, stream
from tests.support import CATALOGUE

NEW_FIELD = {"type": ["number", "null"], "title": "X", "minimum": 0}
DTC = CATALOGUE["alarm"].schema["properties"]["dtcs"]["items"]["pattern"]


def changed(name: str, pointer: str, value: Any) -> list[Change]:
    """The changes when one place of one schema is another; None takes it away."""
    schema = copy.deepcopy(CATALOGUE[name].schema)
    node: Any = schema
    *path, last = pointer.split("/")[1:]
    for step in path:
        node = node[step]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return diff(
        CATALOGUE,
        {**CATALOGUE, name: stream(name, schema, vocabularies=vocabularies(default_directory()))},
    )


def test_a_catalogue_is_compatible_with_itself() -> None:
    assert diff(CATALOGUE, CATALOGUE) == []


@pytest.mark.parametrize(
    ("name", "pointer", "value", "what"),
    [
        ("nev", "/properties/tilt_deg", NEW_FIELD, "a new field"),
        ("nev", "/properties/speed_kmh/maximum", 600, "maximum widened"),
        ("nev", "/properties/speed_kmh/minimum", -200, "minimum widened"),
        ("nev", "/properties/speed_kmh/maximum", None, "maximum widened"),
        ("nev", "/properties/speed_kmh/description", "Fast.", "description reworded"),
        ("nev", "/properties/status/enum", ["started", "off", "other", "asleep", None], "asleep"),
        ("session", "/required", ["ts"], "required without event"),
        ("battery", "/properties/packs/items/properties/no/maximum", 300, "maximum widened"),
        ("cockpit", "/x-never-stored", [], "x-never-stored without"),
        ("nev", "/properties/speed_kmh/x-sentinels", [6553.5, 255], "x-sentinels: "),
        ("alarm", "/properties/dtcs/items/pattern", DTC + "|^X", "pattern widened"),
    ],
)
def test_what_widens_is_compatible(name: str, pointer: str, value: Any, what: str) -> None:
    found = changed(name, pointer, value)
    assert found
    assert all(change.compatible for change in found), found
    assert what in found[0].what


@pytest.mark.parametrize(
    ("name", "pointer", "value", "what"),
    [
        ("nev", "/properties/speed_kmh", None, "the field is gone"),
        ("nev", "/properties/speed_kmh/maximum", 220, "maximum narrowed"),
        ("nev", "/properties/location/properties/hacc_m/maximum", 9, "maximum narrowed"),
        ("nev", "/properties/speed_kmh/x-unit", "m/s", "x-unit changed"),
        ("nev", "/properties/status/enum", ["started", "off", None], "enum without other"),
        ("nev", "/properties/status/type", ["string"], "type without null"),
        ("nev", "/required", ["ts", "seq"], "required with seq"),
        ("alarm", "/properties/dtcs/items/pattern", "^P", "pattern changed"),
        ("session", "/properties/iccid/x-hash", None, "x-hash changed"),
        ("alarm", "/properties/flags/uniqueItems", True, "may hold no item twice"),
        ("v2x", "/allOf", None, "allOf changed"),
        ("session", "/properties/bms_count/maximum", 2**31 - 1, "migrate refuses"),
        ("cockpit", "/x-never-stored", ["app"], "x-never-stored with"),
    ],
)
def test_what_narrows_or_changes_its_meaning_is_not(
    name: str, pointer: str, value: Any, what: str
) -> None:
    found = changed(name, pointer, value)
    assert any(what in change.what and not change.compatible for change in found), found


def test_streams_come_and_go() -> None:
    fewer = {name: found for name, found in CATALOGUE.items() if name != "truck"}
    assert diff(fewer, CATALOGUE) == [Change("truck", "a new stream", compatible=True)]
    assert diff(CATALOGUE, fewer) == [Change("truck", "the stream is gone", compatible=False)]


def test_a_smaller_integer_fits_the_column_that_is_there() -> None:
    field = {"type": ["integer", "null"], "title": "N", "minimum": 0, "maximum": 9}
    cell = "/properties/supercap_extremes/properties/max_cell/properties/cell"
    found = changed("battery", cell, field)
    (column,) = [change for change in found if "column" in change.what]
    assert column.compatible


def test_another_name_may_be_added_and_not_changed_or_taken_away() -> None:
    def with_names(vss: Any, others: dict[str, str]) -> dict[str, Stream]:
        schema = {
            "type": "object",
            "properties": {"ts": {}, "a_km": {"type": "number", "x-vss": vss}},
        }
        return {"s": stream("s", schema, vocabularies={"o": {"fields": {"s": others}}})}

    before = with_names("Vehicle.A", {"o.a": "/a_km"})
    more = with_names("Vehicle.A", {"o.a": "/a_km", "o.b": "/a_km"})
    assert [(c.what, c.compatible) for c in diff(before, more)] == [("o.b stands for /a_km", True)]
    fewer = with_names({"path": "Vehicle.A", "factor": 2}, {})
    told = {c.what for c in diff(before, fewer) if not c.compatible}
    assert told == {
        "Vehicle.A stands for /a_km by 2, not /a_km",
        "o.a stands for nothing, not /a_km",
    }
