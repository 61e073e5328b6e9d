"""A schema's columns become functions that turn a sample into row values.

`exact` and `known` test and extract in one pass, by types that only valid samples fit; `extract` is
for samples that the validator has passed. They are written out as source text once, at start, and
compiled: `print(source(layout, [], "all"))`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import orjson
from msgspec import convert
from msgspec.structs import astuple

from ingest.schema.accept import NOTHING, Member, only, struct, type_of
from ingest.schema.columns import ENVELOPE, device_fields
from ingest.schema.layout import (
    FIRST,
    LEADING,
    TRAILING,
    Layout,
    Object,
    Path,
    Record,
    keep_extra,
)
from ingest.schema.rfc3339 import rfc3339
from ingest.schema.variants import Variant, variants

Extracted = tuple[Record, int, bool, int]
"""(record, which objects are there, resend, number of unknown fields); see `Layout`."""
Extract = Callable[[datetime, int, datetime, dict[str, Any]], Extracted]
"""(ts, seq, received_at, sample) → Extracted; raises ValueError if it is not sure."""

Care = Literal["any", "known", "all"]
"""How well a sample must fit: not at all; what the schema names; that, and there is nothing else.
"""
_CONVERSIONS = {
    "int": "int({found})",
    "int[]": "[None if i is None else int(i) for i in {found}]",
    "time": "rfc3339({found})",
    "json": "dumps({found})",
    "sha256": "sha256({found})",
}
_UNNAMED = {"type": ["null"]}
"""A member of the envelope that a schema does not have."""
_DONE_BY_TYPE = {"int", "int[]"}


class Functions(NamedTuple):
    """What is made for one stream."""

    exact: Extract
    """For samples that surely are as the schema wants them, and hold nothing it does not name, not
    even in arrays: most."""
    known: Extract
    """For samples that may hold more."""
    extract: Extract
    """For samples that the validator has passed; raises nothing."""


def functions(schema: dict[str, Any], layout: Layout) -> Functions:
    """The functions of one stream."""
    names = _known_names(schema, layout.sample)
    sure = variants(schema) is not None and only(schema, {"properties", "required", "allOf"})

    def keeping_unknown(extract: Extract) -> Extract:
        def extract_all(
            ts: datetime, seq: int, received_at: datetime, sample: dict[str, Any]
        ) -> Extracted:
            record, present, resend, _ = extract(ts, seq, received_at, sample)
            return record, present, resend, _keep_unknown(record, sample, names)

        return extract_all

    return Functions(
        _compiled(schema, layout, "all") if sure else never_sure,
        keeping_unknown(_compiled(schema, layout, "known") if sure else never_sure),
        keeping_unknown(_compiled(schema, layout, "any")),
    )


def never_sure(*_: Any) -> Extracted:
    """For a schema that asks for more than types can tell."""
    raise ValueError


def _compiled(schema: dict[str, Any], layout: Layout, care: Care) -> Extract:
    """The function that takes samples apart by one type."""
    names: dict[str, Any] = {
        "fitting": struct(_sample_members(schema, layout.sample, care), unknown=care != "all"),
        "astuple": astuple,
        "convert": convert,
        "dumps": orjson.dumps,
        "rfc3339": rfc3339,
        "sha256": sha256,
    }
    found = (variants(schema) or []) if care != "any" else []
    names |= {f"foreign_{number}": variant.foreign for number, variant in enumerate(found)}
    exec(source(layout, found, care), names)  # noqa: S102  text from our own schema files
    extract: Extract = names["extract"]
    return extract


def source(layout: Layout, found: Sequence[Variant], care: Care) -> str:
    """The source text of that function, for reading and for `exec`.

    `fitting` is the type; a part is the value of one of its members: `resend`, the sample's own
    columns, the objects in it, what else the schema names, `quality`.
    """
    own = len(layout.sample.columns)
    leading, trailing = (", ".join(c.name for c in fixed) for fixed in (LEADING, TRAILING))
    lines = [
        "def extract(ts, seq, received_at, sample):",
        *_refuse_foreign(found),
        "    parts = astuple(convert(sample, fitting))",
        "    device_id, resend = None, parts[0] is True",
        f"    record = [{leading}, *parts[1:{own + 1}]]",
        *_convert(layout.sample, FIRST, care),
        "    present = 0",
        *_add_objects(layout, layout.sample, "parts", own + 1, care),
        "    quality, extra = parts[-1], None",
        "    if quality is not None:",
        "        quality = dumps(quality)",
        f"    record += {trailing}",
        "    return record, present, resend, 0",
    ]
    return "\n".join(lines) + "\n"


def _refuse_foreign(found: Sequence[Variant]) -> Iterator[str]:
    """Nothing foreign is there: the usual case costs one look at the names."""
    for number, variant in enumerate(found):
        here = f"sample.get({variant.field!r}) == {variant.value!r}"
        yield f"    if {here} and not foreign_{number}.isdisjoint(sample):"
        yield "        raise ValueError"


def _convert(object_: Object, place: int, care: Care) -> Iterator[str]:
    """Convert what needs it of an object whose columns have just been put at `place`."""
    for number, column in enumerate(object_.columns, place):
        conversion = _CONVERSIONS.get(column.convert)
        if conversion and not (care != "any" and column.convert in _DONE_BY_TYPE):
            found = "sample" + "".join(f"[{name!r}]" for name in column.path)
            yield f"    if record[{number}] is not None:"
            yield f"        record[{number}] = {conversion.format(found=found)}"


def _add_objects(
    layout: Layout, object_: Object, parts: str, first: int, care: Care
) -> Iterator[str]:
    """Add the objects in an object to the record; they are its `parts` from `first` on."""
    for number, inner in enumerate(object_.objects, first):
        bit, own = layout.bits[inner.path], len(inner.columns)
        inner_parts = f"parts_{bit}"
        lines = [
            f"    {inner_parts} = astuple({parts}[{number}])",
            f"    record += {inner_parts}[:{own}]",
            f"    present |= {bit}",
            *_convert(inner, -own, care),
            *_add_objects(layout, inner, inner_parts, own, care),
        ]
        yield f"    if {parts}[{number}] is not None:"
        yield from (f"    {line}" for line in lines)


def _sample_members(schema: dict[str, Any], sample: Object, care: Care) -> list[Member]:
    """`resend`, columns, objects, what else the schema names, `quality`."""
    fields, required = schema.get("properties", {}), set(schema.get("required", ()))
    members = _members(schema, sample, care)
    others = {*fields, *ENVELOPE} - {name for name, *_ in members} - {"resend", "quality"}

    def member(name: str) -> Member:
        # `ts` and `seq` were looked at before.
        if care == "any" or name in {"ts", "seq"}:
            return name, Any, name in required and care != "any"
        field = fields.get(name, _UNNAMED)
        return name, type_of(field, unknown=care != "all"), name in required

    return [member("resend"), *members, *map(member, sorted(others)), member("quality")]


def _members(schema: dict[str, Any], object_: Object, care: Care) -> list[Member]:
    """The columns of an object and then the objects in it."""
    fields, required = schema.get("properties", {}), set(schema.get("required", ()))
    if care == "any":
        required = set()
    members: list[Member] = []
    type_: Any
    for column in object_.columns:
        name = column.path[-1]
        field = fields[name]
        if column.convert == "time":
            # Converting it will tell.
            field = {keyword: value for keyword, value in field.items() if keyword != "format"}
        type_ = Any if care == "any" else type_of(field, unknown=care != "all")
        members.append((name, type_, name in required))
    for inner in object_.objects:
        name = inner.path[-1]
        field = fields[name]
        sure = care == "any" or only(field, {"properties", "required"})
        type_ = struct(_members(field, inner, care), unknown=care != "all") if sure else NOTHING
        if care == "any" or "null" in field.get("type", ()):
            type_ |= None
        members.append((name, type_, name in required))
    return members


def _known_names(schema: dict[str, Any], sample: Object) -> dict[Path, frozenset[str]]:
    """The field names the schema has in each flattened object."""
    return {
        object_.path: frozenset(
            [c.path[-1] for c in object_.columns]
            + [inner.path[-1] for inner in object_.objects]
            + ([] if object_.path else [*ENVELOPE, *device_fields(schema)])
        )
        for object_ in sample.all()
    }


def _keep_unknown(
    record: Record, sample: dict[str, Any], names: Mapping[Path, frozenset[str]]
) -> int:
    """Put what the schema does not name into `extra`, at the place it had; how many fields."""
    extra: dict[str, Any] = {}
    number = 0
    for path, known in names.items():
        found = _at(sample, path)
        if not found or known.issuperset(found):
            continue
        fields = {k: v for k, v in found.items() if k not in known and v is not None}
        if fields:
            place = extra
            for name in path:
                place = place.setdefault(name, {})
            place.update(fields)
            number += len(fields)
    if extra:
        keep_extra(record, orjson.dumps(extra))
    return number


def _at(node: Any, path: Path) -> Any:
    """What stands there; None where nothing does."""
    for name in path:
        if not node:
            return None
        node = node.get(name)
    return node


def sha256(text: str) -> str:
    """Digest of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
