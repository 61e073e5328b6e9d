"""Tomorrow's schemas judge yesterday's rows and letters, before `migrate`."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.batch import Batch
from ingest.check import Checker
from ingest.config import Settings
from ingest.schema import Catalogue, default_directory
from ingest.store.rows import SLICES
from tests.commands import iov_ingest
from tests.support import OwnDatabase, bad_sample, delivery, plenty, sample, writer_to


@pytest.fixture
async def filled(database: OwnDatabase, catalogue: Catalogue) -> OwnDatabase:
    """A database with rows of the last hours, one refused value among them, and a letter."""
    now = datetime.now(UTC)
    sent: list[Any] = [
        [sample(n, now - timedelta(hours=n), gear="D") for n in range(10)],
        [sample(20 + n, now - timedelta(hours=1), speed_kmh=200) for n in range(3)],
        sample(7, now - timedelta(hours=30), speed_kmh=200),
        sample(8, now, soc_pct=-50, extra_field={"a": 1}),
        bad_sample(9, now, soc_pct=-50),
        [bad_sample(10, now, speed_kmh="fast")],
    ]
    checker, batch = Checker.of(catalogue, Settings()), Batch(0.0)
    for payload in sent:
        one = delivery(payload)
        batch.add(one, checker.check(one), plenty(), 0.0)
    writer = writer_to(database.url, catalogue)
    await writer.write(batch)
    await writer.connection.close()
    assert (await database.count(), await database.count("dead_letter")) == (15, 2)
    return database


def tomorrow(tmp_path: Path, **changes: dict[str, Any]) -> Path:
    """Copy the schemas, with keywords of fields of `nev` changed, and those of the whole."""
    directory = tmp_path / "tomorrow"
    shutil.copytree(default_directory(), directory)
    file = directory / "nev.schema.json"
    schema = orjson.loads(file.read_bytes())
    for name, keywords in changes.items():
        place = schema if name == "whole" else schema["properties"][name]
        place.update(keywords)
    file.write_bytes(orjson.dumps(schema))
    return directory


async def test_it_counts_what_would_be_refused_and_what_would_be_taken(
    filled: OwnDatabase, tmp_path: Path
) -> None:
    schemas = tomorrow(
        tmp_path,
        speed_kmh={"maximum": 100},
        soc_pct={"minimum": -100},
        whole={"required": ["ts", "odometer_km"]},
    )
    ended = await iov_ingest(
        "schema", "diff", schemas, "--against-last", "24h", "--json", database_url=filled.url
    )
    assert ended.status == 1
    assert not ended.json["compatible"]
    [nev] = [one for one in ended.json["against"]["rows"] if one["stream"] == "nev"]
    assert (nev["rows"], nev["whole"]) == (14, True)
    assert sum(nev["refused"].values()) == 14


async def test_a_narrower_range_costs_fields_and_a_wider_one_brings_some_back(
    filled: OwnDatabase, tmp_path: Path
) -> None:
    schemas = tomorrow(tmp_path, speed_kmh={"maximum": 100}, soc_pct={"minimum": -100})
    settings = {"database_url": filled.url}
    ended = await iov_ingest(
        "schema", "diff", schemas, "--against-last", "24h", "--json", **settings
    )
    assert ended.status == 1
    [nev] = [one for one in ended.json["against"]["rows"] if one["stream"] == "nev"]
    assert nev == {
        "stream": "nev",
        "rows": 14,
        "whole": True,
        "refused": {},
        "set_aside": {"/speed_kmh": 3},
        "taken": {"/soc_pct": 1},
    }
    outcomes = ended.json["against"]["letters"]["outcomes"]
    assert {(one["then"], one["now"]): one["letters"] for one in outcomes} == {
        ("schema", "stored"): 1,
        ("schema", "schema"): 1,
    }
    rejecting = await iov_ingest(
        "schema", "diff", schemas, "--against-last", "24h", "--json",
        refused_fields="reject", **settings,
    )  # fmt: skip
    [nev] = [one for one in rejecting.json["against"]["rows"] if one["stream"] == "nev"]
    assert nev["refused"] == {"/speed_kmh is refused (range)": 3}


async def test_the_schemas_that_stored_it_refuse_nothing_of_it(filled: OwnDatabase) -> None:
    ended = await iov_ingest("schema", "diff", "--against-last", "24h", database_url=filled.url)
    assert ended.status == 0
    assert "nev: 14 rows judged, 0 would be refused" in ended.out
    assert "✗" not in ended.out
    assert await filled.one("SELECT sum(attempts) FROM iov.dead_letter") == 0


async def test_of_many_rows_some_of_every_part_of_the_span_are_judged(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    now = datetime.now(UTC)
    checker, batch = Checker.of(catalogue, Settings()), Batch(0.0)
    for part in range(8):
        numbers = range(500 * part, 500 * part + 500)
        one = delivery([sample(n, now - timedelta(seconds=20 * n)) for n in numbers])
        batch.add(one, checker.check(one), plenty(), 0.0)
    writer = writer_to(database.url, catalogue)
    await writer.write(batch)
    await writer.connection.close()
    ended = await iov_ingest(
        "schema", "diff", "--against-last", "24h", "--most", "200", database_url=database.url
    )
    # Of 22 hours and 13 minutes, 89 quarters of an hour have rows.
    assert f"nev: {89 * (200 // SLICES + 1)} rows of more judged" in ended.out


async def test_wrong_arguments_are_named() -> None:
    file = default_directory() / "nev.schema.json"
    for arguments, words in (
        ([], "name OLD and NEW"),
        ([default_directory()], "name OLD and NEW"),
        ([file, "--against-last", "24h"], "needs directories"),
        ([default_directory(), "--against-last", "a day"], "24h"),
    ):
        ended = await iov_ingest(
            "schema", "diff", *arguments, database_url="postgresql://u@127.0.0.1:1/d"
        )
        assert ended.status == 2
        assert words in ended.err
