"""Variants of a stream: the value of one field decides which other fields a sample may hold.

A schema declares them with `allOf`: one `if`/`then` for each value of the field, whose `then`
allows only null for the fields of other variants. An `allOf` of another form is left to the
validator.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_NULL = {"type": "null"}


class Variant(NamedTuple):
    """Rule for samples whose `field` has `value`."""

    field: str
    value: str
    foreign: frozenset[str]
    """Fields of other variants, which must be absent or null."""


def variants(schema: dict[str, Any]) -> list[Variant] | None:
    """Return the variants of a stream, an empty list for most; None if `allOf` has another form."""
    found = []
    for part in schema.get("allOf", ()):
        match part:
            case {"if": {"properties": condition}, "then": {"properties": foreign, **more}} if (
                not more and len(condition) == 1 and all(f == _NULL for f in foreign.values())
            ):
                ((field, test),) = condition.items()
                if set(test) != {"const"} or set(part) - {"title", "if", "then"}:
                    return None
                found.append(Variant(field, test["const"], frozenset(foreign)))
            case _:
                return None
    return found
