"""Functions that turn a sample into row values, generated from a schema's columns.

`exact` and `known` test and extract in one pass, by types that only valid samples fit; `extract` is
for samples that the validator has accepted. All three are generated as source text once, at start,
and compiled. `print(source(layout, [], "all"))` shows such a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import orjson
from msgspec import convert
from msgspec.structs import astuple

from ingest.schema.accept import NOTHING, Member, only, struct, type_of
from ingest.schema.columns import ENVELOPE, Column, device_fields
from ingest.schema.digest import Digest
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
from ingest.schema.private import places, with_digests
from ingest.schema.rfc3339 import rfc3339
from ingest.schema.variants import Variant, variants

Extracted = tuple[Record, int, bool, int]
"""(record, bits of the objects that are there, resend, number of unknown fields); see `Layout`."""
Extract = Callable[[datetime, int, datetime, dict[str, Any]], Extracted]
"""(ts, seq, received_at, sample) → Extracted; raises ValueError if the sample may not fit."""

Care = Literal["any", "known", "all"]
"""Strictness of a match. `any`: not checked. `known`: known fields must be valid. `all`: the same,
and no unknown fields."""
_CONVERSIONS = {
    "int": "int({found})",
    "int[]": "[None if i is None else int(i) for i in {found}]",
    "time": "rfc3339({found})",
    "json": "dumps({found})",
    "digest": "digest({found})",
    "text[]": "[as_text(i, {text!r}) if type(i) is dict else i for i in {found}]",
}
_HASHED = "hashed_{column.name}"
_NAMED = re.compile(r"\{(\w+)\}")
_UNNAMED = {"type": ["null"]}
"""Schema for a member of the envelope that the stream's schema does not name: only null fits."""
_DONE_BY_TYPE = {"int", "int[]"}


class Functions(NamedTuple):
    """Extraction functions of one stream."""

    exact: Extract
    """Function for most samples: they are surely valid and have no field that the schema does not
    name, not even in arrays."""
    known: Extract
    """Function for samples that are surely valid but may have unknown fields."""
    extract: Extract
    """Function for samples that the validator has accepted; raises nothing."""


def functions(schema: dict[str, Any], layout: Layout, digest: Digest) -> Functions:
    """Build the functions of one stream; `digest` is for what is stored as a digest."""
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
        _compiled(schema, layout, "all", digest) if sure else never_sure,
        keeping_unknown(_compiled(schema, layout, "known", digest) if sure else never_sure),
        keeping_unknown(_compiled(schema, layout, "any", digest)),
    )


def never_sure(*_: Any) -> Extracted:
    """Raise ValueError for every sample, because types cannot decide for this schema."""
    raise ValueError


def _compiled(schema: dict[str, Any], layout: Layout, care: Care, digest: Digest) -> Extract:
    """Compile the function that takes samples apart by one type."""
    names: dict[str, Any] = {
        "fitting": struct(_sample_members(schema, layout.sample, care), unknown=care != "all"),
        "astuple": astuple,
        "convert": convert,
        "dumps": orjson.dumps,
        "digest": digest,
        "rfc3339": rfc3339,
        "with_digests": with_digests,
        "as_text": as_text,
    }
    names |= {
        _HASHED.format(column=column): places(column.hashed)
        for object_ in layout.sample.all()
        for column in object_.columns
    }
    found = (variants(schema) or []) if care != "any" else []
    names |= {f"foreign_{number}": variant.foreign for number, variant in enumerate(found)}
    exec(source(layout, found, care), names)  # noqa: S102  text from our own schema files
    extract: Extract = names["extract"]
    return extract


def source(layout: Layout, found: Sequence[Variant], care: Care) -> str:
    """Return the source text of such a function, for reading and for `exec`.

    In the text, `fitting` is the type and `parts` are the values of its members, in this order:
    `resend`, the sample's own columns, the objects in it, the other known fields, `quality`.
    """
    # The text does this, from top to bottom: refuse what only another variant may have; convert the
    # sample to its type; build the record from the leading columns and the sample's own; add the
    # columns of each object that the sample has, and a bit for it in `present`; write `quality` as
    # JSON; end the record with the trailing columns.
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
    """Yield lines that refuse fields of other variants; usually they look at the names once."""
    for number, variant in enumerate(found):
        here = f"sample.get({variant.field!r}) == {variant.value!r}"
        yield f"    if {here} and not foreign_{number}.isdisjoint(sample):"
        yield "        raise ValueError"


def _convert(object_: Object, place: int, care: Care) -> Iterator[str]:
    """Yield lines that convert the values of an object; they start at `place` in the record."""
    for number, column in enumerate(object_.columns, place):
        conversion = _CONVERSIONS.get(column.convert)
        if column.hashed:
            conversion = f"dumps(with_digests({{found}}, {_HASHED.format(column=column)}, digest))"
        if conversion and not (care != "any" and column.convert in _DONE_BY_TYPE):
            found = "sample" + "".join(f"[{name!r}]" for name in column.path)
            yield f"    if record[{number}] is not None:"
            yield f"        record[{number}] = {conversion.format(found=found, text=column.text)}"
        if column.sentinels and care != "any":
            yield f"    if {_stands_for_nothing(column, f'record[{number}]')}:"
            yield "        raise ValueError"


def _stands_for_nothing(column: Column, value: str) -> str:
    """Return an expression that is true if `value` is, or may hold, one of the sentinels.

    An array that became JSON is searched for their digits: that is quick, and rarely in vain.
    """
    if column.convert == "json":
        digits = {orjson.dumps(int(n) if n == int(n) else n) for n in column.sentinels}
        least = [
            text for text in digits if not any(text != d and text.startswith(d) for d in digits)
        ]
        found = " or ".join(f"{text!r} in {value}" for text in sorted(least))
        return f"{value} is not None and ({found})"
    if column.sql_type.endswith("[]"):
        return f"{value} is not None and not {set(column.sentinels)!r}.isdisjoint({value})"
    return f"{value} in {column.sentinels!r}"


def _without(keyword: str, node: Any) -> Any:
    """Return a copy of a schema without a keyword, at any depth."""
    if isinstance(node, dict):
        return {name: _without(keyword, inner) for name, inner in node.items() if name != keyword}
    return [_without(keyword, inner) for inner in node] if isinstance(node, list) else node


def _add_objects(
    layout: Layout, object_: Object, parts: str, first: int, care: Care
) -> Iterator[str]:
    """Yield lines that add the inner objects, which are `parts` from `first` on, to the record."""
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
    """Return the members in order: `resend`, columns, objects, other known fields, `quality`."""
    fields, required = schema.get("properties", {}), set(schema.get("required", ()))
    members = _members(schema, sample, care)
    others = {*fields, *ENVELOPE} - {name for name, *_ in members} - {"resend", "quality"}

    def member(name: str) -> Member:
        # `ts` and `seq` have already been checked.
        if care == "any" or name in {"ts", "seq"}:
            return name, Any, name in required and care != "any"
        field = fields.get(name, _UNNAMED)
        return name, type_of(field, unknown=care != "all"), name in required

    return [member("resend"), *members, *map(member, sorted(others)), member("quality")]


def _members(schema: dict[str, Any], object_: Object, care: Care) -> list[Member]:
    """Return the members of an object: first its columns, then the objects in it."""
    fields, required = schema.get("properties", {}), set(schema.get("required", ()))
    if care == "any":
        required = set()
    members: list[Member] = []
    type_: Any
    for column in object_.columns:
        name = column.path[-1]
        field = fields[name]
        # The text of the function checks the sentinels; the conversion to a time, the format.
        field = _without("x-sentinels", field)
        if column.convert == "time":
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
    """Return the field names that the schema has in each flattened object."""
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
    """Put fields the schema does not name into `extra`, at the same paths; return their number."""
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
    """Return the value at a path; None if there is no value."""
    for name in path:
        if not node:
            return None
        node = node.get(name)
    return node


def _plain(member: Any) -> Any:
    """Return an integral float as the integer that it is in JSON Schema."""
    return int(member) if type(member) is float and member.is_integer() else member


def as_text(value: dict[str, Any], parts: Sequence[str]) -> str:
    """Return an object as text: the parts whose member it has, or its JSON if it has others."""
    said = {name: _plain(member) for name, member in value.items() if member is not None}
    written = {part: name for part in parts for name in _NAMED.findall(part)}
    if not said.keys() <= set(written.values()):
        return orjson.dumps(value).decode()
    return "-".join(part.format_map(said) for part, name in written.items() if name in said)
