"""Types that fit a value only if its schema surely allows it.

msgspec converts what orjson has read into such a type, in C, and refuses what does not fit. The
types cover only the keywords that vehicles' fields use. If a schema has any other keyword, no value
fits and the JSON Schema validator decides. Only the validator explains a refusal. So the types may
be too strict but never too lenient; a property test checks this.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from msgspec import Meta, defstruct

from ingest.schema.columns import json_types, sentinels

NOTHING: Any = Annotated[int, Meta(ge=1, le=0)]
"""Type that no value fits, so that the validator decides."""
_ANNOTATIONS = {"title", "description", "$schema", "$id", "$comment"}
_KEYWORDS = {
    "number": {"minimum", "maximum"},
    "integer": {"minimum", "maximum"},
    "boolean": set(),
    "string": {"enum", "maxLength"},
    "array": {"items", "maxItems"},
    "object": {"properties", "required"},
}
_EXACT = 2**53
"""Largest bound given to msgspec: it compares as floats, which are exact only up to here."""

Member = tuple[str, Any, bool]
"""(name, type, whether the member is required)."""


def type_of(field: dict[str, Any], *, unknown: bool) -> Any:
    """Return a type that fits only what `field` allows.

    `unknown`: objects may have members that the schema does not name.
    """
    kinds = json_types(field)
    kind = next(iter(kinds)) if len(kinds) == 1 else ""
    sure = kind in _KEYWORDS and only(field, _KEYWORDS[kind]) and not sentinels(field)
    fits = _fits(kind, field, unknown=unknown) if sure else NOTHING
    null = "null" in field.get("type", ()) and None in field.get("enum", (None,))
    return fits | None if null else fits


def _fits(kind: str, field: dict[str, Any], *, unknown: bool) -> Any:
    match kind:
        case "number" | "integer":
            low, high = field.get("minimum"), field.get("maximum")
            given = [bound for bound in (low, high) if bound is not None]
            type_: Any = float if kind == "number" else int
            if any(abs(bound) > _EXACT or type(bound) not in {int, type_} for bound in given):
                return NOTHING
            return Annotated[type_, Meta(ge=low, le=high)] if given else type_
        case "boolean":
            return bool
        case "string" if "enum" in field:
            texts = [Literal[value] for value in field["enum"] if isinstance(value, str)]
            return reduce(or_, texts) if texts else NOTHING
        case "string":
            return Annotated[str, Meta(max_length=field.get("maxLength"))]
        case "array":
            items: Any = type_of(field.get("items", {}), unknown=unknown)
            return Annotated[list[items], Meta(max_length=field.get("maxItems"))]
    required = set(field.get("required", ()))
    members = [
        (name, type_of(member, unknown=unknown), name in required)
        for name, member in field.get("properties", {}).items()
    ]
    return struct(members, unknown=unknown)


def struct(members: list[Member], *, unknown: bool) -> Any:
    """Return a type for objects with these members; other members may be there if `unknown`."""
    # Fields of a Struct need Python names. They are keyword-only: otherwise required fields would
    # have to come first, and members, which are identified by position, would change places.
    return defstruct(
        "Object",
        [(f"f{n}", type_) if must else (f"f{n}", type_, None)
         for n, (_, type_, must) in enumerate(members)],
        rename={f"f{n}": name for n, (name, _, _) in enumerate(members)},
        kw_only=True, forbid_unknown_fields=not unknown, frozen=True, gc=False,
    )  # fmt: skip


def only(field: dict[str, Any], known: set[str]) -> bool:
    """Return whether a schema constrains values only by `type` and the `known` keywords."""
    return all(
        keyword in known or keyword in _ANNOTATIONS or keyword == "type" or keyword[:2] == "x-"
        for keyword in field
    )
