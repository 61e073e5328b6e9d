"""From a generated instance of each schema to a real table and back, unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, given, settings

from ingest.batch import Batch
from ingest.check import Checker
from ingest.config import Settings
from ingest.schema import Catalogue, Stream
from ingest.schema.digest import sha256
from ingest.schema.extract import as_text
from ingest.schema.private import places, with_digests
from ingest.schema.rfc3339 import rfc3339
from tests.instances import instances
from tests.support import (
    CATALOGUE,
    OwnDatabase,
    delivery,
    plenty,
    writer_to,
)


@pytest.mark.parametrize("name", CATALOGUE)
async def test_whatever_a_schema_allows_comes_back_from_its_table_unchanged(
    name: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    found: list[dict[str, Any]] = []

    @settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
    @given(instances(catalogue[name].schema))
    def collect(instance: dict[str, Any]) -> None:
        assert catalogue[name].validator.is_valid(instance)
        found.append(instance)

    collect()
    now = datetime.now(UTC).isoformat()
    sent = [instance | {"ts": now, "seq": seq} for seq, instance in enumerate(found)]
    await _store(database, catalogue, name, sent)
    connection = await asyncpg.connect(database.url)
    query = f'SELECT * FROM iov."{catalogue[name].table}" ORDER BY seq'
    rows = await connection.fetch(query)
    await connection.close()
    assert len(rows) == len(sent) > 20
    for row, sample in zip(rows, sent, strict=True):
        assert _plain(_from_row(catalogue[name], row)) == _plain(_as_kept(catalogue[name], sample))
        noted = orjson.loads(row["quality"] or b"{}")
        own = sample.get("quality") or {}
        assert noted.items() >= own.items()
        assert {noted[at] for at in noted.keys() - own} <= set(catalogue[name].plausibility.flags)


async def _store(
    database: OwnDatabase, catalogue: Catalogue, name: str, sent: list[dict[str, Any]]
) -> None:
    checker, batch = Checker.of(catalogue, Settings()), Batch(0.0)
    for sample in sent:
        one = delivery(sample, f"iov/v1/V1/{name}")
        batch.add(one, checker.check(one), plenty(), 0.0)
    assert batch.dead_letters == []
    writer = writer_to(database.url, catalogue)
    written = await writer.write(batch)
    assert written.stored == {name: len(sent)}
    assert not writer._careful  # the fast way took them all
    await writer.connection.close()


def _from_row(stream: Stream, row: Mapping[str, Any]) -> dict[str, Any]:
    """The sample that a row was made of, as far as the row knows it."""
    sample: dict[str, Any] = orjson.loads(row["extra"]) if row["extra"] else {}
    for column in stream.columns:
        value = row[column.name]
        if column.convert == "json" and value is not None:
            value = orjson.loads(value)
        place = sample
        for step in column.path[:-1]:
            place = place.setdefault(step, {})
        place[column.path[-1]] = value
    return sample | {"resend": row["resend"], "seq": row["seq"]}


def _as_kept(stream: Stream, sample: dict[str, Any]) -> dict[str, Any]:
    """The sample as it should come back: instants for their texts, digests for what is hashed."""
    kept: dict[str, Any] = orjson.loads(orjson.dumps(sample))
    for column in stream.columns:
        place: Any = kept
        for step in column.path[:-1]:
            place = (place or {}).get(step)
        value = (place or {}).get(column.path[-1])
        if value is not None and column.convert == "time":
            place[column.path[-1]] = rfc3339(value)
        if value is not None and column.convert == "digest":
            place[column.path[-1]] = sha256(value)
        if value is not None and column.hashed:
            place[column.path[-1]] = with_digests(value, places(column.hashed), sha256)
        if value is not None and column.convert == "text[]":
            place[column.path[-1]] = [
                as_text(item, column.text) if isinstance(item, dict) else item for item in value
            ]
    for name in ("ts", "quality", *stream.device_fields):
        kept.pop(name, None)
    return kept | {"resend": kept.get("resend") is True}


def _plain(value: Any) -> Any:
    """Without what is null; every number a double, for jsonb keeps 4e16 as an integer."""
    if isinstance(value, dict):
        members = {name: _plain(member) for name, member in value.items() if member is not None}
        return {name: member for name, member in members.items() if member != {}}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


async def test_the_ends_of_the_calendar_are_no_infinities(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    # asyncpg itself writes datetime.min and datetime.max as -infinity and infinity.
    ends = ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00"]
    now = datetime.now(UTC).isoformat()
    sent = [{"ts": now, "seq": seq, "sent_at": end} for seq, end in enumerate(ends)]
    await _store(database, catalogue, "nev", sent)
    found = await database.all(
        "SELECT to_json(sent_at AT TIME ZONE 'UTC') FROM iov.nev ORDER BY seq"
    )
    assert [row[0].strip('"') + "+00:00" for row in found] == ends
