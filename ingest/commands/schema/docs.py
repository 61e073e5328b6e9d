"""Pages of documentation from the schemas alone (Markdown): one for each stream, and an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ingest.schema.catalogue import Catalogue, private_names, vocabularies
from ingest.schema.columns import ENVELOPE, UNITY, json_types
from ingest.schema.stream import Stream
from ingest.schema.variants import variants
from ingest.schema.vocabulary import FILE

_EXAMPLE_CHARACTERS = 1_500
"""Number of characters up to which an example is shown; a longer one is tedious to read."""
_ABOUT = (
    "What vehicles, roads and cockpits publish, one page and one table for each stream. A field "
    "without a value is left out or `null`; unknown fields are kept in `extra`."
)
_MARKS = (
    "Marks in the column *source*: **[F]** seen in real frames or recordings, **[G]** an "
    "engineering choice where no standard was found, **[M]** remembered and not checked, so never "
    "a hard limit."
)
_READING = """\
## How a message is read

A payload is one JSON object, or an array of objects, in UTF-8. What software of vehicles writes
besides is read too:

| sent | read as |
| --- | --- |
| several objects one after the other (JSON lines, RFC 7464) | an array |
| a byte order mark in front, one NUL at the end | not there |
| `NaN`, `Infinity`, `1e400` | a text; where a number belongs, it costs its field |
| `12.0`, `1.2e1` where an integer belongs | 12 |
| gzip, zlib or zstd without `content-encoding` | what it is by its first bytes |
| `content-encoding` in any case, `x-gzip` | the same |
| `ts` with the zone `+0800` or `+08` | `+08:00` |
| fractions of `ts` below a microsecond | cut off |

`ts` is RFC 3339 with a zone, or Unix time in milliseconds. A number that is seconds, microseconds
or nanoseconds is refused with `bad_timestamp`, and the detail names the unit. A text of more than
1 MiB is read only if it is JSON as it stands.
"""
_VOCABULARIES = """\
## Other names of fields

A sample may name fields as other vocabularies do, each as one key at its top level, in exactly that
spelling: `{{"ts": …, "Vehicle.Speed": 46.8}}` fills `speed_kmh`. The pages have the other names in
the column *meaning*. Numbers are converted where unit or sign differs, also those that are then
refused. If a sample also has our own name for the field, ours counts (even if it is null), and the
other stays in `extra`; of two other names the first counts. Positions in VSS are WGS 84; say so in
`crs`. Booleans that a vocabulary writes as words have no name here, nor have fields whose sign or
quantity is another than ours. The topic says which stream it is, as always.

| vocabulary | where it is listed |
| --- | --- |
| COVESA VSS 6.1, paths in dotted form | `x-vss` of the field |
{others}
"""
_QUALITY = """\
## What `quality` says

`quality` maps the JSON pointer of a field to what is wrong with its value. Rows without it are the
rule.

| mark | meaning | the column |
| --- | --- | --- |
| `out_of_range` | refused for its range or length, or as no word of its list | null, see below |
| `invalid` | refused for its type or form, or as a number for “no value” | null, see below |
| `invalid` | in a frame: 0xFF | null |
| `abnormal` | in a frame: 0xFE | null |
| `stale`, `estimated` | as the vehicle says, or for `/ts` the service | has the value |
| any other | implausible by a rule of the stream's page, or a word of the vehicle | has the value |

What the schema refuses stands in `extra` under `refused`, by the same pointer:
`SELECT extra->'refused'->>'/speed_kmh' FROM iov.nev WHERE quality ? '/speed_kmh'`. It is null there
if nobody may keep it. The pages say for each field what a refused value costs: the `field`, an
`item` of an array, the object around it, or `the sample`, which then is a dead letter with reason
`schema`. A sample of which nothing else is left is one too. With `IOV_REFUSED_FIELDS=reject` any
refused value costs the sample. Letter case never decides whether a word is in a list.
"""
_NEVER = """\
## What is never stored, in any stream

A field with one of these names is removed before anything is stored, at any depth, in any spelling
(`plate_no`, `plateNo`, `Plate-No`) and notation (`driver.id`, `{{"driver": {{"id": …}}}}`). A field
that a page says is stored as a digest is kept as one, at its own place only. Columns marked as free
text may still hold personal data.

{names}.
"""
_REGENERATE = "Made by `iov-ingest schema docs --output docs/streams` from `schemas/`; edit those."


def pages(catalogue: Catalogue, directory: Path) -> dict[str, str]:
    """Return every page by its file name, the index first."""
    found = {"README.md": index(catalogue, private_names(directory), vocabularies(directory))}
    found |= {f"{name}.md": page(stream, directory) for name, stream in catalogue.items()}
    return found


def index(catalogue: Catalogue, private: Sequence[str], others: Mapping[str, Any]) -> str:
    """Return the index page: a table row for each stream, and what holds for all of them."""
    lines = [
        "# Streams",
        "",
        _ABOUT,
        "",
        "| stream | what it is | table | columns |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| [`{name}`]({name}.md) | {stream.schema['title']} | `iov.{stream.table}` "
        f"| {len(stream.column_names)} |"
        for name, stream in catalogue.items()
    ]
    names = ", ".join(f"`{name}`" for name in sorted(private))
    listed = [f"| {said['title']} | `{FILE}`: {said['source']} |" for said in others.values()]
    names_elsewhere = _VOCABULARIES.format(others="\n".join(listed))
    lines += [
        "",
        _READING,
        names_elsewhere,
        _QUALITY,
        _NEVER.format(names=names),
        _MARKS,
        "",
        _REGENERATE,
    ]
    return "\n".join(lines) + "\n"


def page(stream: Stream, directory: Path) -> str:
    """Return a stream's page: every field with its type, unit, range, column and source."""
    schema = stream.schema
    lines = [
        f"# `{stream.name}`: {schema.get('title', '')}",
        "",
        schema.get("description", ""),
        "",
        (
            f"Topic `iov/v1/{{device}}/{stream.name}`, table `iov.{stream.table}`, key "
            "`(device_id, ts, seq)`."
        ),
        "",
        *_variants(stream),
        "| field | type | unit | range | refused costs | column | meaning | source |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *_rows(stream),
        *_plausibility(stream),
        *_never_stored(stream),
        *_example(stream, directory),
        "",
        _REGENERATE,
    ]
    return "\n".join(lines) + "\n"


def _rows(stream: Stream) -> Iterator[str]:
    schema = stream.schema
    columns = {column.path: f"`{column.name} {column.sql_type}`" for column in stream.columns}
    required = set(schema.get("required", ()))
    for path, field, costs in _fields(schema, ()):
        name = ".".join(path)
        column = columns.get(tuple(path))
        if column is None and path[0] in ENVELOPE:
            column = f"`{path[0]}`"
        elif column is None:
            column = f"`iov.device.{path[0]}`" if field.get("x-device") else "in its array"
        meaning = field.get("title", "")
        if field.get("description"):
            meaning += f". {field['description']}"
        if field.get("x-free-text"):
            meaning += " Free text: it may hold personal data."
        if field.get("x-hash"):
            meaning += " Stored as a digest."
        if others := stream.vocabulary.names_of(path):
            meaning += f" Also {', '.join(f'`{other}`' for other in others)}."
        unit = field.get("x-unit", "")
        cells = (
            f"`{name}`" + (" (required)" if name in required else ""),
            _type(field),
            "" if unit == UNITY else unit,
            _range(field),
            costs,
            column,
            meaning,
            field.get("x-source", ""),
        )
        yield "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def _variants(stream: Stream) -> Iterator[str]:
    found = variants(stream.schema) or []
    for variant in found:
        others = frozenset().union(*(v.foreign for v in found))
        own = [name for name in stream.schema["properties"] if name in others - variant.foreign]
        fields = ", ".join(f"`{name}`" for name in own)
        yield f"- `{variant.field}` = `{variant.value}`: {fields}"
    if found:
        yield ""


def _plausibility(stream: Stream) -> Iterator[str]:
    if not stream.plausibility.rules:
        return
    yield from ("", "## Noted in `quality`, never rejected", "", "| field | flag | when |")
    yield "| --- | --- | --- |"
    for rule in stream.plausibility.rules:
        yield f"| `{rule['field']}` | `{rule['flag']}` | {rule['description']} |"


def _never_stored(stream: Stream) -> Iterator[str]:
    names = stream.schema.get("x-never-stored", ())
    if names:
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        yield from (
            "",
            "## Never stored",
            "",
            f"Besides what is never stored in any stream: {listed}.",
        )


def _example(stream: Stream, directory: Path) -> Iterator[str]:
    for file in sorted((directory / stream.name / "valid").glob("*.json")):
        text = orjson.dumps(orjson.loads(file.read_bytes()), option=orjson.OPT_INDENT_2).decode()
        if len(text) <= _EXAMPLE_CHARACTERS:
            title = file.stem.replace("_", " ")
            yield from ("", f"## Example: {title}", "", "```json", text, "```")
            return


def _fields(schema: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[list[str], Any, str]]:
    """Yield (path, field, what is lost if a value of it is refused)."""
    around = f"`{path[-1]}`" if path else "the sample"
    for name, field in schema.get("properties", {}).items():
        here = (*path, name)
        items = field.get("items", {})
        costs = around if name in schema.get("required", ()) else "item" if items else "field"
        if "properties" in field:
            yield from _fields(field, here)
            continue
        if "properties" not in items or "string" in json_types(items):
            yield list(here), field, costs
        if "properties" in items:
            yield from _fields(items, (*path, f"{name}[]"))


def _type(field: dict[str, Any]) -> str:
    kinds = sorted(json_types(field))
    if kinds == ["array"]:
        return f"array of {_type(field.get('items', {}))}"
    text = " or ".join(kinds)
    return f"{text} ({field['format']})" if "format" in field else text


def _range(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"] if value is not None)
    if "items" in field:
        return _range(field["items"])
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None or high is not None:
        within = f"{'' if low is None else low} … {'' if high is None else high}".strip()
        nothing = ", ".join(map(str, field.get("x-sentinels", ())))
        return f"{within}; no value: {nothing}" if nothing else within
    if "pattern" in field:
        return f"`{field['pattern']}`"
    return f"at most {field['maxLength']} characters" if "maxLength" in field else ""
