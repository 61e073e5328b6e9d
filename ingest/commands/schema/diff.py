"""Comparison of two schemas: whether the new one may replace the old one.

Compatible means that every sample that was accepted is still accepted, that `migrate` can change
the table, and that every column keeps its meaning for readers. A change that widens is compatible.
A change that narrows, that alters a meaning, or of which neither is known, is incompatible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ingest.schema.columns import Column
from ingest.schema.stream import Stream
from ingest.schema.vocabulary import Vocabulary

_WORDS = {"x-vss", "x-free-text", "title", "description", "x-source", "$id", "$schema", "$comment"}
"""Keywords that only explain; a change of them is compatible."""
_UPPER = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_LOWER = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_WALKED = {"properties", "items"}
_SETS = {"required", "enum", "type", "x-never-stored"}
_OF_OBJECTS = {"required", "x-text"}
_INTEGERS = ["smallint", "integer", "bigint"]


class Change(NamedTuple):
    """One difference."""

    where: str
    """Stream and JSON pointer."""
    what: str
    compatible: bool


def diff(old: Mapping[str, Stream], new: Mapping[str, Stream]) -> list[Change]:
    """Return every difference between two catalogues, sorted by stream."""
    changes: list[Change] = []
    for name in sorted({*old, *new}):
        if name not in new:
            changes.append(Change(name, "the stream is gone", compatible=False))
        elif name not in old:
            changes.append(Change(name, "a new stream", compatible=True))
        else:
            changes += _schema(old[name].schema, new[name].schema, name)
            changes += _columns(old[name].columns, new[name].columns, name)
            changes += _other_names(old[name].vocabulary, new[name].vocabulary, name)
    return changes


def _schema(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[Change]:
    for keyword in sorted({*old, *new} - _WALKED):
        before, after = old.get(keyword), new.get(keyword)
        if keyword in _OF_OBJECTS and "object" not in _members(old.get("type")):
            continue  # there was no object that it could concern
        if before != after:
            yield from _keyword(keyword, before, after, where)
    fields, more = old.get("properties", {}), new.get("properties", {})
    for name in fields:
        here = f"{where}/{name}"
        if name in more:
            yield from _schema(fields[name], more[name], here)
        else:
            what = "the field is gone: its values would go to extra"
            yield Change(here, what, compatible=False)
    for name in more:
        if name not in fields:
            yield Change(f"{where}/{name}", "a new field", compatible=True)
    if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
        yield from _schema(old["items"], new["items"], f"{where}/*")
    elif ("items" in old) != ("items" in new):
        yield Change(where, "items changed", compatible=False)


def _keyword(keyword: str, before: Any, after: Any, where: str) -> Iterator[Change]:
    if keyword == "x-hash" and before is None:
        yield Change(where, "stored as a digest from now on", compatible=True)
    elif keyword == "x-sentinels":
        # A number that stands for no value was never a value.
        yield Change(where, f"{keyword}: {before or []} → {after or []}", compatible=True)
    elif keyword == "pattern" and before and after and after.startswith(f"{before}|"):
        yield Change(where, f"{keyword} widened: {after}", compatible=True)
    elif keyword == "uniqueItems":
        what = "may hold items twice" if before else "may hold no item twice"
        yield Change(where, what, compatible=bool(before))
    elif keyword in _WORDS or (keyword == "x-unit" and before is None):
        yield Change(where, f"{keyword} reworded", compatible=True)
    elif keyword in _UPPER | _LOWER:
        wider = after is None or (
            before is not None and (after > before if keyword in _UPPER else after < before)
        )
        word = "widened" if wider else "narrowed"
        yield Change(where, f"{keyword} {word}: {before} → {after}", compatible=wider)
    elif keyword in _SETS:
        yield from _set(keyword, _members(before), _members(after), where)
    else:
        yield Change(where, f"{keyword} changed: {before} → {after}", compatible=False)


def _set(keyword: str, before: set[str], after: set[str], where: str) -> Iterator[Change]:
    gone, added = sorted(before - after), sorted(after - before)
    # More members widen `enum` and `type`; they narrow `required` and `x-never-stored`.
    more_is_wider = keyword in {"enum", "type"}
    if keyword in {"enum", "type"} and (not before or not after):
        wider = not after
        yield Change(where, f"{keyword} {'dropped' if wider else 'set'}", compatible=wider)
        return
    if gone:
        yield Change(where, f"{keyword} without {', '.join(gone)}", compatible=not more_is_wider)
    if added:
        yield Change(where, f"{keyword} with {', '.join(added)}", compatible=more_is_wider)


def _members(value: Any) -> set[str]:
    if value is None:
        return set()
    return {str(item) for item in (value if isinstance(value, list) else [value])}


def _other_names(old: Vocabulary, new: Vocabulary, where: str) -> Iterator[Change]:
    """Yield changes of what other names stand for; one that is gone sends values to `extra`."""
    for name, meaning in old.meanings.items():
        now = new.meanings.get(name)
        if now != meaning:
            what = f"{name} stands for {now or 'nothing'}, not {meaning}"
            yield Change(where, what, compatible=False)
    for name in sorted(new.meanings.keys() - old.meanings.keys()):
        yield Change(where, f"{name} stands for {new.meanings[name]}", compatible=True)


def _columns(old: list[Column], new: list[Column], where: str) -> Iterator[Change]:
    """Yield changed column types; `migrate` refuses each, unless it is a smaller integer."""
    after = {column.name: column for column in new}
    for column in old:
        now = after.get(column.name)
        if now is None or now.sql_type == column.sql_type:
            continue
        narrower = {now.sql_type, column.sql_type} <= set(_INTEGERS) and (
            _INTEGERS.index(now.sql_type) < _INTEGERS.index(column.sql_type)
        )
        what = f"column {column.name}: {column.sql_type} → {now.sql_type}"
        if not narrower:
            what += ", which migrate refuses"
        yield Change(where, what, compatible=narrower)
