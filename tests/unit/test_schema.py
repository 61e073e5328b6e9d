from __future__ import annotations

import copy
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.commands.schema.docs import page, pages
from ingest.errors import SchemaError
from ingest.model import Row
from ingest.schema import Stream, default_directory, load_catalogue, pointer
from ingest.schema import layout as layout_module
from ingest.schema.catalogue import load_schema
from ingest.schema.columns import columns
from ingest.schema.layout import KEY, RESERVED, in_key_order, sort
from ingest.schema.stream import stream
from ingest.schema.table import add_column, create_table, literal, quoted
from tests.instances import instances
from tests.support import (
    CATALOGUE,
    delivery,
    every_column,
)

DIRECTORY = default_directory()
NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
EXAMPLES = sorted(DIRECTORY.glob("*/*/*.json"))


def example(file: Path) -> Any:
    return orjson.loads(file.read_bytes())


def name_of(file: Path) -> str:
    return "/".join(file.parts[-3:])


@pytest.mark.parametrize("file", [f for f in EXAMPLES if f.parent.name == "valid"], ids=name_of)
def test_every_valid_example_is_accepted(file: Path) -> None:
    assert CATALOGUE[file.parts[-3]].fault(example(file)) is None


@pytest.mark.parametrize("file", [f for f in EXAMPLES if f.parent.name == "invalid"], ids=name_of)
def test_every_invalid_example_fails_for_what_it_is_named_after(file: Path) -> None:
    *path, keyword = file.stem.split(".")
    errors = CATALOGUE[file.parts[-3]].validator.iter_errors(example(file))
    found = [(list(map(str, error.instance_path)), error.kind.name) for error in errors]
    where = [step.replace("~1", "/") for step in path]
    if keyword == "required":
        where.pop()
    assert found == [(where, keyword)]
    fault = CATALOGUE[file.parts[-3]].fault(example(file))
    assert fault is not None
    assert fault.startswith("/" + "/".join(path))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_stream_has_examples(name: str) -> None:
    kinds = [file.parent.name for file in EXAMPLES if file.parts[-3] == name]
    assert kinds.count("valid") >= 3
    assert kinds.count("invalid") >= 5


def fields(schema: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for field in schema.get("properties", {}).values():
        found += [field, *fields(field), *fields(field.get("items", {}))]
    return found


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_field_has_a_title_and_every_column_a_comment(name: str) -> None:
    assert all(field.get("title") for field in fields(CATALOGUE[name].schema))
    assert all(column.comment for column in CATALOGUE[name].columns)


def accepts(found: Stream, instance: dict[str, Any]) -> Any:
    """The row, if one of the types fits; None where the validator has to decide."""
    for extract in (found.functions.exact, found.functions.known):
        try:
            return extract(NOW, 1, NOW, instance)
        except ValueError:
            continue
    return None


def spoil(instance: Any, data: st.DataObject) -> Any:
    """The instance with one value somewhere replaced by another kind of value."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            if key not in {"ts", "seq"}:  # these two are looked at before
                places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    spoiled = copy.deepcopy(instance)
    walk(spoiled)
    if places:
        node, key = data.draw(st.sampled_from(places))
        node[key] = data.draw(
            st.sampled_from(
                [None, True, -1, 10**9, 0.5, 1e300, "", "x" * 600, [], {}, [[]], [None]]
            )
        )
    return spoiled


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
@settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_what_the_types_accept_the_validator_accepts_too(name: str, data: st.DataObject) -> None:
    found = CATALOGUE[name]
    valid = data.draw(instances(found.schema))
    assert found.validator.is_valid(valid)
    for instance in (valid, spoil(valid, data)):
        accepted = accepts(found, instance)
        if accepted is not None:
            assert found.validator.is_valid(instance)
            # JSON makes no difference between 1 and 1.0; nor does a number column.
            assert accepted == found.functions.extract(NOW, 1, NOW, instance)


@pytest.mark.parametrize("file", [f for f in EXAMPLES if f.parent.name == "invalid"], ids=name_of)
def test_the_types_accept_no_invalid_example(file: Path) -> None:
    instance = example(file)
    if "ts" in instance:
        assert accepts(CATALOGUE[file.parts[-3]], instance) is None


def test_the_types_accept_what_vehicles_send_most() -> None:
    # Otherwise it would be right and useless.
    driving = example(DIRECTORY / "nev" / "valid" / "driving.json")
    assert accepts(CATALOGUE["nev"], driving) is not None
    packs = example(DIRECTORY / "battery" / "valid" / "two_packs.json")
    assert accepts(CATALOGUE["battery"], packs) is not None


@pytest.mark.parametrize(
    "field",
    [
        {"type": ["number", "null"], "multipleOf": 2},
        {"type": ["string", "null"], "pattern": "^a"},
        {"type": ["array", "null"], "items": {"type": "number"}, "uniqueItems": True},
        {"type": ["object", "null"], "minProperties": 1},
        {"type": ["object", "null"], "properties": {"b": {"type": "number"}}, "maxProperties": 2},
        {"type": ["number", "null"], "maximum": 2**53 + 2},
    ],
)
def test_a_keyword_the_types_do_not_know_is_left_to_the_validator(
    field: dict[str, Any],
) -> None:
    schema = {"type": "object", "properties": {"a": field}}
    found = stream("s", schema)
    for value in (1, "b", [1, 1], {}, {"b": 1}):
        assert accepts(found, {"a": value}) is None
    assert accepts(found, {"a": None}) is not None
    schema = {"type": "object", "properties": {"a": field | {"type": field["type"][0]}}}
    assert accepts(stream("s", schema), {"a": None}) is None


def row(name: str, instance: dict[str, Any]) -> dict[str, Any]:
    found = CATALOGUE[name]
    result = found.row(NOW, 1, NOW, instance)
    assert not isinstance(result, str), result
    return every_column(found, result[0], result[1])


def test_nested_objects_are_flattened_and_arrays_keep_their_kind() -> None:
    found = row("nev", example(DIRECTORY / "nev" / "valid" / "fuel_cell_truck.json"))
    assert found["fuel_cell_voltage_v"] == 312.4
    assert found["fuel_cell_probe_temps_c"] == [61, 62, None]
    assert found["extremes_max_cell_v"] is None
    found = row("nev", example(DIRECTORY / "nev" / "valid" / "driving.json"))
    assert orjson.loads(found["motors"])[0]["torque_nm"] == 38.5
    assert found["extremes_min_cell_cell"] == 3


def test_an_integer_may_be_written_with_a_point() -> None:
    found = row("session", {"ts": 0, "event": "login", "bms_count": 2.0, "packs_per_bms": [1.0, 2]})
    assert (found["bms_count"], type(found["bms_count"])) == (2, int)
    assert [type(n) for n in found["packs_per_bms"]] == [int, int]


def test_date_times_become_instants_and_the_iccid_its_hash() -> None:
    found = row("alarm", {"ts": 0, "raised_at": "2026-11-22T16:00:00+08:00"})
    assert found["raised_at"] == NOW
    found = row("session", {"ts": 0, "event": "login", "iccid": "1"})
    assert found["iccid"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


def test_unknown_fields_are_kept_where_they_stood_and_null_is_absent() -> None:
    found = CATALOGUE["nev"].row(
        NOW, 1, NOW,
        {"ts": 0, "a": 1, "b": None, "location": {"c": [2]}, "extremes": {"min_temp": {"d": {}}}},
    )  # fmt: skip
    assert not isinstance(found, str)
    record, present, _, unknown = found
    assert orjson.loads(every_column(CATALOGUE["nev"], record, present)["extra"]) == {
        "a": 1, "location": {"c": [2]}, "extremes": {"min_temp": {"d": {}}},
    }  # fmt: skip
    assert unknown == 3


def test_empty_objects_are_as_good_as_absent_ones() -> None:
    assert row("nev", {"ts": 0, "location": {}, "extremes": None})["location_lon"] is None


def types(properties: dict[str, Any]) -> dict[str, str]:
    found = columns({"type": "object", "properties": properties}, "test", RESERVED)
    return {column.name: column.sql_type for column in found}


def test_each_kind_of_field_has_its_column_type() -> None:
    assert types(
        {
            "a": {"type": ["number", "null"]},
            "b": {"type": "integer", "minimum": 0, "maximum": 32_767},
            "c": {"type": "integer", "minimum": 0, "maximum": 32_768},
            "d": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            "e": {"type": "boolean"},
            "f": {"type": "string", "format": "date-time"},
            "g": {"type": "string"},
            "h": {"type": "object", "properties": {"x": {"type": "number"}}},
            "i": {"type": "object"},
            "j": {"type": "array", "items": {"type": "number"}},
            "k": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}},
            "l": {"type": "array", "items": {"type": "string"}},
            "m": {"type": "array", "items": {"type": "object"}},
        }
    ) == {
        "a": "double precision", "b": "smallint", "c": "integer", "d": "bigint", "e": "boolean",
        "f": "timestamptz", "g": "text", "h_x": "double precision", "i": "jsonb",
        "j": "double precision[]", "k": "smallint[]", "l": "text[]", "m": "jsonb",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("properties", "why"),
    [
        ({"a": {"type": "integer"}}, "needs minimum and maximum"),
        ({"a": {"type": "integer", "minimum": 0, "maximum": 2**64}}, "no integer column holds"),
        ({"a": {"type": ["string", "number"]}}, "needs one type"),
        ({"a": {}}, "needs one type"),
        ({"A": {"type": "number"}}, "is not a column name"),
        ({"device_id": {"type": "number"}}, "is taken"),
        (
            {
                "a_b": {"type": "number"},
                "a": {"type": "object", "properties": {"b": {"type": "number"}}},
            },
            "is taken",
        ),
    ],
)
def test_a_field_that_no_column_can_hold_is_refused(properties: dict[str, Any], why: str) -> None:
    with pytest.raises(SchemaError, match=why):
        types(properties)


def test_the_table_follows_from_the_schema() -> None:
    text = "\n".join(create_table(CATALOGUE["nev"], partitioned=True))
    assert '"location_lon" double precision' in text
    assert "PRIMARY KEY (device_id, ts, seq)" in text
    assert "PARTITION BY RANGE (ts)" in text
    assert 'COMMENT ON COLUMN iov."nev"."speed_kmh" IS \'Speed [km/h]: Vehicle speed; ' in text
    hyper = "\n".join(create_table(CATALOGUE["nev"], partitioned=False))
    assert "create_hypertable('iov.\"nev\"', by_range('ts', INTERVAL '1 day'))" in hyper
    assert "PARTITION BY" not in hyper
    assert add_column(CATALOGUE["nev"], "x", "text") == 'ALTER TABLE iov."nev" ADD COLUMN "x" text'


def test_names_and_texts_are_quoted() -> None:
    assert quoted('a"b') == '"a""b"'
    assert literal("it's") == "'it''s'"
    assert pointer(["a/b", 0, "c~d"]) == "/a~1b/0/c~0d"


def test_the_page_of_a_stream_names_every_field() -> None:
    text = page(CATALOGUE["nev"], DIRECTORY)
    assert "`speed_kmh`" in text
    assert "`motors[].torque_nm`" in text
    assert "km/h" in text
    assert "GB/T 32960.3-2016, table 9" in text
    assert page(CATALOGUE["session"], DIRECTORY).count("(required)") == 2


def test_the_pages_in_docs_are_those_of_the_schemas() -> None:
    # `iov-ingest schema docs --output docs/streams` brings them up to date.
    here = Path(__file__).parents[2] / "docs" / "streams"
    assert {f.name: f.read_text(encoding="utf-8") for f in here.iterdir()} == pages(
        CATALOGUE, DIRECTORY
    )


def test_a_page_shows_variants_rules_and_what_is_never_stored() -> None:
    text = page(CATALOGUE["v2x"], DIRECTORY)
    assert "- `msg_type` = `RSM`: `participants`" in text
    assert "Besides what is never stored in any stream: `image`, `video`." in text
    assert "`plate_no`" in pages(CATALOGUE, DIRECTORY)["README.md"]
    assert "| `/soc_pct` | `soc_fraction` |" in page(CATALOGUE["nev"], DIRECTORY)
    assert "`iov.device.vin`" in page(CATALOGUE["session"], DIRECTORY)
    assert "## Example: " in text


def test_a_field_of_another_variant_is_refused_and_null_is_not() -> None:
    found = CATALOGUE["v2x"]
    bsm = {"ts": 0, "msg_type": "BSM", "lat": 31.2}
    assert accepts(found, bsm) is not None
    assert found.fault(bsm | {"participants": None}) is None
    fault = found.fault(bsm | {"participants": []})
    assert fault == "/participants is not of type null"


def test_what_describes_the_device_has_no_column_and_is_not_unknown() -> None:
    found = CATALOGUE["session"]
    assert found.device_fields == ("vin", "kind", "region", "fleet")
    assert not {"vin", "kind"} & set(found.column_names)
    result = found.row(NOW, 1, NOW, {"ts": 0, "event": "login", "kind": "car", "vin": None})
    assert not isinstance(result, str)
    assert (result[2], result[0][-1]) == (0, None)
    assert (
        found.fault({"ts": 0, "event": "login", "kind": 7}) == "/kind is not of type null or string"
    )


def test_names_never_stored_are_known_however_they_are_written() -> None:
    never = CATALOGUE["cockpit"].never_stored
    private = {"heartRate": 61, "Heart-Rate": 1, "deep": [{"PLATE_NO": "x", "kept": 1}], "app": 2}
    assert never.without(private) == {"deep": [{"kept": 1}], "app": 2}
    assert never.may_be_in(b'{"heart_rate": 61')
    assert never.may_be_in(b'{"he\\u0061rt": 1')
    assert not never.may_be_in(b'{"speed": 61')
    full_width = "".join(chr(ord(letter) + 0xFEE0) for letter in "heartrate")
    assert never.without({full_width: 61, "h\u00e9art_rate": 1, "kept": 1}) == {"kept": 1}
    many = {f"n{n}": n for n in range(50)}
    assert never.without(many | {full_width: 61, "Heart-Rate": 1}) == many


def test_what_is_stored_as_a_digest_stands_nowhere_else() -> None:
    """Under another spelling, deeper, or in another stream it would be stored in clear."""
    session, nev = CATALOGUE["session"].never_stored, CATALOGUE["nev"].never_stored
    said = {"iccid": "8986", "ICCID": "8986", "x": {"iccid": "8986", "kept": 1}}
    assert session.without(said) == {"iccid": "8986", "x": {"kept": 1}}
    assert nev.without(said) == {"x": {"kept": 1}}
    mobility = CATALOGUE["mobility"]
    (path,) = [column.path for column in mobility.columns if column.convert == "digest"]
    assert len(path) == 2
    said = {path[0]: {path[1]: "me", path[1].upper(): "me"}, path[1]: "me"}
    assert mobility.never_stored.without(said) == {path[0]: {path[1]: "me"}}


NOT_A_SCHEMA = {"type": "number", "minimum": "x"}


def write(file: Path, schema: Any) -> Path:
    file.write_bytes(orjson.dumps(schema) if not isinstance(schema, bytes) else schema)
    return file


def test_adding_a_stream_is_adding_one_file(tmp_path: Path) -> None:
    shutil.copy(DIRECTORY / "envelope.schema.json", tmp_path)
    fields = {"ts": {"$ref": "envelope.schema.json#/$defs/ts"}, "level_pct": {"type": "number"}}
    write(tmp_path / "sea-ice.schema.json", {"type": "object", "properties": fields})
    catalogue = load_catalogue(tmp_path)
    assert list(catalogue) == ["sea-ice"]
    assert catalogue["sea-ice"].table == "sea_ice"
    result = catalogue["sea-ice"].row(NOW, 1, NOW, {"ts": 0, "level_pct": 3})
    assert result == ([None, NOW, 1, NOW, False, 3, None, None], 0, False, 0)


def test_what_stands_beside_a_reference_overrides_its_target(tmp_path: Path) -> None:
    defs = {"a": {"type": "string", "title": "A"}}
    properties = {"x": {"$ref": "#/$defs/a", "title": "X"}}
    file = write(
        tmp_path / "s.schema.json", {"type": "object", "$defs": defs, "properties": properties}
    )
    assert load_schema(file)["properties"]["x"] == {"type": "string", "title": "X"}


@pytest.mark.parametrize(
    ("name", "schema", "why"),
    [
        ("s", b"{", "not JSON"),
        ("s", {"type": "array"}, 'has "type": "object"'),
        ("s", {"type": "object", "properties": {"a": {"$ref": "#/$defs/no"}}}, "points nowhere"),
        ("s", {"type": "object", "properties": {"a": {"$ref": "no.json#"}}}, "No such file"),
        ("s", {"type": "object", "properties": {"a": NOT_A_SCHEMA}}, "not a JSON Schema"),
        ("S", {"type": "object"}, "not a stream name"),
    ],
)  # fmt: skip
def test_a_schema_file_that_is_wrong_says_why(
    tmp_path: Path, name: str, schema: Any, why: str
) -> None:
    write(tmp_path / f"{name}.schema.json", schema)
    with pytest.raises(SchemaError, match=why):
        load_catalogue(tmp_path)


def test_a_directory_without_schemas_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"no \*\.schema\.json there"):
        load_catalogue(tmp_path)


def row_of(
    found: Stream, instance: dict[str, Any], device: str = "V1", ts: datetime = NOW, seq: int = 1
) -> Row:
    result = found.row(ts, seq, NOW, instance)
    assert not isinstance(result, str)
    record, present, resend, unknown = result
    return Row(found.name, device, ts, resend, record, present, delivery({}), 0, unknown)


def test_what_is_not_there_takes_no_place_until_another_row_has_it() -> None:
    found = CATALOGUE["nev"]
    driving = example(DIRECTORY / "nev" / "valid" / "driving.json")
    truck = example(DIRECTORY / "nev" / "valid" / "fuel_cell_truck.json")
    rows = [row_of(found, instance) for instance in (driving, truck, {"ts": 0})]
    before = [every_column(found, row.record, row.present) for row in rows]
    columns, records = found.layout.records(rows, {"V1": 7})
    assert set(columns) < set(found.column_names)
    for record, row, said in zip(records, rows, before, strict=True):
        assert dict(zip(columns, record, strict=True)).items() <= (said | {"device_id": 7}).items()
        assert every_column(found, row.record, row.present) == said | {"device_id": 7}


def test_a_second_store_sees_the_rows_that_the_first_saw() -> None:
    found = CATALOGUE["nev"]
    driving = example(DIRECTORY / "nev" / "valid" / "driving.json")
    rows = [row_of(found, instance) for instance in (driving, {"ts": 0})]
    told = [(row.device, row.ts, row.resend) for row in rows]
    columns, records = found.layout.records(rows, {"V1": 7})
    first = [dict(zip(columns, record, strict=True)) for record in records]
    columns, records = found.layout.records(rows, {"V1": 8})
    assert [dict(zip(columns, record, strict=True)) for record in records] == [
        said | {"device_id": 8} for said in first
    ]
    assert [(row.device, row.ts, row.resend) for row in rows] == told


def test_only_the_layout_knows_places() -> None:
    package, knows = Path(layout_module.__file__).parents[1], {"layout.py", "extract.py"}
    at_a_place = re.compile(r"\brecord\[(-?\d|_|place)")
    found = [
        f"{file.name}: {line.strip()}"
        for file in package.rglob("*.py")
        if file.name not in knows
        for line in file.read_text().splitlines()
        if at_a_place.search(line)
    ]
    assert found == []
    assert at_a_place.search(Path(layout_module.__file__).read_text())


def test_records_are_sorted_by_their_key() -> None:
    found, chance = CATALOGUE["nev"], Random(1)
    rows = [
        row_of(found, {"ts": 0}, f"V{n % 3}", NOW + timedelta(seconds=n // 9), n) for n in range(30)
    ]
    chance.shuffle(rows)
    columns, records = found.layout.records(rows, {"V0": 2, "V1": 1, "V2": 3})
    expected = sorted(records, key=in_key_order)
    sort(records)
    assert records == expected
    key = found.layout.reader(rows[0].present, KEY)
    assert list(map(key, records)) == sorted(map(key, records))
    assert columns[:3] == list(KEY)


def test_what_no_schema_names_is_never_taken_the_short_way() -> None:
    """There it would not be looked at for what must never be stored, so not even in arrays."""
    truck = example(DIRECTORY / "truck" / "valid" / "trailer_and_warning_lamps.json")
    exact = CATALOGUE["truck"].exact
    assert exact(NOW, 1, NOW, truck) is not None
    hidden = [truck | {"x": 1}]
    for name, value in truck.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            hidden.append(truck | {name: [value[0] | {"licensePlate": "B 1"}]})
        if isinstance(value, dict):
            hidden.append(truck | {name: value | {"licensePlate": "B 1"}})
    assert len(hidden) > 2
    for instance in hidden:
        assert exact(NOW, 1, NOW, instance) is None


def test_a_schema_that_names_what_must_never_be_stored_has_no_short_way() -> None:
    fields = {"ts": {"type": "integer"}, "plate": {"type": ["string", "null"]}}
    schema = {"type": "object", "properties": fields, "x-never-stored": ["plate"]}
    assert stream("s", schema).exact(NOW, 1, NOW, {"ts": 0, "plate": "B 1"}) is None


@pytest.mark.parametrize(
    ("stream", "column", "said"),
    [
        ("nev", "extremes_max_cell_v", "Extreme values, Highest cell voltage, Value [V]: "),
        ("nev", "location_lon", "Location, Longitude [°]: "),
        ("nev", "charge_status", "One of parked_charging, driving_charging, not_charging, "),
        ("alarm", "flags", "One of temp_diff, battery_high_temp, "),
        ("battery", "packs", "Each has no, voltage_v [V], current_a [A], "),
    ],
)
def test_a_column_says_where_it_belongs_what_it_may_be_and_has(
    stream: str, column: str, said: str
) -> None:
    (found,) = [c for c in CATALOGUE[stream].columns if c.name == column]
    assert said in found.comment
