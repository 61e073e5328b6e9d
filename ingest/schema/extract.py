"""A schema's columns become one Python function that turns a valid sample into row values.

The function is written out as source text once, at start, and compiled: a loop over columns that
asks each how to find its value costs three times as much per sample (measured, 25 columns). The
generated text is plain to read: `print(extractor_source(columns))`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson

from ingest.schema.columns import ENVELOPE, Column
from ingest.schema.rfc3339 import rfc3339

Extract = Callable[[str, datetime, int, datetime, dict[str, Any]], tuple[tuple[Any, ...], int]]
"""(device, ts, seq, received_at, sample) → (row values, number of unknown fields)."""

LEADING = ("device_id", "ts", "seq", "received_at", "resend")
TRAILING = ("quality", "extra")

_CONVERSIONS = {
    "none": "{value}",
    "int": "int({value})",
    "int[]": "[None if i is None else int(i) for i in {value}]",
    "time": "rfc3339({value})",
    "json": "dumps({value})",
    "sha256": "sha256({value})",
}


def extractor(columns: Sequence[Column]) -> Extract:
    """The compiled extractor of one stream; the sample it gets has passed the validator."""
    names: dict[str, Any] = {
        **{f"known_{object_}": known for object_, known in _known_names(columns).items()},
        "EMPTY": {},
        "dumps": orjson.dumps,
        "rfc3339": rfc3339,
        "sha256": _sha256,
        "unknown": _unknown,
    }
    exec(extractor_source(columns), names)  # noqa: S102  text from our own schema files
    extract: Extract = names["extract"]
    return extract


def extractor_source(columns: Sequence[Column]) -> str:
    """The source text of the extractor, for reading and for `exec`."""
    objects = _objects(columns)
    lines = ["def extract(device, ts, seq, received_at, sample):"]
    lines += [f"    {objects[path]} = {_find(objects, path)} or EMPTY" for path in objects if path]
    lines += ["    extra, unknown_fields = None, 0"]
    for path, variable in objects.items():
        lines += [
            f"    if not known_{variable}.issuperset({variable}):",
            f"        extra, n = unknown({variable}, known_{variable}, {path!r}, extra)",
            "        unknown_fields += n",
        ]
    lines += ["    return (", "        device, ts, seq, received_at, sample.get('resend') is True,"]
    lines += [f"        {_value(objects, column)}," for column in columns]
    lines += [
        "        None if (v := sample.get('quality')) is None else dumps(v),",
        "        None if extra is None else dumps(extra),",
        "    ), unknown_fields",
    ]
    return "\n".join(lines)


def _objects(columns: Iterable[Column]) -> dict[tuple[str, ...], str]:
    """Every object that is flattened, the sample first, and the variable that holds it."""
    objects: dict[tuple[str, ...], str] = {(): "sample"}
    for column in columns:
        for depth in range(1, len(column.path)):
            objects.setdefault(column.path[:depth], f"object_{len(objects)}")
    return objects


def _known_names(columns: Sequence[Column]) -> dict[str, frozenset[str]]:
    """The field names the schema has in each flattened object, by the object's variable."""
    return {
        variable: frozenset(c.path[len(path)] for c in columns if c.path[: len(path)] == path)
        | (frozenset() if path else frozenset(ENVELOPE))
        for path, variable in _objects(columns).items()
    }


def _find(objects: dict[tuple[str, ...], str], path: tuple[str, ...]) -> str:
    return f"{objects[path[:-1]]}.get({path[-1]!r})"


def _value(objects: dict[tuple[str, ...], str], column: Column) -> str:
    found = _find(objects, column.path)
    if column.convert == "none":
        return found
    return f"None if (v := {found}) is None else {_CONVERSIONS[column.convert].format(value='v')}"


def _unknown(
    found: dict[str, Any], known: frozenset[str], path: tuple[str, ...], extra: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, int]:
    """`extra` with the fields of `found` that are not `known`, at the place they had."""
    fields = {k: v for k, v in found.items() if k not in known and v is not None}
    if not fields:
        return extra, 0
    extra = extra if extra is not None else {}
    place = extra
    for name in path:
        place = place.setdefault(name, {})
    place.update(fields)
    return extra, len(fields)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
