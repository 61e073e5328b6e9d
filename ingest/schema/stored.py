"""A stored row as the sample that it was: the way back from columns to fields. Pure.

What the extractor joined, rounded or replaced stays so: a digest is a digest, an object that became
text is text, a number that stood for no value is absent. The values that the schema refused then
are back at their places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from ingest.schema.aside import MEMBER
from ingest.schema.columns import Column


class StoredSample(NamedTuple):
    """A sample that was stored."""

    sample: dict[str, Any]
    refused: frozenset[str]
    """JSON pointers of the values that its schema refused."""


def sample_of(columns: Iterable[Column], row: Mapping[str, Any]) -> StoredSample:
    """Return the sample of a row, which maps names of columns to values; jsonb as Python has it."""
    sample: dict[str, Any] = {"ts": row["ts"].isoformat()}
    if row["seq"] >= 0:  # otherwise it was derived from the content
        sample["seq"] = row["seq"]
    if row["resend"]:
        sample["resend"] = True
    for column in columns:
        value = row.get(column.name)
        if value is not None:
            *around, name = column.path
            place = sample
            for step in around:
                place = place.setdefault(step, {})
            place[name] = _as_sent(value, column)
    extra = dict(row["extra"] or {})
    refused = _refused(extra, row["quality"] or {})
    if refused:
        del extra[MEMBER]
    _merge(sample, extra)
    for pointer, value in refused.items():
        _put_back(sample, _steps(pointer), value)
    return StoredSample(sample, frozenset(refused))


def _refused(extra: Mapping[str, Any], quality: Mapping[str, Any]) -> dict[str, Any]:
    """Return the refused values by pointer; empty if a field of that name is the vehicle's own.

    The service marks every value that it sets aside.
    """
    found = extra.get(MEMBER)
    if not isinstance(found, dict):
        return {}
    marked = [at for at in found if at[:1] == "/" and at in quality]
    theirs = {*found} - {*marked, f"/{MEMBER}"}
    return dict(found) if marked and not theirs else {}


def _as_sent(value: Any, column: Column) -> Any:
    """Return a column's value as it may stand in a sample."""
    if isinstance(value, datetime):
        return value.isoformat()
    if column.text:
        # An object that has more than its text can say was kept as JSON.
        return [_object(item) if (item or "").startswith("{") else item for item in value]
    return value


def _object(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text  # a vehicle sent it so


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add members, at any depth; those that are there stay."""
    for name, value in more.items():
        there = into.get(name)
        if isinstance(there, dict) and isinstance(value, Mapping):
            _merge(there, value)
        else:
            into.setdefault(name, value)


def _steps(pointer: str) -> list[str]:
    """Return the steps of a JSON pointer (RFC 6901, 4)."""
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _put_back(node: Any, steps: list[str], value: Any) -> None:
    """Put a value to its place, if that is empty and the objects and arrays around it are there."""
    *around, last = steps
    for step in around:
        if isinstance(node, list):
            node = node[int(step)] if _is_index(step, node) else None
        elif isinstance(node, dict):
            node = node.setdefault(step, {})
    if isinstance(node, dict) and node.get(last) is None:
        node[last] = value
    elif isinstance(node, list) and _is_index(last, node) and node[int(last)] is None:
        node[int(last)] = value


def _is_index(step: str, items: list[Any]) -> bool:
    """Return whether a step of a pointer is the place of an item."""
    return len(step) <= len(str(len(items))) and step.isdecimal() and int(step) < len(items)
