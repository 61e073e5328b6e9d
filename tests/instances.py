"""Instances of our schemas for property tests; supports exactly the keywords the schemas use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

_WHOLE = st.integers(-(2**53), 2**53)
_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_DATE_TIMES = st.datetimes().map(lambda at: at.isoformat() + "Z")


def instances(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for values that the schema allows and that stand for something.

    Some objects have unknown fields.
    """
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return st.one_of([_of_kind(kind, schema) for kind in kinds])


def _of_kind(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum"), schema.get("maximum")
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            whole = st.integers(low, high) if low is not None else _WHOLE
            whole = whole.filter(lambda n: n not in schema.get("x-sentinels", ()))
            return whole | whole.filter(lambda n: abs(n) < 2**53).map(float)
        case "number":
            floats = st.floats(low, high, allow_nan=False, allow_infinity=False)
            floats = floats if low is not None and low > 0 else floats | st.just(low or 0)
            return floats.filter(lambda n: n not in schema.get("x-sentinels", ()))
        case "string":
            return _strings(schema)
        case "array":
            most = min(schema.get("maxItems", 2), 2)
            unique = repr if schema.get("uniqueItems") else None
            return st.lists(instances(schema["items"]), max_size=most, unique_by=unique)
        case "object":
            return _objects(schema)
    raise AssertionError(f"no instances of type {kind}")


def _strings(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if schema.get("format") == "date-time":
        return _DATE_TIMES
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).filter(lambda s: s.isascii())
    return _TEXT.map(lambda text: text[: schema.get("maxLength", 20)])


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    if "additionalProperties" in schema:
        names = st.from_regex(r"/[a-z]{1,5}", fullmatch=True)
        return st.dictionaries(names, instances(schema["additionalProperties"]), max_size=3)
    members = schema["properties"]
    required = {name: instances(members[name]) for name in schema.get("required", ())}
    optional = {name: instances(members[name]) for name in members if name not in required}
    known = st.fixed_dictionaries(required, optional=optional)
    unknown = st.dictionaries(
        _TEXT.map(lambda text: "x" + text),
        st.integers(-9, 9) | st.lists(_TEXT, max_size=2),
        max_size=2,
    )
    variant = _as_one_variant(schema)
    return st.tuples(unknown, known).map(lambda both: both[0] | variant(both[1]))


def _as_one_variant(schema: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that removes the fields of other variants than the instance's own."""

    def only_own(instance: dict[str, Any]) -> dict[str, Any]:
        foreign = {
            name
            for part in schema.get("allOf", ())
            for field, test in part["if"]["properties"].items()
            if instance.get(field) == test["const"]
            for name in part["then"]["properties"]
        }
        return {name: value for name, value in instance.items() if name not in foreign}

    return only_own
