from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.commands.schema.lint import lint
from ingest.schema import default_directory

NUMBER: dict[str, Any] = {
    "type": ["number", "null"], "title": "T", "description": "D.", "minimum": 0, "x-unit": "%",
    "x-source": "[G]",
}  # fmt: skip
TEXT: dict[str, Any] = {
    "type": ["string", "null"], "title": "T", "description": "D.", "maxLength": 9,
    "x-source": "[G]",
}  # fmt: skip


def test_the_schemas_of_the_product_are_clean() -> None:
    assert lint(default_directory()) == []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The schemas of the product, to be spoiled."""
    shutil.copytree(default_directory(), tmp_path / "schemas")
    return tmp_path / "schemas"


def change(directory: Path, stream: str, pointer: str, value: Any) -> None:
    file = directory / f"{stream}.schema.json"
    node = schema = orjson.loads(file.read_bytes())
    *path, last = pointer.split("/")[1:]
    for step in path:
        node = node[int(step)] if isinstance(node, list) else node[step]
    if value is None:
        del node[last]
    else:
        node[last] = value
    file.write_bytes(orjson.dumps(schema))


def without(field: dict[str, Any], keyword: str) -> dict[str, Any]:
    return {k: v for k, v in field.items() if k != keyword}


@pytest.mark.parametrize(
    ("name", "field", "problem"),
    [
        ("charge_pct", without(NUMBER, "title"), "no title"),
        ("charge_pct", without(NUMBER, "description"), "no description"),
        ("charge_pct", without(NUMBER, "x-source"), "no x-source"),
        ("charge_pct", without(NUMBER, "x-unit"), "needs x-unit"),
        ("charge_pct", NUMBER | {"x-unit": "percent"}, "is not in the list of units"),
        ("charge_v", NUMBER, "the name says V and x-unit %"),
        ("chargePct", NUMBER, "not a column name"),
        ("charge__pct", NUMBER, "not snake_case"),
        ("charge_pct", without(NUMBER, "minimum"), "needs a range"),
        ("charge_pct", NUMBER | {"x-source": "SAE [M]"}, "hard limit and its source is [M]"),
        ("charge_pct", NUMBER | {"x-unti": "%"}, "unknown keywords x-unti"),
        ("charge", without(TEXT, "maxLength"), "a string needs enum"),
        ("charge", TEXT | {"enum": ["a"]}, "allowed by type and not by enum"),
        ("charge", TEXT | {"x-hash": "md5"}, "x-hash is not sha256"),
        ("charge", NUMBER | {"x-device": True}, "x-device is for strings"),
        ("charge", {**TEXT, "type": ["array", "null"], "items": TEXT}, "needs maxItems"),
        ("charge", {**TEXT, "type": ["array", "null"], "maxItems": 3}, "needs items"),
        ("charge", without(NUMBER, "minimum") | {"type": "integer"}, "needs minimum and maximum"),
        (
            "charges",
            {**TEXT, "type": ["array", "null"], "maxItems": 3, "items": {"type": "string"}},
            "items allow null",
        ),
        ("charge_pct", NUMBER | {"x-sentinels": ["n/a"]}, "x-sentinels lists numbers"),
        ("charge", TEXT | {"x-sentinels": [255]}, "x-sentinels is for a number"),
        ("seq_no", TEXT | {"type": ["string", "integer"]}, "needs one type"),
    ],
)
def test_a_field_that_is_not_as_it_should_be_is_found(
    directory: Path, name: str, field: dict[str, Any], problem: str
) -> None:
    change(directory, "session", f"/properties/{name}", field)
    found = lint(directory)
    assert any(problem in line and name in line for line in found), found


def test_a_field_of_a_name_never_stored_is_found(directory: Path) -> None:
    change(directory, "cockpit", "/properties/heart_rate", NUMBER)
    assert [line for line in lint(directory) if "x-never-stored" in line]


@pytest.mark.parametrize(
    ("stream", "pointer", "value", "problem"),
    [
        ("nev", "/title", None, "nev: no title"),
        ("nev", "/$schema", "http://json-schema.org/draft-07/schema#", '"$schema" is not'),
        ("nev", "/required", [], "ts is not required"),
        ("nev", "/properties/quality", None, "/quality of the envelope is missing"),
        ("nev", "/x-shadow", True, "unknown keywords x-shadow"),
        ("nev", "/properties/speed_kmh", None, "nev has no field"),
        ("v2x", "/allOf/0/if/properties/msg_type/const", "XYZ", "XYZ is no value of /msg_type"),
        ("v2x", "/allOf/0/then/properties/no_such", {"type": "null"}, "forbids unknown fields"),
        ("v2x", "/allOf/0/then/properties/devices", {"type": "array"}, "not a list of variants"),
    ],
)
def test_a_stream_that_is_not_as_it_should_be_is_found(
    directory: Path, stream: str, pointer: str, value: Any, problem: str
) -> None:
    if problem.endswith("has no field"):
        pointer = "/properties/soc_pct"
    change(directory, stream, pointer, value)
    assert any(problem in line for line in lint(directory)), lint(directory)


def test_examples_that_are_missing_or_fail_for_another_reason_are_found(directory: Path) -> None:
    here = directory / "alarm"
    for file in list((here / "valid").iterdir())[1:]:
        file.unlink()
    (here / "invalid" / "max_level.maximum.json").write_text('{"ts":0,"max_level":-1}')
    (here / "invalid" / "flags.0.enum.json").write_text('{"ts":0,"max_level":1}')
    (here / "invalid" / "dtcs.0.pattern.json").write_text("{")
    (here / "valid" / "wrong.json").write_text('{"ts":0,"max_level":9}')
    found = "\n".join(lint(directory))
    assert "alarm: 2 valid examples, at least 3" in found
    assert "invalid/max_level.maximum.json: fails for max_level.minimum" in found
    assert "invalid/flags.0.enum.json: fails for nothing" in found
    assert "invalid/dtcs.0.pattern.json: not JSON" in found
    assert "valid/wrong.json: /max_level is above the maximum 4" in found


def test_problems_of_many_files_are_reported_together(directory: Path) -> None:
    change(directory, "nev", "/title", None)
    (directory / "truck.schema.json").write_text("{")
    rules = directory / "plausibility.json"
    document = orjson.loads(rules.read_bytes())
    document["rules"][0] |= {"streams": ["train"], "description": ""}
    rules.write_bytes(orjson.dumps(document))
    found = "\n".join(lint(directory))
    for problem in ("nev: no title", "truck.schema.json: not JSON", "no stream train",
                    "plausibility rule 0: no description"):  # fmt: skip
        assert problem in found
    rules.write_text("[]")
    assert 'no list "rules"' in lint(directory)[0]
