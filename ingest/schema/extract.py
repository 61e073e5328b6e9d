"""A schema's columns become functions that turn a sample into row values.

`accept` tests and extracts in one pass, by types that only valid samples fit, and says None where
it is not sure; `extract` is for samples that the validator has passed. For a `nev` sample `accept`
takes XX µs, validator and `extract` together XX (measured).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, get_args

import orjson
from msgspec import convert
from msgspec.structs import astuple

from ingest.schema.accept import NOTHING, Member, only, struct, type_of
from ingest.schema.columns import ENVELOPE, Column, device_fields
from ingest.schema.rfc3339 import rfc3339
from ingest.schema.variants import variants

Extracted = tuple[list[Any], int]
"""(row values, number of unknown fields)."""
Extract = Callable[[str, datetime, int, datetime, dict[str, Any]], Extracted]
"""(device, ts, seq, received_at, sample) → Extracted."""
Accept = Callable[[str, datetime, int, datetime, dict[str, Any]], Extracted | None]
Values = Callable[[str, datetime, int, datetime, dict[str, Any]], list[Any]]
"""The values of a row, `extra` left empty; raises ValueError for a sample that does not fit."""

LEADING = ("device_id", "ts", "seq", "received_at", "resend")
TRAILING = ("quality", "extra")
_EXTRA = -1

Path = tuple[str, ...]
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
_DONE_BY_TYPE = {"int", "int[]"}


class Functions(NamedTuple):
    """What is made for one stream."""

    accept: Accept
    extract: Extract


class Object(NamedTuple):
    """An object that is flattened, the sample itself first of all."""

    path: Path
    columns: list[Column]
    """Of its own members."""
    objects: list[Object]
    """Those in it, which come after its own columns."""

    def in_order(self) -> Iterator[Column]:
        """Every column, in the order of the row's values."""
        yield from self.columns
        for inner in self.objects:
            yield from inner.in_order()

    def all(self) -> Iterator[Object]:
        """Itself, and then all that are in it."""
        yield self
        for inner in self.objects:
            yield from inner.all()


def tree(columns: Iterable[Column], path: Path = ()) -> Object:
    """The objects that columns come from."""
    depth = len(path)
    below = [column for column in columns if column.path[:depth] == path]
    own = [column for column in below if len(column.path) == depth + 1]
    names = dict.fromkeys(c.path[depth] for c in below if len(c.path) > depth + 1)
    return Object(path, own, [tree(below, (*path, name)) for name in names])


def functions(schema: dict[str, Any], columns: Sequence[Column]) -> Functions:
    """The functions of one stream."""
    sample = tree(columns)
    whatever, known, all_known = (_compiled(schema, sample, care) for care in get_args(Care))
    names = _known_names(schema, sample)
    found = variants(schema)

    def extract(
        device: str, ts: datetime, seq: int, received_at: datetime, sample: dict[str, Any]
    ) -> Extracted:
        values = whatever(device, ts, seq, received_at, sample)
        return values, _keep_unknown(values, sample, names)

    def accept(
        device: str, ts: datetime, seq: int, received_at: datetime, sample: dict[str, Any]
    ) -> Extracted | None:
        for field, value, foreign in found or ():
            # Nothing foreign is there: the usual case costs one look at the names.
            if sample.get(field) == value and not foreign.isdisjoint(sample):
                return None
        try:
            return all_known(device, ts, seq, received_at, sample), 0
        except ValueError:
            pass
        try:
            values = known(device, ts, seq, received_at, sample)
        except ValueError:
            return None
        return values, _keep_unknown(values, sample, names)

    sure = found is not None and only(schema, {"properties", "required", "allOf"})
    return Functions(accept if sure else _never_sure, extract)


def _never_sure(*_: Any) -> None:
    """For a schema that asks for more than types can tell."""


def _compiled(schema: dict[str, Any], sample: Object, care: Care) -> Values:
    """The function that takes samples apart by one type."""
    names: dict[str, Any] = {
        "fitting": struct(_sample_members(schema, sample, care), unknown=care != "all"),
        "absent": [(None,) * len(list(object_.in_order())) for object_ in sample.all()],
        "astuple": astuple,
        "convert": convert,
        "dumps": orjson.dumps,
        "rfc3339": rfc3339,
        "sha256": sha256,
    }
    exec(source(sample, care), names)  # noqa: S102  text from our own schema files
    values: Values = names["values"]
    return values


def source(sample: Object, care: Care) -> str:
    """The source text of that function, for reading and for `exec`.

    `fitting` is the type; a part is the value of one of its members: `resend`, the sample's own
    columns, the objects in it, what else the schema names, `quality`.
    """
    numbers = {object_.path: number for number, object_ in enumerate(sample.all())}
    lines = []
    for object_ in sample.objects:
        for inner in object_.all():
            if inner.objects:
                lines += [
                    f"def object_{numbers[inner.path]}(found):",
                    "    parts = astuple(found)",
                    f"    return ({', '.join(_parts(inner, 0, numbers))},)",
                    "",
                ]
    lines += [
        "def values(device, ts, seq, received_at, sample):",
        "    parts = astuple(convert(sample, fitting))",
        "    row = [",
        "        device, ts, seq, received_at, parts[0] is True,",
        *(f"        {part}," for part in _parts(sample, 1, numbers)),
        "        None if parts[-1] is None else dumps(parts[-1]), None,",
        "    ]",
    ]
    for place, column in enumerate(sample.in_order(), len(LEADING)):
        conversion = _CONVERSIONS.get(column.convert)
        if conversion and not (care != "any" and column.convert in _DONE_BY_TYPE):
            found = "sample" + "".join(f"[{name!r}]" for name in column.path)
            lines += [
                f"    if row[{place}] is not None:",
                f"        row[{place}] = {conversion.format(found=found)}",
            ]
    return "\n".join([*lines, "    return row", ""])


def _parts(object_: Object, first: int, numbers: Mapping[Path, int]) -> Iterator[str]:
    """The columns of an object, those of objects in it included."""
    end = first + len(object_.columns)
    yield f"*parts[{first}:{end}]"
    for place, inner in enumerate(object_.objects, end):
        number = numbers[inner.path]
        taken_apart = f"object_{number}" if inner.objects else "astuple"
        found = f"parts[{place}]"
        yield f"*(absent[{number}] if {found} is None else {taken_apart}({found}))"


def _sample_members(schema: dict[str, Any], sample: Object, care: Care) -> list[Member]:
    """`resend`, columns, objects, what else the schema names, `quality`."""
    fields, required = schema.get("properties", {}), set(schema.get("required", ()))
    members = _members(schema, sample, care)
    others = {*fields, *ENVELOPE} - {name for name, *_ in members} - {"resend", "quality"}

    def member(name: str) -> Member:
        # `ts` and `seq` were looked at before.
        looked_at = care == "any" or name in {"ts", "seq"} or name not in fields
        return name, Any if looked_at else type_of(fields[name]), name in required and care != "any"

    return [member("resend"), *members, *map(member, sorted(others)), member("quality")]


def _members(schema: dict[str, Any], object_: Object, care: Care) -> list[Member]:
    """The columns of an object and then the objects in it."""
    fields, required = schema.get("properties", {}), set(schema.get("required", ()))
    if care == "any":
        required = set()
    members: list[Member] = []
    for column in object_.columns:
        name = column.path[-1]
        field = fields[name]
        if column.convert == "time":
            # Converting it will tell.
            field = {keyword: value for keyword, value in field.items() if keyword != "format"}
        members.append((name, Any if care == "any" else type_of(field), name in required))
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
    values: list[Any], sample: dict[str, Any], names: Mapping[Path, frozenset[str]]
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
        values[_EXTRA] = orjson.dumps(extra)
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
