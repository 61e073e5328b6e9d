"""`maintain`: what is no longer kept goes, and nobody waits for it."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from ingest.child import child
from ingest.config import Settings, load
from ingest.errors import ConfigError
from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import TurnAccount, maintain, migrate
from ingest.store.maintain import maintain_in_turn
from tests.support import (
    OwnDatabase,
    may_not,
    publish_many,
    sample,
    working,
)

MODULE: Any = importlib.import_module("ingest.store.maintain")
NOW = datetime.now(UTC)
LONG_AGO = (NOW - timedelta(days=100)).date()
KEPT = (NOW - timedelta(days=60)).date()
OLD, YOUNG = f"nev_{LONG_AGO:%Y%m%d}", f"nev_{KEPT:%Y%m%d}"
FILE = "[default]\nkeep_days = 90\n[dead_letter]\nkeep_days = 30\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def filled(database: OwnDatabase) -> OwnDatabase:
    """A database with a day that is to go, one that is to stay, and dead letters of both kinds."""
    for day in (LONG_AGO, KEPT):
        await database.all("SELECT iov.make_partition('nev', $1)", day)
        await database.execute(
            "INSERT INTO iov.nev (device_id, ts, seq, received_at) "
            f"SELECT 1, '{day} 12:00+00', n, now() FROM generate_series(1, 1000) n"
        )
    await database.execute(
        "INSERT INTO iov.dead_letter (received_at, topic, reason, detail, payload) "
        "SELECT now() - make_interval(days => n), 't', 'bad_json', 'd', 'p' "
        "FROM generate_series(1, 100) n"
    )
    return database


def settings_of(url: str, file: Path | None = None, **more: str) -> Settings:
    environ = {"IOV_DATABASE_URL": url} | {f"IOV_{k.upper()}": v for k, v in more.items()}
    return load(environ=environ | ({"IOV_RETENTION_FILE": str(file)} if file else {}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "retention.toml"
    path.write_text(FILE)
    return path


def rewrite(file: Path, text: str) -> None:
    file.write_text(text)


async def days(database: OwnDatabase) -> set[str]:
    rows = await database.all(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'iov'::regnamespace "
        "AND c.relname ~ '^nev_2' AND c.relkind = 'r'"
    )
    return {row[0] for row in rows}


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Somebody whose query of everything does not end."""
    reader = await asyncpg.connect(url)
    await reader.execute("BEGIN; SELECT count(*) FROM iov.nev")
    try:
        yield reader
    finally:
        reader.terminate()


async def test_a_dry_run_says_what_would_go_and_how_much_it_frees(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    settings = settings_of(filled.url, file)
    planned = await maintain(settings, catalogue, dry_run=True)
    assert planned.dropped == [f"iov.{OLD}"]
    assert planned.dead_letters == 71  # the one of 30 days ago is a moment older than that
    size = await filled.one(f"SELECT pg_total_relation_size('iov.{OLD}')")
    assert size < planned.freed_bytes < size + 71 * 200
    assert "keep iov.nev for 90 days" in planned.kept
    assert planned.made
    assert planned.analysed == [
        f"iov.{s.table}" for s in sorted(catalogue.values(), key=lambda s: s.table)
    ]
    assert {OLD, YOUNG} <= await days(filled)
    assert await filled.one("SELECT count(*) FROM iov.retention") == 0

    done = await maintain(settings, catalogue)
    assert done.later == []
    assert done.dropped == planned.dropped
    assert (done.kept, done.made, done.analysed) == (planned.kept, planned.made, planned.analysed)
    assert done.dead_letters == 71
    there = await days(filled)
    assert OLD not in there
    assert YOUNG in there
    assert await filled.count() == 1000
    assert await filled.count("dead_letter") == 29
    assert await maintain(settings, catalogue, dry_run=True) == TurnAccount()


async def test_the_command(filled: OwnDatabase, file: Path) -> None:
    environ = os.environ | {
        "IOV_DATABASE_URL": filled.url, "IOV_RETENTION_FILE": str(file)
    }  # fmt: skip

    async def run(*args: str) -> tuple[int | None, str, str]:
        command = [sys.executable, "-m", "ingest", "maintain", *args]
        process = await child(*command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    status, out, err = await run("--dry-run")
    assert status == 0, err
    assert f"iov.{OLD} would be dropped" in out
    assert "71 dead letters would be deleted" in out
    assert "kB would be freed" in out
    assert OLD in await days(filled)
    status, out, err = await run("--json")
    assert status == 0, err
    assert f"drop iov.{OLD}" in err
    told = orjson.loads(out.splitlines()[-1])
    assert told["dropped"] == [f"iov.{OLD}"]
    assert told["dry_run"] is False
    rewrite(file, "[default]\nkeep_days = 20\n")
    status, out, err = await run()
    assert status == 2
    assert "iov.nev is kept for 20 days and samples of 30 days are taken" in err
    assert "IOV_MAX_AGE_DAYS" in err
    assert YOUNG in await days(filled)


async def test_without_a_file_nothing_is_ever_dropped(
    filled: OwnDatabase, catalogue: Catalogue
) -> None:
    done = await maintain(settings_of(filled.url), catalogue)
    assert (done.dropped, done.dead_letters, done.later) == ([], 0, [])
    assert {OLD, YOUNG} <= await days(filled)
    assert await filled.count("dead_letter") == 100


@pytest.mark.parametrize("whose", ["the owner's", "a worker's"])
async def test_a_readers_query_of_minutes_delays_nobody(
    whose: str,
    filled: OwnDatabase,
    broker: Mosquitto,
    catalogue: Catalogue,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODULE, "_BETWEEN_TRIES_S", 0.2)
    await migrate(settings_of(filled.url, file), catalogue)
    url = filled.url if whose == "the owner's" else await filled.user("keeps", "iov_worker")
    # Ours alone, so that it is not waited for by another test's.
    async with working(broker.url, filled.url, catalogue) as worker, reading(filled.url):
        work = asyncio.create_task(maintain(settings_of(url), catalogue))
        longest_s = 0.0
        for number in range(30):
            began_s = time.monotonic()
            await publish_many(broker.url, [sample(number)])
            await worker.settles(number + 1)
            longest_s = max(longest_s, time.monotonic() - began_s)
        if whose == "the owner's":
            assert not work.done()
            # Whoever asks now does not see the day any more.
            assert await filled.count() == 1_030
            pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
            assert await filled.one(pending) == 1
        else:
            assert await filled.count() == 2_030
            done = await work
            assert done.dropped == []
            (left,) = done.later
            assert left.startswith(f"drop iov.{OLD}: ")
            assert {OLD, YOUNG} <= await days(filled)
        # A lock that was waited for as long as the reader reads would have held up all of them.
        assert longest_s < 5
    if whose == "the owner's":
        done = await work
    else:
        done = await maintain(settings_of(url), catalogue)
    assert done.dropped == [f"iov.{OLD}"]
    assert done.later == []
    assert OLD not in await days(filled)
    assert await filled.count() == 1_030


async def interrupted(database: OwnDatabase, settings: Settings, catalogue: Catalogue) -> None:
    """A day that is half detached: whoever did it was ended while it waited for a reader."""
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"

    async def waits() -> bool:
        return bool(await database.one(pending))

    async with reading(database.url):
        work = asyncio.create_task(maintain(settings, catalogue))
        await until(waits, "a detach that waits")
        work.cancel()
        await asyncio.wait([work])
        await database.all(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'iov-ingest maintain' AND datname = current_database()"
        )
        assert await database.one(pending) == 1


@pytest.mark.parametrize("when", ["while it waits", "before it drops"])
async def test_interrupted_it_is_ended_by_the_next(
    when: str, filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    settings = settings_of(filled.url, file)
    if when == "while it waits":
        await interrupted(filled, settings, catalogue)
    else:
        end = LONG_AGO + timedelta(days=1)
        note = f"{MODULE._PAST_ITS_KEEPING}iov.nev until {end}T00:00:00+00"
        await filled.execute(f"COMMENT ON TABLE iov.{OLD} IS '{note}'")
        await filled.execute(f"ALTER TABLE iov.nev DETACH PARTITION iov.{OLD}")
    # One that an operator has detached is the operator's.
    await filled.execute(f"ALTER TABLE iov.nev DETACH PARTITION iov.{YOUNG}")
    done = await maintain(settings, catalogue)
    assert done.later == []
    assert done.dropped == [f"iov.{OLD}"]
    there = await days(filled)
    assert OLD not in there
    assert YOUNG in there


async def mark_of(database: OwnDatabase, part: str) -> str:
    told: str = await database.one(f"SELECT obj_description('iov.{part}'::regclass, 'pg_class')")
    return told


async def test_what_could_not_be_detached_and_is_then_kept_by_hand_stays(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    before = await mark_of(filled, OLD)
    await filled.execute("CREATE TABLE iov.nev_rest PARTITION OF iov.nev DEFAULT")
    settings = settings_of(filled.url, file)
    done = await maintain(settings, catalogue)
    assert done.dropped == []
    assert any("default partition" in why for why in done.later)
    assert await mark_of(filled, OLD) == before
    await filled.execute(f"ALTER TABLE iov.nev DETACH PARTITION iov.{OLD}")
    assert (await maintain(settings, catalogue)).dropped == []
    assert await filled.count(OLD) == 1000


async def test_what_is_kept_for_longer_after_an_interruption_stays(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    settings, before = settings_of(filled.url, file), await mark_of(filled, OLD)
    await interrupted(filled, settings, catalogue)
    rewrite(file, "[default]\nkeep_days = 365\n")
    done = await maintain(settings, catalogue)
    (told,) = done.later
    assert f"iov.{OLD} is half detached, is kept" in told
    await filled.execute(f"ALTER TABLE iov.nev DETACH PARTITION iov.{OLD} FINALIZE")
    assert (await maintain(settings, catalogue)).dropped == []
    assert await filled.count(OLD) == 1000
    # In its place again it is a day like others, and may be taken out to be kept later.
    await filled.execute(
        f"ALTER TABLE iov.nev ATTACH PARTITION iov.{OLD} FOR VALUES "
        f"FROM ('{LONG_AGO} 00:00+00') TO ('{LONG_AGO + timedelta(days=1)} 00:00+00')"
    )
    assert f"keep iov.{OLD}" in (await maintain(settings, catalogue)).kept
    assert await mark_of(filled, OLD) == before


async def test_a_table_that_only_bears_the_name_of_a_day_is_not_touched(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    await filled.execute(
        f"CREATE SCHEMA archive; ALTER TABLE iov.{OLD} SET SCHEMA archive; "
        f"CREATE TABLE iov.{OLD} AS SELECT 1 AS mine"
    )
    for _ in range(2):
        done = await maintain(settings_of(filled.url, file), catalogue)
        assert (done.dropped, done.later) == ([], [])
    assert await filled.one(f"SELECT obj_description('iov.{OLD}'::regclass, 'pg_class')") is None


async def test_a_day_that_a_view_reads_is_told_and_stays_in_sight(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    await filled.execute(f"CREATE VIEW public.mine AS SELECT * FROM iov.{OLD}")
    done = await maintain(settings_of(filled.url, file), catalogue)
    assert done.dropped == []
    assert done.later == [f"drop iov.{OLD}: a view reads it; drop the view first"]
    assert await filled.count() == 2_000


async def test_two_owners_at_once_do_it_once_and_both_are_content(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    settings = settings_of(filled.url, file)
    await migrate(settings, catalogue)
    both = await asyncio.gather(maintain(settings, catalogue), maintain(settings, catalogue))
    assert OLD not in await days(filled)
    assert sorted(len(done.dropped) for done in both) == [0, 1]


async def test_a_workers_time_zone_makes_no_day_older(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    await migrate(settings_of(filled.url, file), catalogue)
    url = await filled.user("keeps", "iov_worker")
    day = (NOW - timedelta(days=86)).date()
    await filled.all("SELECT iov.make_partition('nev', $1)", day)
    worker = await asyncpg.connect(url)
    for zone in ("<AAA>167<BBB>-167,J300,J364", "<AAA>-167<BBB>167,J200,J320"):
        await worker.execute(f"SET datestyle = 'SQL, DMY'; SET timezone = '{zone}'")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await worker.execute(f"SELECT iov.drop_day('nev', 'nev_{day:%Y%m%d}')")
        await worker.execute("SELECT iov.drop_dead_letters(1000)")
    await worker.close()
    assert await filled.count("dead_letter") == 29


async def test_a_worker_does_not_wait_for_who_holds_the_turn(
    filled: OwnDatabase, catalogue: Catalogue
) -> None:
    url = await filled.user("keeps", "iov_worker")
    other = await asyncpg.connect(url)
    await other.execute("BEGIN; SELECT FROM iov.mutex WHERE name = 'maintain' FOR UPDATE")
    assert await maintain_in_turn(settings_of(url), catalogue) is None
    await other.close()


async def test_a_worker_drops_what_is_past_its_keeping_and_nothing_else(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    url = await filled.user("keeps", "iov_worker")
    await may_not(url, f"SELECT iov.drop_day('nev', '{OLD}')")
    await migrate(settings_of(filled.url, file), catalogue)
    today = f"nev_{NOW:%Y%m%d}"
    await may_not(
        url,
        f"SELECT iov.drop_day('nev', '{YOUNG}')", f"SELECT iov.drop_day('nev', '{today}')",
        "SELECT iov.drop_day('nev', 'device')", "SELECT iov.drop_day('device', 'device')",
        f"SELECT iov.drop_day('alarm', '{OLD}')", "UPDATE iov.retention SET keep_days = 1",
        "DELETE FROM iov.dead_letter",
    )  # fmt: skip
    done = await maintain(settings_of(url), catalogue)
    assert done.dropped == [f"iov.{OLD}"]
    assert done.dead_letters == 71
    assert done.analysed
    assert done.later == []


async def test_what_a_worker_takes_in_it_does_not_drop(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    await migrate(settings_of(filled.url, file), catalogue)
    url = await filled.user("keeps", "iov_worker")
    done = await maintain(settings_of(url, max_age_days="120"), catalogue)
    assert done.dropped == []
    assert any("iov.nev is kept for 90 days and samples of 120 days" in w for w in done.later)
    assert OLD in await days(filled)


async def test_one_worker_an_hour_does_it_and_no_reader_can_take_its_turn(
    filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    await migrate(settings_of(filled.url, file), catalogue)
    url = await filled.user("keeps", "iov_worker")
    reader = await filled.user("reads", "iov_reader")
    await may_not(
        reader, "UPDATE iov.mutex SET held_until = 'infinity'",
        "DO $$ BEGIN LOCK TABLE iov.mutex; END $$",
        "SELECT FROM iov.mutex FOR UPDATE", f"SELECT iov.drop_day('nev', '{OLD}')",
        "SELECT iov.drop_dead_letters(1)", "SELECT iov.analyse('nev')",
    )  # fmt: skip
    workers = [settings_of(url, mqtt_client_id=f"w{n}") for n in range(4)]
    done = await asyncio.gather(*(maintain_in_turn(w, catalogue) for w in workers))
    (account,) = [one for one in done if one is not None]
    assert account.dropped == [f"iov.{OLD}"]
    assert await maintain_in_turn(workers[0], catalogue) is None
    await filled.execute(
        "UPDATE iov.mutex SET held_until = now() - interval '1 s' WHERE name = 'maintain'"
    )
    again = await maintain_in_turn(workers[0], catalogue)
    assert again is not None
    assert again.dropped == []


async def test_a_worker_at_work_does_it(
    filled: OwnDatabase,
    broker: Mosquitto,
    catalogue: Catalogue,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODULE, "_LOOK_EVERY_S", 0.1)
    await migrate(settings_of(filled.url, file), catalogue)
    async with working(broker.url, filled.url, catalogue):

        async def gone() -> bool:
            return OLD not in await days(filled)

        await until(gone, "the old day to be gone")


async def test_parents_have_statistics_and_days_an_index_by_time(
    filled: OwnDatabase, catalogue: Catalogue
) -> None:
    of_nev = "SELECT count(*) FROM pg_stats WHERE schemaname = 'iov' AND tablename = 'nev'"
    assert await filled.one(of_nev + " AND inherited") == 0
    by_time = (
        "SELECT count(*) FROM pg_index x JOIN pg_class n ON n.oid = x.indexrelid "
        "JOIN pg_am m ON m.oid = n.relam WHERE m.amname = 'brin' AND x.indisvalid "
        f"AND x.indrelid = 'iov.{YOUNG}'::regclass"
    )
    assert await filled.one(by_time) == 1
    # As a day from before there was one, and one whose index was begun and not ended.
    name = await filled.one(
        f"SELECT indexname FROM pg_indexes WHERE tablename = '{YOUNG}' AND indexdef LIKE '%brin%'"
    )
    await filled.execute(f"DROP INDEX iov.{name}")
    url = await filled.user("keeps", "iov_worker")
    by_worker = await maintain(settings_of(url), catalogue)
    assert by_worker.later == [
        f"index iov.{YOUNG} by ts: run iov-ingest maintain as the owner of the tables"
    ]
    assert await filled.one(of_nev + " AND inherited") > 0
    done = await maintain(settings_of(filled.url), catalogue)
    assert done.indexed == [f"iov.{YOUNG}"]
    assert await filled.one(by_time) == 1
    await filled.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = (SELECT 'iov.{name}'::regclass)"
    )
    assert (await maintain(settings_of(filled.url), catalogue)).indexed == [f"iov.{YOUNG}"]
    assert await filled.one(by_time) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[batery]\nkeep_days = 90", "there is no stream batery; did you mean battery?"),
        ("[nev]\nkeep = 90", "[nev] has no keep; did you mean keep_days?"),
        ("[nev]\nkeep_days = 0", "[nev] keep_days is not a whole number of days from 1 to 36,500"),
        ("[nev]\nkeep_days = '90'", "[nev] keep_days is not a whole number of days"),
        ("[nev]\nkeep_days = true", "[nev] keep_days is not a whole number of days"),
        ("nev = 90", "nev is not a table: write [nev] and keep_days = 90 below"),
        ("[nev]\nkeep_days = 90\ncompress_after_days = 90", "[nev] is compressed after 90 days"),
        ("[dead_letter]\ncompress_after_days = 9", "[dead_letter] has no compress_after_days"),
        ("[nev\n", "at line 1"),
        ("a = " + "9" * 5_000, "Exceeds the limit"),
        ("a = " + "[" * 100_000, "recursion"),
        ("[[nev]]\nkeep_days = 90", "nev is not a table: write [nev] and keep_days = 90 below"),
        ("[ad-state]\nkeep_days = 29", "iov.ad_state is kept for 29 days and samples of 30 days"),
    ],
)
async def test_what_is_wrong_with_the_file_is_told_and_nothing_done(
    text: str, told: str, filled: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    rewrite(file, text + "\n")
    settings = settings_of(filled.url, file)
    for command in (maintain, migrate):
        with pytest.raises(ConfigError) as refused:
            await command(settings, catalogue)
        assert any(told in problem for problem in refused.value.problems)
        assert all(str(file) in problem for problem in refused.value.problems)
    assert {OLD, YOUNG} <= await days(filled)


async def test_all_problems_of_the_file_are_told_at_once(
    database: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    rewrite(file, "[nope]\n[nev]\nkeep_days = -1\ncompres_after_days = 3\n")
    with pytest.raises(ConfigError) as refused:
        await maintain(settings_of(database.url, file), catalogue)
    assert len(refused.value.problems) == 3


async def test_the_file_that_is_delivered_is_taken_and_what_it_no_longer_names_is_kept(
    database: OwnDatabase, catalogue: Catalogue, file: Path
) -> None:
    delivered = settings_of(database.url, ROOT / "deploy" / "retention.toml")
    steps = await migrate(delivered, catalogue)
    assert "keep iov.battery for 365 days, compressed after 7" in [step.what for step in steps]
    assert await migrate(delivered, catalogue) == []
    kept = "SELECT keep_days FROM iov.retention WHERE table_name = 'battery'"
    assert await database.one(kept) == 365
    rewrite(file, "[nev]\nkeep_days = 40\n")
    done = await maintain(settings_of(database.url, file), catalogue)
    assert "keep iov.battery for ever" in done.kept
    assert await database.one(kept) is None
    assert (await maintain(settings_of(database.url, file), catalogue)).kept == []
