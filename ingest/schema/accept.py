"""Types that fit a value only if its schema surely allows it.

msgspec converts what orjson has read into such a type, in C, and refuses what does not fit. They
know the keywords that vehicles' fields use; with any other no value fits: the JSON Schema validator
decides then, and it alone explains a refusal. So they may be too strict, never too lenient; a
property test holds them to it.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from msgspec import Meta, defstruct

from ingest.schema.columns import json_types

NOTHING: Any = Annotated[int, Meta(ge=1, le=0)]
"""The type of no opinion: no value fits."""
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
"""Up to here a float tells integers apart; msgspec makes floats of numbers before it compares."""

Member = tuple[str, Any, bool]
"""(name, type, whether it must be there)."""


def type_of(field: dict[str, Any], *, unknown: bool) -> Any:
    """A type that fits only what `field` allows, objects with members of no name if `unknown`."""
    kinds = json_types(field)
    kind = next(iter(kinds)) if len(kinds) == 1 else ""
    sure = kind in _KEYWORDS and only(field, _KEYWORDS[kind])
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
    """A type of objects with these members; others may be there if `unknown`."""
    # Fields of a Struct need Python names and come with those that must be there first; members
    # are told apart by place, so these are keyword-only, which keeps their order.
    return defstruct(
        "Object",
        [(f"f{n}", type_) if must else (f"f{n}", type_, None)
         for n, (_, type_, must) in enumerate(members)],
        rename={f"f{n}": name for n, (name, _, _) in enumerate(members)},
        kw_only=True, forbid_unknown_fields=not unknown, frozen=True, gc=False,
    )  # fmt: skip


def only(field: dict[str, Any], known: set[str]) -> bool:
    """Whether a schema has no keyword that constrains besides `type` and the known ones."""
    return all(
        keyword in known or keyword in _ANNOTATIONS or keyword == "type" or keyword[:2] == "x-"
        for keyword in field
    )
