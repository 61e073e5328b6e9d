"""Columns of a stream's table, derived from its schema's properties.

Objects are flattened with `_`; arrays of numbers, booleans and strings become SQL arrays; arrays
of objects, and objects that name no properties, become `jsonb`. An integer needs a range, so that
its column can hold every value that the validator accepts. `x-column` names the column if the
flattened name is taken; `x-device` says that a value belongs to the device and has no column here;
`x-text` says how an object among texts is written as text; `x-sentinels` lists numbers that stand
for no value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ingest.errors import SchemaError
from ingest.schema.private import paths

ENVELOPE = ("ts", "seq", "resend", "quality")
"""Sample fields that have a fixed column in every table, whatever the schema says."""

Convert = Literal["none", "int", "int[]", "time", "json", "digest", "text[]"]
"""Conversion that the extractor applies to a non-null value before the driver gets it."""

_COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_INTEGERS = (
    ("smallint", -(2**15), 2**15 - 1),
    ("integer", -(2**31), 2**31 - 1),
    ("bigint", -(2**63), 2**63 - 1),
)
UNITY = "1"
"""`x-unit` of a bare number: a count, an identifier, a ratio (UCUM, the unity)."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a stream's table that holds one schema field."""

    name: str
    path: tuple[str, ...]
    """Path of the value in the sample, outermost name first."""
    sql_type: str
    convert: Convert
    comment: str
    """Text for COMMENT ON COLUMN; see the function `comment`."""
    sentinels: tuple[float, ...] = ()
    """Numbers within the range of its field, or of a field in it, that stand for no value."""
    hashed: tuple[tuple[str, ...], ...] = ()
    """Paths in its value, which is jsonb, of what is stored as a digest."""
    text: tuple[str, ...] = ()
    """Parts of the text that an object among its texts becomes (`x-text`)."""


def columns(schema: dict[str, Any], where: str, reserved: Collection[str]) -> list[Column]:
    """Return the columns of one schema, in the order of its properties.

    `reserved` are the names of columns that every table has. Raises SchemaError for a property that
    no column can hold, or one whose name is taken.
    """
    found = list(_walk(schema, (), (), where))
    seen: dict[str, Column] = {}
    for column in found:
        if column.name in reserved or column.name in seen:
            raise SchemaError(f"{where}: /{'/'.join(column.path)}: column {column.name} is taken")
        if not _COLUMN_NAME.fullmatch(column.name):
            raise SchemaError(f"{where}: {column.name!r} is not a column name (snake_case, 63)")
        seen[column.name] = column
    return found


def json_types(field: dict[str, Any]) -> set[str]:
    """Return the JSON types a field may have, without `null`, which means an absent value."""
    declared = field.get("type", [])
    return {declared} if isinstance(declared, str) else set(declared) - {"null"}


def sentinels(field: dict[str, Any]) -> tuple[float, ...]:
    """Return the numbers within a field's range that stand for no value (`x-sentinels`)."""
    low, high = field.get("minimum", float("-inf")), field.get("maximum", float("inf"))
    return tuple(n for n in field.get("x-sentinels", ()) if low <= n <= high)


def _all_sentinels(field: dict[str, Any], where: str) -> Iterator[float]:
    """Find those of a field and of all fields in it."""
    listed = field.get("x-sentinels", [])
    if not isinstance(listed, list) or not {type(number) for number in listed} <= {int, float}:
        raise SchemaError(f"{where}: x-sentinels lists numbers")
    yield from sentinels(field)
    for inner in (*field.get("properties", {}).values(), field.get("items")):
        if isinstance(inner, dict):
            yield from _all_sentinels(inner, where)


def device_fields(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the fields of a sample that describe its device and are kept in `iov.device`."""
    fields = schema.get("properties", {})
    return tuple(name for name, field in fields.items() if field.get("x-device"))


def _walk(
    schema: dict[str, Any], path: tuple[str, ...], titles: tuple[str, ...], where: str
) -> Iterator[Column]:
    for name, field in schema.get("properties", {}).items():
        if not path and (name in ENVELOPE or field.get("x-device")):
            continue
        if _is_nested(field):
            within = (*titles, field.get("title", name))
            yield from _walk(field, (*path, name), within, where)
        else:
            yield _column(field, (*path, name), titles, f"{where}: /{'/'.join((*path, name))}")


def _is_nested(field: dict[str, Any]) -> bool:
    return json_types(field) == {"object"} and "properties" in field


def _column(
    field: dict[str, Any], path: tuple[str, ...], titles: tuple[str, ...], where: str
) -> Column:
    sql_type, convert = _storage(field, where)
    name = field.get("x-column", "_".join(path))
    inside = tuple(sorted(set(_all_sentinels(field, where))))
    return Column(
        name,
        path,
        sql_type,
        convert,
        comment(field, titles),
        inside,
        hashed=tuple(paths(field.get("items", field), "x-hash")),
        text=tuple(field.get("items", {}).get("x-text", ())),
    )


def _storage(field: dict[str, Any], where: str) -> tuple[str, Convert]:
    match sorted(json_types(field)):
        case ["number"]:
            return "double precision", "none"
        case ["integer"]:
            return _integer(field, where), "int"
        case ["boolean"]:
            return "boolean", "none"
        case ["string"] if field.get("format") == "date-time":
            return "timestamptz", "time"
        case ["string"]:
            return "text", "digest" if field.get("x-hash") else "none"
        case ["object"]:
            return "jsonb", "json"
        case ["array"]:
            return _array(field.get("items", {}), where)
    raise SchemaError(f"{where}: needs one type besides null")


def _array(items: dict[str, Any], where: str) -> tuple[str, Convert]:
    match sorted(json_types(items)):
        case ["number"]:
            return "double precision[]", "none"
        case ["integer"]:
            return f"{_integer(items, where)}[]", "int[]"
        case ["boolean"]:
            return "boolean[]", "none"
        case ["string"] if items.get("format") != "date-time":
            return "text[]", "none"
        case ["object", "string"] if items.get("x-text"):
            return "text[]", "text[]"
    return "jsonb", "json"


def _integer(field: dict[str, Any], where: str) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is None or high is None:
        raise SchemaError(f"{where}: an integer needs minimum and maximum")
    for name, least, most in _INTEGERS:
        if least <= low and high <= most:
            return name
    raise SchemaError(f"{where}: no integer column holds {low} … {high}")


def comment(field: dict[str, Any], within: tuple[str, ...] = ()) -> str:
    """Describe a column in one line; `within` are the titles of the objects around its field.

    The line has title, unit, description, values of an enumeration, and members of objects that
    become jsonb.
    """
    text = f"{', '.join((*within, field.get('title', '')))}{_unit(field)}"
    if field.get("description"):
        text += f": {field['description']}"
    if values := [str(value) for value in _inner(field, "enum") or () if value is not None]:
        text += f" One of {', '.join(values)}."
    if members := _inner(field, "properties"):
        each = "Each has" if "items" in field else "Has"
        text += f" {each} {', '.join(name + _unit(member) for name, member in members.items())}."
    if field.get("x-free-text"):
        text += " Free text: it may hold personal data."
    if field.get("x-hash"):
        text += " Stored as a digest in hexadecimal: HMAC-SHA-256 with a key, SHA-256 without one."
    return text


def _inner(field: dict[str, Any], keyword: str) -> Any:
    """Look a keyword up in a field or in the items of an array."""
    return field.get(keyword) or field.get("items", {}).get(keyword)


def _unit(field: dict[str, Any]) -> str:
    unit = field.get("x-unit") or field.get("items", {}).get("x-unit", UNITY)
    return "" if unit == UNITY else f" [{unit}]"
