"""A page of documentation for one stream, from its schema alone (Markdown)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ingest.schema.columns import ENVELOPE, json_types
from ingest.schema.stream import Stream


def page(stream: Stream) -> str:
    """What the stream carries: every field with its type, unit, range, column and source."""
    schema = stream.schema
    columns = {column.path: f"`{column.name} {column.sql_type}`" for column in stream.columns}
    required = set(schema.get("required", ()))
    lines = [
        f"# `{stream.name}`: {schema.get('title', '')}",
        "",
        schema.get("description", ""),
        "",
        (
            f"Topic `iov/v1/{{device}}/{stream.name}`, table `iov.{stream.table}`, key "
            "`(device_id, ts, seq)`."
        ),
        "",
        "| field | type | unit | range | column | meaning | source |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path, field in _fields(schema, ()):
        name = ".".join(path)
        column = columns.get(tuple(path))
        if column is None:
            column = f"`{path[0]}`" if path[0] in ENVELOPE else "in its array"
        meaning = field.get("title", "")
        if field.get("description"):
            meaning += f". {field['description']}"
        cells = (
            f"`{name}`" + (" (required)" if name in required else ""),
            _type(field),
            field.get("x-unit", ""),
            _range(field),
            column,
            meaning,
            field.get("x-source", ""),
        )
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _fields(schema: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[list[str], Any]]:
    for name, field in schema.get("properties", {}).items():
        here = (*path, name)
        items = field.get("items", {})
        if "properties" in field:
            yield from _fields(field, here)
        elif "properties" in items:
            yield from _fields(items, (*path, f"{name}[]"))
        else:
            yield list(here), field


def _type(field: dict[str, Any]) -> str:
    kinds = sorted(json_types(field))
    if kinds == ["array"]:
        return f"array of {_type(field.get('items', {}))}"
    text = " or ".join(kinds)
    return f"{text} ({field['format']})" if "format" in field else text


def _range(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"] if value is not None)
    if "items" in field:
        return _range(field["items"])
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None or high is not None:
        return f"{'' if low is None else low} … {'' if high is None else high}".strip()
    if "pattern" in field:
        return f"`{field['pattern']}`"
    return f"at most {field['maxLength']} characters" if "maxLength" in field else ""
