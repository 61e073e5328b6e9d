"""Other names for a stream's fields: COVESA VSS, and the vocabularies that a file lists.

A sample may use them in place of our own names, each as one key at its top level
(`"Vehicle.Speed": 46.8`). `x-vss` of a field is its path in VSS; `vocabularies.json` beside the
schemas has the others. A number is multiplied by a factor if the other unit differs. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ingest.errors import SchemaError
from ingest.schema.columns import ENVELOPE, json_types

KEYWORD = "x-vss"
FILE = "vocabularies.json"
_VSS_PATH = re.compile(r"Vehicle(\.[A-Z][A-Za-z0-9]*)+", re.ASCII)
_DIGITS = 12
"""Significant digits that are kept after a multiplication, which hides its rounding error."""


class Meaning(NamedTuple):
    """Field that another name stands for."""

    path: tuple[str, ...]
    factor: float
    """Factor that brings a number into our unit."""

    def __str__(self) -> str:
        """Return its JSON pointer, and the factor if there is one."""
        return f"/{'/'.join(self.path)}" + (f" by {self.factor}" if self.factor != 1 else "")


class Vocabulary:
    """Other names of one stream's fields."""

    def __init__(self, meanings: Mapping[str, Meaning]) -> None:
        self._meanings = dict(meanings)
        self._names = frozenset(meanings)

    @property
    def fields(self) -> set[str]:
        """Names of the fields that have other names."""
        return {meaning.path[-1] for meaning in self._meanings.values()}

    @property
    def meanings(self) -> Mapping[str, Meaning]:
        """Fields by their other names."""
        return self._meanings

    def names_of(self, path: Sequence[str]) -> list[str]:
        """Return the other names of a field."""
        return [name for name, meaning in self._meanings.items() if meaning.path == tuple(path)]

    def translated(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return a sample with our own names; the same object if it uses no other.

        A value that has its own name too stays, and the other becomes an unknown field.
        """
        if self._names.isdisjoint(sample):
            return sample
        ours: dict[str, Any] = {}
        others: list[tuple[Meaning, str, Any]] = []
        for name, value in sample.items():
            meaning = self._meanings.get(name)
            if meaning is None or value is None:
                ours[name] = value
            else:
                others.append((meaning, name, value))
        for meaning, name, value in others:
            place = _place(ours, sample, meaning.path)
            converted = _in_our_unit(value, meaning.factor)
            if place is None or meaning.path[-1] in place or converted is None:
                ours[name] = value
            else:
                place[meaning.path[-1]] = converted
        return ours


def _place(
    ours: dict[str, Any], sample: Mapping[str, Any], path: tuple[str, ...]
) -> dict[str, Any] | None:
    """Return the object of `ours` that holds the end of a path; None if it is no object.

    Objects are made, or copied from those of `sample`, which is not changed.
    """
    theirs: Any = sample
    for step in path[:-1]:
        theirs = theirs.get(step) if isinstance(theirs, dict) else None
        inner = ours.get(step)
        if inner is None:
            inner = ours[step] = {}
        elif not isinstance(inner, dict):
            return None
        elif inner is theirs:
            inner = ours[step] = dict(inner)
        ours = inner
    return ours


def _in_our_unit(value: Any, factor: float) -> Any:
    """Return a value in our unit; None if that is no number any more."""
    if factor == 1 or type(value) not in {int, float}:
        return value
    try:
        product = float(f"{value * factor:.{_DIGITS}g}")
    except OverflowError:
        return None
    return product + 0.0 if math.isfinite(product) else None  # + 0.0: no negative zero


def vocabulary(name: str, schema: Mapping[str, Any], others: Mapping[str, Any]) -> Vocabulary:
    """Return the other names of a stream's fields; raises SchemaError if one is wrong.

    `others` is the content of the file of vocabularies; what it says of fields that the schema does
    not have is left out.
    """
    meanings: dict[str, Meaning] = {}
    own = {*schema.get("properties", {}), *ENVELOPE}
    for path, said in _vss(schema):
        vss, factor = _said(said, "path")
        if not isinstance(vss, str) or not _VSS_PATH.fullmatch(vss):
            raise SchemaError(f"{name}: /{'/'.join(path)}: {KEYWORD} is no path of VSS")
        _add(meanings, name, vss, path, factor)
    for other, said in _listed(name, others):
        to, factor = _said(said, "field")
        path = tuple(to.split("/")[1:]) if isinstance(to, str) else ()
        if other in own:
            raise SchemaError(f"{FILE}: {name}: {other} is a name of our own")
        if _has(schema, path):
            _add(meanings, name, other, path, factor)
    for other, meaning in meanings.items():
        if fault := _fault(schema, meaning):
            raise SchemaError(f"{name}: {other} must not stand for {meaning}: {fault}")
    return Vocabulary(meanings)


def _fault(schema: Mapping[str, Any], meaning: Meaning) -> str | None:
    """Return why no other name may stand for a field; None if one may."""
    field = dict(schema)
    for step in meaning.path:
        field = field["properties"][step]
    if meaning.path[0] in ENVELOPE or "properties" in field or "items" in field:
        return "it is no single value of the sample's own"
    if field.get("x-hash") or field.get("x-device"):
        # A dead letter has what a vehicle sent under another name as it came.
        return "it is stored as a digest, or with the device"
    if meaning.factor != 1 and not {"number", "integer"} & json_types(field):
        return "a factor is for numbers"
    return None


def without_field(name: str, schema: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the names in vocabularies that stand for no field of a stream."""
    return [
        other
        for other, said in _listed(name, others)
        if not _has(schema, tuple(str(_said(said, "field")[0]).split("/")[1:]))
    ]


def _listed(name: str, others: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (other name, what it stands for) of one stream, from every vocabulary."""
    for vocabulary_, listed in others.items():
        fields = listed.get("fields") if isinstance(listed, dict) else None
        if not isinstance(fields, dict) or not all(isinstance(of, dict) for of in fields.values()):
            raise SchemaError(f"{FILE}: {vocabulary_} has no fields by stream")
        yield from fields.get(name, {}).items()


def _said(said: Any, key: str) -> tuple[Any, Any]:
    """Return (what is said, factor), which an object holds, or a text alone."""
    return (said.get(key), said.get("factor", 1)) if type(said) is dict else (said, 1)


def _add(
    meanings: dict[str, Meaning], stream: str, name: str, path: tuple[str, ...], factor: Any
) -> None:
    if name in meanings:
        raise SchemaError(f"{stream}: {name} stands for two fields")
    if type(factor) not in {int, float} or factor == 0:
        raise SchemaError(f"{stream}: {name}: factor is a number that is not 0")
    meanings[name] = Meaning(path, factor)


def _vss(
    schema: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, `x-vss`) of every field that is not in an array."""
    for name, field in schema.get("properties", {}).items():
        if KEYWORD in field:
            yield (*path, name), field[KEYWORD]
        yield from _vss(field, (*path, name))


def _has(schema: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """Return whether a path leads to a field."""
    for step in path:
        if step not in schema.get("properties", {}):
            return False
        schema = schema["properties"][step]
    return bool(path)
