"""Variants of a stream: what a sample may hold depends on one field of it.

A schema says so with `allOf`, one `if`/`then` for each value of the field, whose `then` allows the
fields of other variants to be null only. Of another form `allOf` is left to the validator.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_NULL = {"type": "null"}


class Variant(NamedTuple):
    """What holds where `field` has `value`."""

    field: str
    value: str
    foreign: frozenset[str]
    """Fields of other variants, which must be absent or null."""


def variants(schema: dict[str, Any]) -> list[Variant] | None:
    """The variants of a stream, none for most; None where `allOf` is of another form."""
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
