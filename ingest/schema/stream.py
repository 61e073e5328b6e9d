"""One stream: its schema file and all that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

import jsonschema_rs

from ingest.errors import SchemaError
from ingest.schema.aside import MEMBER, Aside, Divided
from ingest.schema.columns import Column, columns, device_fields
from ingest.schema.digest import Digest, sha256
from ingest.schema.extract import Extracted, Functions, functions, never_sure
from ingest.schema.fault import Whole, first_fault, whole
from ingest.schema.layout import RESERVED, Layout
from ingest.schema.plausible import Rules
from ingest.schema.private import NeverStored, Places, paths, places, with_digests
from ingest.schema.rfc3339 import rfc3339
from ingest.schema.vocabulary import Vocabulary, vocabulary


@dataclass(frozen=True, slots=True)
class Stream:
    """Validator, row extractor and table of one stream, all from its schema."""

    name: str
    schema: dict[str, Any]
    """The schema with every reference resolved."""
    columns: list[Column]
    validator: jsonschema_rs.Draft202012Validator
    whole: Whole
    """Demands of the schema on arrays and objects as a whole."""
    layout: Layout
    """Places of the values in the record of a row."""
    functions: Functions
    never_stored: NeverStored
    """Names of fields that are removed from a sample, at any depth, before anything is stored."""
    plausibility: Rules
    """Rules that find implausible values among those the schema allows."""
    hashed: Places
    """Places of the fields that are stored as digests."""
    digest: Digest
    aside: Aside
    """Divider of a sample into what may be stored and what the schema refuses."""
    device_fields: tuple[str, ...]
    """Fields that describe the device and have no column in the stream's table."""
    vocabulary: Vocabulary
    """Other names of its fields."""

    @property
    def table(self) -> str:
        """Name of the table in schema `iov`."""
        return self.name.replace("-", "_")

    @property
    def column_names(self) -> list[str]:
        """Names of all columns of the table."""
        return self.layout.columns(self.layout.all)

    def exact(
        self, ts: datetime, seq: int, received_at: datetime, sample: dict[str, Any]
    ) -> Extracted | None:
        """Return a row if the sample is surely valid and has only fields that the schema names.

        Such a sample holds nothing that must not be stored. For any other sample, return None: the
        caller removes what must not be stored and calls `known`.
        """
        try:
            return self.functions.exact(ts, seq, received_at, sample)
        except ValueError:
            return None

    def known(
        self, ts: datetime, seq: int, received_at: datetime, sample: dict[str, Any]
    ) -> Extracted | None:
        """Return a row if the fields that the schema names are surely valid; otherwise None."""
        try:
            return self.functions.known(ts, seq, received_at, sample)
        except ValueError:
            return None

    def row(
        self, ts: datetime, seq: int, received_at: datetime, sample: dict[str, Any]
    ) -> Extracted | str:
        """Return a row, or the fault that the schema finds in the sample."""
        row = self.known(ts, seq, received_at, sample)
        if row is not None:
            return row
        return self.fault(sample) or self.functions.extract(ts, seq, received_at, sample)

    def set_aside(self, sample: dict[str, Any]) -> Divided:
        """Divide a sample into what its schema allows and what it refuses.

        What is refused stands in the sample that is kept, by JSON pointers, as the field `refused`,
        which no schema names. A field of that name which the vehicle sent becomes one of them.
        """
        divided = self.aside.split(sample)
        if not divided.refused:
            return divided
        values = {one.pointer: one.value for one in divided.refused}
        if MEMBER in sample:
            values[f"/{MEMBER}"] = sample[MEMBER]
        return divided._replace(kept=divided.kept | {MEMBER: values})

    def with_digests(self, sample: Any) -> Any:
        """Return a sample with digests in place of what is stored as a digest."""
        return with_digests(sample, self.hashed, self.digest)

    def storable(self, sample: Any) -> Any:
        """Return what may be stored of a sample: no forbidden fields, and digests in place."""
        return self.with_digests(self.never_stored.without(sample))

    def fault(self, sample: dict[str, Any]) -> str | None:
        """Return the first fault that the schema finds in `sample`; None if it is valid.

        The text begins with the JSON pointer of the field and quotes no value of the sample.
        """
        return first_fault(self.whole, self.validator, sample)


def stream(
    name: str,
    schema: dict[str, Any],
    rules: Sequence[Mapping[str, Any]] = (),
    private: Iterable[str] = (),
    hashed_elsewhere: Iterable[str] = (),
    digest: Digest = sha256,
    vocabularies: Mapping[str, Any] = MappingProxyType({}),
) -> Stream:
    """Build a stream from its resolved schema; raises SchemaError if that is impossible.

    - `private`: names that are never stored in any stream
    - `hashed_elsewhere`: names of fields that other streams store as digests only
    - `digest`: what makes a digest of a text
    - `vocabularies`: other names of fields, besides those of VSS
    """
    found = columns(schema, name, RESERVED)
    if MEMBER in schema.get("properties", {}):
        raise SchemaError(f"{name}: /{MEMBER} is the name of what the schema refuses")
    try:
        validator = _validator(schema)
    except (jsonschema_rs.ValidationError, ValueError) as exc:
        raise SchemaError(f"{name}: not a JSON Schema 2020-12: {exc}") from exc
    layout = Layout(found)
    hashed, own = list(paths(schema, "x-hash")), set(names(schema))
    exempt = [*hashed, *((name,) for name in device_fields(schema))]
    never_stored = NeverStored(
        {
            *private,
            *schema.get("x-never-stored", ()),
            *(path[-1] for path in hashed),
            # A field that this stream's own schema names is stored.
            *(set(hashed_elsewhere) - own),
        },
        exempt,
    )
    other_names = vocabulary(name, schema, vocabularies)
    if secret := sorted(filter(never_stored.bans, other_names.fields)):
        raise SchemaError(f"{name}: other names for {', '.join(secret)}, which is never stored")
    made = functions(schema, layout, digest)
    if any(map(never_stored.bans, own - {path[-1] for path in exempt})):
        made = made._replace(exact=never_sure)
    return Stream(
        name,
        schema,
        found,
        validator,
        whole(schema),
        layout,
        made,
        never_stored,
        Rules(name, rules),
        places(hashed),
        digest,
        Aside(schema, never_stored, _validator),
        device_fields(schema),
        other_names,
    )


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        schema, validate_formats=True, formats={"date-time": _is_date_time}
    )


def names(schema: dict[str, Any]) -> Iterator[str]:
    """Yield the name of every field of a schema, at any depth."""
    for name, field in schema.get("properties", {}).items():
        yield name
        yield from names(field)
        yield from names(field.get("items", {}))


def _is_date_time(text: str) -> bool:
    try:
        rfc3339(text)
    except ValueError:
        return False
    return True
