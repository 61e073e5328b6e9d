"""Rules for schemas beyond JSON Schema, so that tables, documents and consumers can rely on them.

They are about naming, units, ranges, sources and examples, and require that plausibility rules name
fields that exist. All problems of a directory are reported at once, each as one line that says
where it is and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from ingest.errors import SchemaError
from ingest.schema.catalogue import (
    load_rules,
    load_schema,
    private_names,
    schema_files,
    vocabularies,
)
from ingest.schema.columns import ENVELOPE, UNITY, json_types
from ingest.schema.fault import pointer
from ingest.schema.plausible import DEVICE, EVERY_STREAM
from ingest.schema.siblings import EACH
from ingest.schema.stream import Stream, stream
from ingest.schema.variants import variants
from ingest.schema.vocabulary import FILE, without_field

LEAST_VALID, LEAST_INVALID = 3, 5
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_MEMORY = "[M]"
"""Mark of a source that is only remembered; a field with it must not have a hard limit."""
_LIMITS = ("minimum", "maximum", "enum", "pattern", "const")
_OWN_KEYWORDS = {
    "x-unit", "x-source", "x-hash", "x-column", "x-device", "x-never-stored", "x-sentinels",
    "x-text", "x-free-text", "x-vss",
}  # fmt: skip
_UNITS = {
    UNITY, "%", "°", "°C", "°/s", "A", "A·h", "By", "Hz", "L/100 km", "L/h", "MPa", "N", "N·m",
    "V", "W", "W·h",
    "cm", "dB", "h", "kPa", "kW", "kWh", "kWh/100 km", "kg", "kg/100 km", "km", "km/h", "kΩ", "m",
    "m/s", "m/s²",
    "mL", "mg/kg", "min", "mm", "ms", "mΩ", "ns", "ppm", "px", "r/min", "s",
}  # fmt: skip
_SUFFIXES = {
    "a": {"A"}, "ah": {"A·h"}, "c": {"°C"}, "cm": {"cm"}, "db": {"dB"}, "deg": {"°"},
    "dps": {"°/s"}, "hours": {"h"}, "hz": {"Hz"}, "kg": {"kg"}, "km": {"km"},
    "kmh": {"km/h"}, "kohm": {"kΩ"}, "kpa": {"kPa"}, "kw": {"kW"}, "kwh": {"kWh"}, "m": {"m"},
    "mgkg": {"mg/kg"}, "ml": {"mL"}, "mm": {"mm"}, "mohm": {"mΩ"}, "mpa": {"MPa"}, "mps": {"m/s"},
    "mps2": {"m/s²"}, "ms": {"ms"}, "n": {"N"}, "nm": {"N·m"}, "ns": {"ns"}, "pct": {"%"},
    "ppm": {"ppm"}, "px": {"px"}, "rpm": {"r/min"}, "s": {"s"}, "v": {"V"}, "w": {"W"},
    "wh": {"W·h"},
}  # fmt: skip
"""Units that are allowed, by the last word of a field's name."""

Schema = Mapping[str, Any]


def lint(directory: Path) -> list[str]:
    """Return every problem of the schemas in a directory; empty if there is no problem."""
    problems: list[str] = []
    found: dict[str, Stream] = {}
    try:
        rules = load_rules(directory)
        files = schema_files(directory)
        private = private_names(directory)
        others = vocabularies(directory)
    except SchemaError as exc:
        return [str(exc)]
    for name, file in files.items():
        try:
            found[name] = stream(name, load_schema(file), rules, private, vocabularies=others)
        except SchemaError as exc:
            problems.append(str(exc))
            continue
        problems += [f"{name}: {problem}" for problem in _stream(found[name])]
        problems += [f"{name}: {problem}" for problem in _examples(found[name], directory)]
        strange = without_field(name, found[name].schema, others)
        problems += [f"{FILE}: {name}: {other} stands for no field" for other in strange]
    for number, rule in enumerate(rules):
        problems += [f"plausibility rule {number}: {problem}" for problem in _rule(rule, found)]
    return problems


def _stream(found: Stream) -> Iterator[str]:
    schema = found.schema
    if schema.get("$schema") != _DIALECT:
        yield f'"$schema" is not {_DIALECT}'
    for keyword in ("$id", "title", "description"):
        if not schema.get(keyword):
            yield f"no {keyword}"
    if "ts" not in schema.get("required", ()):
        yield "ts is not required"
    for name in ENVELOPE:
        if name not in schema.get("properties", {}):
            yield f"/{name} of the envelope is missing"
    if unknown := _own(schema) - _OWN_KEYWORDS:
        yield f"unknown keywords {', '.join(sorted(unknown))}"
    yield from _variants(schema)
    for path, field in _fields(schema, ()):
        for problem in _field(found, path, field):
            yield f"{pointer(path)}: {problem}"


def _variants(schema: Schema) -> Iterator[str]:
    found = variants(dict(schema))
    if found is None:
        yield "allOf is not a list of variants (if one field is a constant, then others are null)"
        return
    for variant in found:
        field = schema["properties"].get(variant.field, {})
        if variant.value not in field.get("enum", ()):
            yield f"variant {variant.value} is no value of /{variant.field}"
        if unknown := variant.foreign - set(schema["properties"]):
            yield f"variant {variant.value} forbids unknown fields {', '.join(sorted(unknown))}"


def _fields(schema: Schema, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """Yield (path, field) of every named field, also inside arrays."""
    for name, field in schema.get("properties", {}).items():
        here = (*path, name)
        yield here, field
        yield from _fields(field, here)
        yield from _fields(field.get("items", {}), (*here, EACH))


def _field(found: Stream, path: tuple[str, ...], field: Schema) -> Iterator[str]:
    name = path[-1]
    if not _NAME.fullmatch(name):
        yield "the name is not snake_case"
    if found.never_stored.bans(name) and not (field.get("x-hash") or field.get("x-device")):
        yield "the name is listed in x-never-stored"
    for keyword in ("title", "description", "x-source"):
        if not field.get(keyword):
            yield f"no {keyword}"
    if unknown := _own(field) - _OWN_KEYWORDS:
        yield f"unknown keywords {', '.join(sorted(unknown))}"
    if field.get("x-hash") not in (None, "sha256"):
        yield "x-hash is not sha256"
    if "x-sentinels" in field and not json_types(dict(field)) <= {"integer", "number"}:
        yield "x-sentinels is for a number"
    if field.get("x-device") and (len(path) > 1 or json_types(dict(field)) != {"string"}):
        yield "x-device is for strings at the top of a sample"
    if _MEMORY in field.get("x-source", "") and any(limit in field for limit in _LIMITS):
        yield f"has a hard limit and its source is {_MEMORY}: note the range in the description"
    yield from _value(path, field)


def _value(path: tuple[str, ...], field: Schema) -> Iterator[str]:
    required = path == ("ts",) or "null" not in field.get("type", ())
    if not required and None not in field.get("enum", (None,)):
        yield "null is allowed by type and not by enum"
    match sorted(json_types(dict(field))):
        case ["integer"] | ["number"]:
            yield from _number(path[-1], field)
        case ["string"]:
            if not field.keys() & {"enum", "maxLength", "pattern", "const"}:
                yield "a string needs enum, pattern or maxLength"
        case ["array"]:
            if "maxItems" not in field:
                yield "an array needs maxItems"
            if not field.get("items"):
                yield "an array needs items"
            elif "null" not in field["items"].get("type", ()):
                yield "items allow null, so that one bad item costs no other"
            if json_types(dict(field.get("items", {}))) & {"integer", "number"}:
                yield from _number(path[-1], field["items"], field.get("x-unit"))


def _number(name: str, field: Schema, unit_of_array: str | None = None) -> Iterator[str]:
    unit = field.get("x-unit", unit_of_array)
    if unit is None:
        yield f'a number needs x-unit, "{UNITY}" for a bare one'
    elif unit not in _UNITS:
        yield f"x-unit {unit} is not in the list of units"
    else:
        wanted = _SUFFIXES.get(name.rsplit("_", 1)[-1]) if "_" in name else None
        if wanted and unit not in wanted:
            yield f"the name says {min(wanted)} and x-unit {unit}"
    explained = _MEMORY in field.get("x-source", "") or "No limit" in field.get("description", "")
    if not explained and not field.keys() & {"minimum", "maximum"}:
        yield "a number needs a range, or a description that says No limit"


def _own(schema: Schema) -> set[str]:
    return {keyword for keyword in schema if keyword.startswith("x-")}


def _examples(found: Stream, directory: Path) -> Iterator[str]:
    here = directory / found.name
    valid, invalid = sorted(here.glob("valid/*.json")), sorted(here.glob("invalid/*.json"))
    if len(valid) < LEAST_VALID:
        yield f"{len(valid)} valid examples, at least {LEAST_VALID}"
    if len(invalid) < LEAST_INVALID:
        yield f"{len(invalid)} invalid examples, at least {LEAST_INVALID}"
    for file in (*valid, *invalid):
        try:
            sample = orjson.loads(file.read_bytes())
        except orjson.JSONDecodeError as exc:
            yield f"{file.parent.name}/{file.name}: not JSON: {exc}"
            continue
        fault = found.fault(sample) if isinstance(sample, dict) else "no object"
        if file.parent.name == "valid" and fault is not None:
            yield f"valid/{file.name}: {fault}"
        if file.parent.name == "invalid":
            yield from _named_after(found, sample, file)


def _named_after(found: Stream, sample: Any, file: Path) -> Iterator[str]:
    """Yield a problem unless an example fails only for the `pointer.keyword` in its name."""
    *path, keyword = (step.replace("~1", "/") for step in file.stem.split("."))
    if keyword == "required":
        path.pop()
    faults = [
        ([str(step) for step in error.instance_path], error.kind.name)
        for error in found.validator.iter_errors(sample)
    ]
    if faults != [(path, keyword)]:
        told = ", ".join(".".join((*at, kind)) for at, kind in faults) or "nothing"
        yield f"invalid/{file.name}: fails for {told}"


def _rule(rule: Schema, found: Mapping[str, Stream]) -> Iterator[str]:
    for keyword in ("description", "x-source"):
        if not rule.get(keyword):
            yield f"no {keyword}"
    names = list(found) if EVERY_STREAM in rule["streams"] else rule["streams"]
    for name in names:
        if name not in found:
            yield f"no stream {name}"
            continue
        if rule["field"] != f"/{DEVICE}" and not _leads(rule["field"], found[name].schema):
            yield f"{name} has no field {rule['field']}"
    for key in ("of", "total"):
        if (
            key in rule
            and rule.get("in") in found
            and not _leads(rule[key], found[rule["in"]].schema)
        ):
            yield f"{rule['in']} has no field {rule[key]}"


def _leads(path: str, schema: Schema) -> bool:
    """Return whether a rule's path leads to a field of the schema."""
    fields: list[Schema] = [schema]
    for step in path.split("/")[1:]:
        below: list[Schema] = []
        for field in fields:
            properties = field.get("properties", {})
            if step == EACH:
                below += [*properties.values(), *([field["items"]] if "items" in field else [])]
            elif step in properties:
                below.append(properties[step])
        fields = below
    return bool(fields)
