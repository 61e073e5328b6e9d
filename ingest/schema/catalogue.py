"""Catalogue of all streams: one `<stream>.schema.json` for each, in one directory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from ingest.errors import SchemaError
from ingest.model import GBT32960
from ingest.schema import vocabulary
from ingest.schema.digest import Digest, once, sha256
from ingest.schema.plausible import check_rules
from ingest.schema.private import paths, with_room_for_digests
from ingest.schema.stream import Stream, stream

Catalogue = Mapping[str, Stream]
"""Streams by name, in alphabetical order."""

SUFFIX = ".schema.json"
_SHARED = "envelope"
"""Name of the file of definitions that streams refer to; it is not a stream itself."""
_RULES = "plausibility.json"
_STREAM_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


def default_directory() -> Path:
    """Return the directory of the product's own schemas.

    It is inside an installed package, and beside the package in a checkout.
    """
    package = Path(__file__).resolve().parent.parent
    installed = package / "schemas"
    return installed if installed.is_dir() else package.parent / "schemas"


def load_catalogue(
    directory: Path | None = None, digest: Digest = sha256, *, digested: bool = False
) -> Catalogue:
    """Read every schema; raises SchemaError with the first file that is wrong and why.

    `digest` makes the digests that are stored in place of private values. With `digested`, a value
    that is a digest already is valid too and stays as it is: samples that were stored, and dead
    letters, have digests.
    """
    directory = directory or default_directory()
    rules = load_rules(directory)
    files = schema_files(directory)
    schemas = {name: load_schema(file) for name, file in files.items()}
    if digested:
        schemas = {name: with_room_for_digests(schema) for name, schema in schemas.items()}
        digest = once(digest)
    hashed = {path[-1] for schema in schemas.values() for path in paths(schema, "x-hash")}
    private = private_names(directory)
    others = vocabularies(directory)
    return {
        name: stream(name, schema, rules, private, hashed, digest, others)
        for name, schema in schemas.items()
    }


def private_names(directory: Path) -> list[str]:
    """Return the names that are never stored in any stream, which the envelope lists."""
    file = directory / f"{_SHARED}{SUFFIX}"
    return list(_read(file, {}).get("x-never-stored", ())) if file.is_file() else []


def vocabularies(directory: Path) -> dict[str, Any]:
    """Return the vocabularies beside the schemas, by name; empty if there is no such file."""
    file = directory / vocabulary.FILE
    found = _read(file, {}) if file.is_file() else {}
    if not isinstance(found, dict):
        raise SchemaError(f"{file}: an object of vocabularies")
    return found


def schema_files(directory: Path) -> dict[str, Path]:
    """Return the files by stream; raises SchemaError if there is no file or one is misnamed."""
    files = sorted(directory.glob(f"*{SUFFIX}"))
    names = {file.name.removesuffix(SUFFIX): file for file in files}
    names.pop(_SHARED, None)
    if not names:
        raise SchemaError(f"{directory}: no *{SUFFIX} there")
    for name, file in names.items():
        if not _STREAM_NAME.fullmatch(name):
            raise SchemaError(f"{file}: {name!r} is not a stream name")
        if name == GBT32960:
            raise SchemaError(f"{file}: {name} is the topic of GB/T 32960 frames")
    return names


def load_rules(directory: Path) -> list[Mapping[str, Any]]:
    """Return the plausibility rules beside the schemas; an empty list if there is no such file."""
    file = directory / _RULES
    return check_rules(_read(file, {}), str(file)) if file.is_file() else []


def load_schema(file: Path) -> dict[str, Any]:
    """Return one schema file with every `$ref` replaced by what it points to."""
    documents: dict[Path, Any] = {}
    schema = _resolved(_read(file, documents), file, documents)
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise SchemaError(f'{file}: the schema of a stream has "type": "object"')
    return schema


def _read(file: Path, documents: dict[Path, Any]) -> Any:
    if file not in documents:
        try:
            documents[file] = orjson.loads(file.read_bytes())
        except OSError as exc:
            raise SchemaError(f"{file}: {exc.strerror}") from exc
        except orjson.JSONDecodeError as exc:
            raise SchemaError(f"{file}: not JSON: {exc}") from exc
    return documents[file]


def _resolved(node: Any, file: Path, documents: dict[Path, Any]) -> Any:
    """Return `node` with references inlined; keywords beside a `$ref` override the target's."""
    if isinstance(node, list):
        return [_resolved(item, file, documents) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        name, _, fragment = node["$ref"].partition("#")
        target_file = file.parent / name if name else file
        target = _at(_read(target_file, documents), fragment, f"{file}: {node['$ref']}")
        beside = {k: v for k, v in node.items() if k != "$ref"}
        return {
            **_resolved(target, target_file, documents),
            **_resolved(beside, file, documents),
        }
    return {key: _resolved(value, file, documents) for key, value in node.items()}


def _at(document: Any, fragment: str, where: str) -> dict[str, Any]:
    for step in fragment.split("/")[1:]:
        if not isinstance(document, dict) or step not in document:
            raise SchemaError(f"{where} points nowhere")
        document = document[step]
    if not isinstance(document, dict):
        raise SchemaError(f"{where} is no schema")
    return document
