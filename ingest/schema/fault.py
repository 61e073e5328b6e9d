"""The first fault that a schema finds in a sample, in words.

The validator says quickly that something is wrong, but the error it raises holds the faulty value,
which takes 0.3 to 0.7 µs for each number in that value (measured). A thousand samples took half a
second if the faulty value was an array or the sample itself. So faults of an array or an object as
a whole are looked for here first: its type, its number of items, required members, variants. The
validator then looks for the other faults, each of which concerns a single value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jsonschema_rs

from ingest.schema.variants import Variant, variants

_JSON_TYPES = {"array": list, "object": dict}
_WHOLE = frozenset(_JSON_TYPES.values())
_LIMITS = {
    "minimum": "is below the minimum {limit}",
    "maximum": "is above the maximum {limit}",
    "exclusiveMinimum": "is not above {limit}",
    "exclusiveMaximum": "is not below {limit}",
    "minLength": "is shorter than {limit} characters",
    "maxLength": "is longer than {limit} characters",
    "minItems": "has fewer than {limit} items",
    "maxItems": "has more than {limit} items",
    "minProperties": "has fewer than {limit} members",
    "maxProperties": "has more than {limit} members",
    "pattern": "does not match the pattern {pattern}",
    "format": "is not of the format {format}",
    "enum": "is not one of the values allowed",
    "const": "is not the value allowed",
    "required": "is required",
    "type": "is not of type {types}",
}

Path = tuple[str | int, ...]


class Whole(NamedTuple):
    """Demands of a schema on an array or object as a whole, and on the arrays and objects in it."""

    kinds: frozenset[type]
    """Python types that the value may have, out of `list` and `dict`."""
    types: str
    """All JSON types that the value may have, in words."""
    least: int
    most: float
    """Number of items an array may have: from `least` to `most`."""
    items: Whole | None
    required: tuple[str, ...]
    members: dict[str, Whole]
    others: Whole | None
    """Demands on members that the schema does not name."""
    variants: tuple[Variant, ...]

    def fault(self, value: Any) -> tuple[Path, str] | None:
        """Return (path, words) of the first fault in `value`, an array or an object, or None."""
        if type(value) not in self.kinds:
            return (), _words("type", types=self.types)
        return self._object(value) if type(value) is dict else self._array(value)

    def _array(self, value: list[Any]) -> tuple[Path, str] | None:
        if len(value) > self.most:
            return (), _words("maxItems", limit=self.most)
        if len(value) < self.least:
            return (), _words("minItems", limit=self.least)
        if self.items is None or _WHOLE.isdisjoint(map(type, value)):
            return None
        for index, item in enumerate(value):
            if type(item) in _WHOLE and (found := self.items.fault(item)):
                return (index, *found[0]), found[1]
        return None

    def _object(self, value: dict[str, Any]) -> tuple[Path, str] | None:
        for name in self.required:
            if name not in value:
                return (name,), _words("required")
        foreign = self._foreign(value)
        for name, member in value.items():
            if type(member) in _WHOLE:
                if name in foreign:
                    return (name,), _words("type", types="null")
                whole = self.members.get(name, self.others)
                if whole is not None and (found := whole.fault(member)):
                    return (name, *found[0]), found[1]
        return None

    def _foreign(self, value: dict[str, Any]) -> frozenset[str]:
        """Return the fields that must be null in the variant that `value` belongs to."""
        told = (v.foreign for v in self.variants if value.get(v.field) == v.value)
        return next(told, frozenset())


def whole(schema: dict[str, Any]) -> Whole:
    """Return what a schema, with every reference resolved, demands of a value as a whole.

    Keywords that are not known here (`prefixItems`, `patternProperties`) are left to the validator.
    """
    declared = schema.get("type", list(_JSON_TYPES))
    types = [declared] if isinstance(declared, str) else declared
    items = None if "prefixItems" in schema else schema.get("items")
    others = None if "patternProperties" in schema else schema.get("additionalProperties")
    return Whole(
        frozenset(_JSON_TYPES[name] for name in types if name in _JSON_TYPES),
        _listed(types),
        schema.get("minItems", 0),
        schema.get("maxItems", float("inf")),
        whole(items) if isinstance(items, dict) else None,
        tuple(schema.get("required", ())),
        {name: whole(field) for name, field in schema.get("properties", {}).items()},
        whole(others) if isinstance(others, dict) else None,
        tuple(variants(schema) or ()),
    )


def first_fault(
    whole: Whole, validator: jsonschema_rs.Draft202012Validator, sample: dict[str, Any]
) -> str | None:
    """Return what is wrong with a sample; None if it is valid.

    The text begins with the JSON pointer of the field and quotes no value of the sample.
    """
    if validator.is_valid(sample):
        return None
    found = whole.fault(sample)
    if found is not None:
        return f"{pointer(found[0])} {found[1]}"
    try:
        # Raises the first error. `iter_errors` makes all of them before it gives the first:
        # 1.4 million wrong cells took 17 s and 3 GB.
        validator.validate(sample)
    except jsonschema_rs.ValidationError as error:
        return described(error)
    return None


def pointer(path: Iterable[str | int]) -> str:
    """Return the JSON pointer (RFC 6901) of a path."""
    return "".join(f"/{str(p).replace('~', '~0').replace('/', '~1')}" for p in path)


def described(error: jsonschema_rs.ValidationError, within: Path = ()) -> str:
    """Describe a fault of the value at the path `within`, without quoting anything of it."""
    kind = error.kind
    told = kind.as_dict()
    path = [*within, *error.instance_path]
    if kind.name == "required":
        path.append(told["property"])
    if kind.name == "type":
        types = told.get("types", told.get("type", ""))
        told = {"types": _listed([types] if isinstance(types, str) else map(str, types))}
    return f"{pointer(path)} {_words(kind.name, **told)}"


def _words(keyword: str, **told: Any) -> str:
    """Describe a fault only by what the schema itself says: limits, patterns, formats."""
    words = _LIMITS.get(keyword)
    return words.format(**told) if words else f"fails {keyword}"


def _listed(types: Iterable[str]) -> str:
    return " or ".join(sorted(set(types)))
