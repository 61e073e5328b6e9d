"""Faults of an array or an object as a whole are told without the validator's error."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import orjson
import pytest

from ingest.schema import default_directory
from ingest.schema.columns import json_types
from ingest.schema.fault import Whole, first_fault, whole
from tests.support import CATALOGUE

MANY = [0.25] * 5
NO_WHOLE = Whole(frozenset((list, dict)), "", 0, float("inf"), None, (), {}, None, ())
"""Has nothing against anything, so that the validator is asked."""


def mistakes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Members of a sample, one at a time, that are large and perhaps not what the schema wants."""
    for name, field in schema.get("properties", {}).items():
        for value in (MANY, {"x": MANY}, [{"x": MANY}], [MANY]):
            yield {name: value}
        if "maxItems" in field:
            item: Any = {} if "object" in json_types(field["items"]) else None
            yield {name: [item] * (field["maxItems"] + 1)}
        yield from ({name: inner} for inner in mistakes(field))
        yield from ({name: [inner]} for inner in mistakes(field.get("items", {})))


def asks_only_whether() -> jsonschema_rs.Draft202012Validator:
    """A validator that finds every sample wrong and never says why."""
    asked: Any = SimpleNamespace(is_valid=lambda _: False)
    return asked  # type: ignore[no-any-return]  # stands in for one


@pytest.mark.parametrize("stream", CATALOGUE)
def test_says_what_the_validator_says_of_whole_arrays_and_objects(stream: str) -> None:
    found = CATALOGUE[stream]
    valid = next((default_directory() / stream / "valid").glob("*.json"))
    sample = orjson.loads(valid.read_bytes())
    head = {"big": MANY} | {name: sample[name] for name in found.schema["required"]}
    told_by = [{v.field: v.value} for v in found.whole.variants] or [{}]
    heads = [head | variant for variant in told_by]
    wrong = [head | mistake for head in heads for mistake in mistakes(found.schema)]
    wrong = [{"big": MANY}, *wrong]
    told = 0
    for sample in wrong:
        errors = [] if found.validator.is_valid(sample) else [*found.validator.iter_errors(sample)]
        theirs = {said(error) for error in errors if is_whole(error)}
        if theirs:
            told += 1
            assert first_fault(found.whole, asks_only_whether(), sample) in theirs
    assert told > 5


def is_whole(error: jsonschema_rs.ValidationError) -> bool:
    """Tell an error that holds an array or an object, apart from one that `maxItems` bounds."""
    return isinstance(error.instance, list | dict) and error.kind.name != "uniqueItems"


def said(error: jsonschema_rs.ValidationError) -> str | None:
    """An error of the validator's in our words."""

    def fails(_: Any) -> None:
        raise error

    validator: Any = SimpleNamespace(is_valid=lambda _: False, validate=fails)
    return first_fault(NO_WHOLE, validator, {})


def test_members_without_a_name_in_the_schema_are_looked_at_too() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "string"}}
    validator = jsonschema_rs.Draft202012Validator(schema)
    assert first_fault(whole(schema), validator, {"x": "y"}) is None
    assert first_fault(whole(schema), asks_only_whether(), {"a/b": MANY}) == (
        "/a~1b is not of type string"
    )
