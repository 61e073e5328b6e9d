"""Tomorrow's schemas judge yesterday's rows and letters, before `migrate`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.schema import Catalogue, default_directory
from tests.commands import iov_ingest
from tests.support import OwnDatabase, bad_sample, batch_of, delivery, sample, writer_to


async def store(database: OwnDatabase, catalogue: Catalogue, sent: Sequence[Any]) -> None:
    writer = writer_to(database.url, catalogue)
    await writer.write(batch_of(catalogue, [delivery(payload) for payload in sent]))
    await writer.connection.close()


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
    await store(database, catalogue, sent)
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
    assert nev["rows"] == 14
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
    assert nev | {"of": 0} == {
        "stream": "nev",
        "rows": 14,
        "of": 0,
        "stopped": False,
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


async def test_of_many_rows_some_of_all_devices_are_judged(
    database: OwnDatabase, tmp_path: Path
) -> None:
    """A new model of vehicles is the usual reason for new schemas: its rows must be among them."""
    await database.execute("""
        INSERT INTO iov.device (device, first_seen_at) SELECT 'D' || n, now()
        FROM generate_series(1, 200) n;
        SELECT iov.make_partition('nev', d::date)
        FROM generate_series(now() - interval '1 day', now(), '12 hours') d;
        INSERT INTO iov.nev (device_id, ts, seq, received_at, speed_kmh, soc_pct)
        SELECT device_id, now() - n * interval '86 s', n, now(), 50,
            CASE WHEN device_id > 100 THEN 90 END
        FROM iov.device, generate_series(1, 1000) n;
        ANALYZE iov.nev;
    """)
    schemas = tomorrow(tmp_path, soc_pct={"maximum": 80})
    ended = await iov_ingest(
        "schema", "diff", schemas, "--against-last", "24h", "--most", "20000", "--json",
        database_url=database.url,
    )  # fmt: skip
    [nev] = [one for one in ended.json["against"]["rows"] if one["stream"] == "nev"]
    assert 15_000 < nev["rows"] < 40_000
    assert nev["of"] > 150_000
    assert 0.4 < nev["set_aside"]["/soc_pct"] / nev["rows"] < 0.6


async def test_rows_of_a_stream_that_is_gone_would_be_refused(
    filled: OwnDatabase, tmp_path: Path
) -> None:
    schemas = tomorrow(tmp_path)
    (schemas / "nev.schema.json").unlink()
    (schemas / "plausibility.json").unlink()
    await filled.execute("ANALYZE iov.nev")
    ended = await iov_ingest(
        "schema", "diff", "--against-last", "24h", "--json",
        database_url=filled.url, schema_dir=str(schemas),
    )  # fmt: skip
    assert ended.status == 1
    [gone] = [one for one in ended.json["against"]["rows"] if one["stream"] == "nev"]
    assert gone["refused"].keys() == {"there is no such schema"}


async def test_what_a_vehicle_calls_refused_is_its_own(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    long = "/packs/" + "9" * 5_000
    own: list[Any] = ["hello", 7, [1], {"/speed_kmh": 999}, {long: 1}, {"a": 1}]
    sent = [sample(number, refused=what) for number, what in enumerate(own)]
    await store(database, catalogue, sent)
    ended = await iov_ingest(
        "schema", "diff", "--against-last", "24h", "--json", database_url=database.url
    )
    assert ended.status == 0
    [nev] = [one for one in ended.json["against"]["rows"] if one["stream"] == "nev"]
    assert (nev["rows"], nev["refused"], nev["set_aside"], nev["taken"]) == (6, {}, {}, {})


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


async def test_with_old_statistics_it_stops_and_says_so(database: OwnDatabase) -> None:
    await database.execute("""
        INSERT INTO iov.device (device, first_seen_at) VALUES ('D1', now());
        SELECT iov.make_partition('nev', d::date)
        FROM generate_series(now() - interval '2 hours', now(), '1 hour') d;
        INSERT INTO iov.nev (device_id, ts, seq, received_at, speed_kmh)
        SELECT device_id, now() - interval '1 hour' - n * interval '10 ms', n, now(), 50
        FROM iov.device, generate_series(1, 30000) n;
        ANALYZE iov.nev;
        INSERT INTO iov.nev (device_id, ts, seq, received_at, speed_kmh)
        SELECT device_id, now() - n * interval '10 ms', n, now(), 50
        FROM iov.device, generate_series(1, 30000) n;
    """)
    ended = await iov_ingest(
        "schema", "diff", "--against-last", "1h", "--most", "1000", database_url=database.url
    )
    assert "of many more" in ended.out, ended.out
    assert "nev: 30,000 rows judged" not in ended.out


async def test_names_that_a_vocabulary_gets_are_read_in_what_was_kept(
    filled: OwnDatabase, tmp_path: Path
) -> None:
    await filled.execute("""UPDATE iov.nev SET extra = '{"o.brake": 5000}' WHERE seq = 3""")
    schemas = tomorrow(tmp_path)
    file = schemas / "vocabularies.json"
    others = orjson.loads(file.read_bytes())
    others["own"] = {"fields": {"nev": {"o.brake": "/brake_pedal_pct"}}}
    file.write_bytes(orjson.dumps(others))
    ended = await iov_ingest(
        "schema", "diff", schemas, "--against-last", "24h", "--json", database_url=filled.url
    )
    [nev] = [one for one in ended.json["against"]["rows"] if one["stream"] == "nev"]
    assert nev["set_aside"] == {"/brake_pedal_pct": 1}
