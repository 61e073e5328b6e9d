"""One message, one device, one reader must not stop the others: the store's side of it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest

from ingest.config import load
from ingest.errors import Unavailable
from ingest.lab.embedded import Mosquitto, Postgres
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import migrate
from tests.integration.test_store import writing
from tests.support import (
    OwnDatabase,
    batch_of,
    delivery,
    may_not,
    publish_many,
    sample,
    working,
)

RAISE = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'not in my table' USING ERRCODE = '{state}';
END $$;
CREATE {constraint} TRIGGER refuse {when} INSERT ON iov.{table} {deferred}
    FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION public.refuse();
"""


def raising(
    condition: str = "true", table: str = "nev", state: str = "P0001", *, deferred: bool = False
) -> str:
    """An operator's trigger that refuses some rows."""
    return RAISE.format(
        condition=condition,
        table=table,
        state=state,
        constraint="CONSTRAINT" if deferred else "",
        when="AFTER" if deferred else "BEFORE",
        deferred="DEFERRABLE INITIALLY DEFERRED" if deferred else "",
    )


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("state", ["P0001", "0A000", "XX001", "99999"])
async def test_what_nobody_foresaw_of_single_rows_is_a_dead_letter(
    state: str, deferred: Any, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(raising("new.soc_pct = 66", state=state, deferred=deferred))
    batch = batch_of(
        catalogue, [delivery([sample(n, soc_pct=66 if n in {3, 70} else 7) for n in range(200)])]
    )
    async with writing(database, catalogue) as writer:
        written = await writer.write(batch)
        assert (written.stored["nev"], written.refused["nev"]) == (198, 2)
        assert writer.connection.problem is None
    letters = await database.all("SELECT reason, detail, payload FROM iov.dead_letter")
    assert [letter["reason"] for letter in letters] == ["refused_by_store"] * 2
    assert all(letter["detail"].startswith(state) for letter in letters)
    assert "my table" not in str(letters)


async def test_a_row_that_fails_alone_waits_for_others_that_show_whose_fault_it_is(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(raising("new.soc_pct = 66"))
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(1, soc_pct=66)])
        await until(lambda: "P0001" in str(worker.service.problems()), "its words at /readyz")
        assert worker.in_flight == 1
        await publish_many(broker.url, [sample(2)])
        await worker.settles(2)
        await worker.ready()
    assert await database.reasons() == ["refused_by_store"]
    assert await database.count() == 1


async def test_where_everything_fails_everything_waits(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(raising())
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(n) for n in range(50)])
        await until(lambda: "not in my table" in str(worker.service.problems()), "the words")
        await publish_many(broker.url, [sample(n) for n in range(50, 60)])
        assert worker.settled() == 0
        await database.execute("DROP TRIGGER refuse ON iov.nev")
        await worker.settles(60)
    assert await database.count() == 60
    assert await database.reasons() == []


@pytest.mark.parametrize(
    "rule",
    [
        "CREATE UNIQUE INDEX ON iov.device (vin)",
        "ALTER TABLE iov.device ADD CHECK (vin <> 'LSVAA4182E2184847')",
        raising("new.vin IS NOT NULL", "device").replace("INSERT", "UPDATE"),
    ],
)
async def test_a_description_that_is_refused_harms_no_sample(
    rule: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(rule)
    async with working(broker.url, database.url, catalogue) as worker:
        for number in range(2):
            said = {"ts": datetime.now(UTC).isoformat(), "seq": 1, "event": "login"}
            said["vin"] = "LSVAA4182E2184847"
            await publish_many(broker.url, [said], f"iov/v1/V{number}/session")
            await worker.settles(number + 1)
        refused = worker.metric("iov_descriptions_refused_total")
        assert refused == (1 if "UNIQUE" in rule else 2)
    assert await database.count("session") == 2


async def test_a_default_partition_in_the_way_is_told_and_ends_nothing(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    ahead = datetime.now(UTC).date() + timedelta(days=2)
    await database.execute("CREATE TABLE iov.nev_rest PARTITION OF iov.nev DEFAULT")
    await database.execute(
        "INSERT INTO iov.nev (device_id, ts, seq, received_at) "
        f"VALUES (1, '{ahead} 12:00+00', 1, now())"
    )
    async with working(broker.url, database.url, catalogue, wait=False) as worker:
        await until(lambda: "23514" in str(worker.service.watch.problem), "its words")
        await worker.subscribed()
        await publish_many(broker.url, [sample(1)])
        await worker.settles(1)


async def test_a_dead_letter_that_cannot_be_stored_does_not_stop_the_others(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(raising("new.device = 'BAD'", "dead_letter"))
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [b"junk"], "iov/v1/BAD/nev")
        await until(lambda: "P0001" in str(worker.service.problems()), "its words")
        await publish_many(broker.url, [b"junk"], "iov/v1/V1/nev")
        await publish_many(broker.url, [sample(1)])
        await worker.settles(3)
        assert worker.metric("iov_dead_letters_suppressed_total") == 1
    assert await database.all("SELECT device FROM iov.dead_letter") == [("V1",)]


@asynccontextmanager
async def korean(pg: Postgres, catalogue: Catalogue) -> AsyncIterator[OwnDatabase]:
    admin = await asyncpg.connect(pg.url)
    await admin.execute("CREATE DATABASE korean ENCODING 'EUC_KR' LOCALE 'C' TEMPLATE template0")
    try:
        own = OwnDatabase(pg, "korean")
        await migrate(load(environ={"IOV_DATABASE_URL": own.url}), catalogue)
        yield own
    finally:
        await admin.execute("DROP DATABASE korean WITH (FORCE)")
        await admin.close()


async def test_a_database_of_another_encoding_refuses_single_texts_only(
    pg: Postgres, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with korean(pg, catalogue) as own, working(broker.url, own.url, catalogue) as worker:
        await publish_many(broker.url, [sample(1, trip_id="\N{GRINNING FACE}"), sample(2)])
        await publish_many(broker.url, [b"{}"], "iov/v1/V1/\N{GRINNING FACE}")
        await publish_many(broker.url, [sample(3, trip_id="서울")])
        await worker.settles(4)
        assert await own.count() == 2
        letters = await own.all("SELECT reason, topic FROM iov.dead_letter ORDER BY reason")
        assert [tuple(letter) for letter in letters] == [
            ("refused_by_store", "iov/v1/V1/nev"),
            ("unknown_stream", "iov/v1/V1/\\U0001f600"),
        ]


async def test_row_level_security_refuses_copy_and_not_the_service(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    url = await database.user("iov_rls_worker", "iov_worker")
    await database.execute(
        "ALTER TABLE iov.nev ENABLE ROW LEVEL SECURITY; "
        "CREATE POLICY all_of_it ON iov.nev USING (true) WITH CHECK (soc_pct < 50)"
    )
    async with working(broker.url, url, catalogue) as worker:
        await publish_many(broker.url, [sample(n, soc_pct=7) for n in range(20)])
        await worker.settles(20)
    assert await database.count() == 20


class Statements:
    """Counts what a connection asks of the server."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, _: Any) -> None:
        self.number += 1


async def test_two_thousand_refused_rows_are_a_handful_of_questions(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    """By halves they were four thousand, and 28 s; a message was decoded for each of its rows."""
    await database.execute("ALTER TABLE iov.nev ADD CONSTRAINT c CHECK (soc_pct < 50)")
    decoded = 0
    deliveries = [
        delivery([sample(n, soc_pct=51 if n % 2 else 7) for n in range(first, first + 1_000)])
        for first in range(0, 4_000, 1_000)
    ]
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [delivery(sample(9_999, soc_pct=1))]))
        original, counted = writer._samples_json, Statements()

        def counting(*args: Any) -> list[bytes]:
            nonlocal decoded
            decoded += 1
            return original(*args)

        writer._samples_json = counting
        assert writer.connection._connection is not None
        writer.connection._connection.add_query_logger(counted)
        written = await writer.write(batch_of(catalogue, deliveries))
    assert (written.stored["nev"], written.refused["nev"]) == (2_000, 2_000)
    assert counted.number < 60
    assert decoded == 4


TOO_MANY = """
CREATE FUNCTION public.too_many() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT count(*) FROM new_rows) > 100 THEN {then}; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER too_many AFTER INSERT ON iov.nev REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION public.too_many();
"""


@pytest.mark.parametrize(
    "then",
    ["RAISE EXCEPTION 'out of shared memory' USING ERRCODE = '53200'", "PERFORM pg_sleep(5)"],
)
async def test_a_batch_that_is_too_much_for_the_server_is_halved(
    then: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(TOO_MANY.format(then=then))
    batch = batch_of(catalogue, [delivery([sample(n) for n in range(350)]), delivery(b"junk")])
    async with writing(database, catalogue, commit_timeout_s=1) as writer:
        written = await writer.write(batch)
    assert written.stored["nev"] + written.duplicate["nev"] == 350
    assert await database.count() == 350
    assert await database.reasons() == ["bad_json"]
    assert await database.one("SELECT count(DISTINCT xmin::text) FROM iov.nev") == 4


@asynccontextmanager
async def detach_pending(database: OwnDatabase, part: str) -> AsyncIterator[None]:
    """A DETACH CONCURRENTLY that was given up while a reader kept it waiting."""
    reader, owner = await asyncpg.connect(database.url), await asyncpg.connect(database.url)
    await reader.execute("BEGIN; SELECT count(*) FROM iov.nev")
    detach = asyncio.create_task(
        owner.execute(f"ALTER TABLE iov.nev DETACH PARTITION iov.{part} CONCURRENTLY")
    )
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"

    async def begun() -> bool:
        return bool(await database.one(pending))

    await until(begun, "a detach that is pending")
    await database.all("SELECT pg_terminate_backend($1, 5000)", owner.get_server_pid())
    await asyncio.wait([detach])
    assert detach.exception()
    reader.terminate()
    assert await database.one(pending) == 1
    yield


async def test_a_day_that_cannot_be_written_holds_up_nobody(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    part = f"nev_{yesterday:%Y%m%d}"
    async with working(broker.url, database.url, catalogue, dead_letters_per_minute="1") as worker:
        async with detach_pending(database, part):
            await publish_many(broker.url, [sample(n, yesterday) for n in range(5)])
            await publish_many(broker.url, [sample(n) for n in range(10, 20)])
            await worker.settles(15)
            assert await database.count() == 10
            # All of them are kept: it is not the device's fault.
            assert await database.reasons() == ["refused_by_store"] * 5
            assert "FINALIZE" in str(worker.service.problems())
        await database.execute(f"ALTER TABLE iov.nev DETACH PARTITION iov.{part} FINALIZE")
        worker.service.writer._days._closed.clear()
        await publish_many(broker.url, [sample(30, yesterday)])
        await worker.settles(16)
        await worker.ready()
    assert await database.count() == 11


async def test_a_day_is_taken_away_as_documented_behind_a_reader(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    """Whoever reads for minutes delays the end of it, and no commit."""
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    old = datetime.now(UTC) - timedelta(days=20)
    recipe = re.findall(r"^((?:ALTER|DROP) TABLE iov\.nev[_ ][^;]*2026[^;]*);", page, re.MULTILINE)
    recipe = [line.replace("nev_20260101", f"nev_{old:%Y%m%d}") for line in recipe]
    assert len(recipe) == 2
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(1, old)])
        await worker.settles(1)
        reader, owner = await asyncpg.connect(database.url), await asyncpg.connect(database.url)
        await reader.execute("BEGIN; SELECT count(*) FROM iov.nev")

        async def taken_away() -> None:
            for statement in recipe:
                await owner.execute(statement)

        taking = asyncio.create_task(taken_away())
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1"

        async def waiting() -> bool:
            return bool(await database.one(waits, owner.get_server_pid()))

        await until(waiting, "DETACH behind the reader")
        await publish_many(broker.url, [sample(n) for n in range(10, 20)])
        await worker.settles(11)
        assert not taking.done()
        await reader.close()
        await taking
        await owner.close()
        await publish_many(broker.url, [sample(30)])
        await worker.settles(12)
    assert await database.count() == 11
    assert await database.reasons() == []


async def test_no_reader_can_hold_up_a_partition(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    late = datetime.now(UTC) - timedelta(days=9)
    url = await database.user("iov_just_reads", "iov_reader")
    reader = await asyncpg.connect(url)
    await reader.execute(f"SELECT pg_advisory_lock(hashtextextended('iov.nev_{late:%Y%m%d}', 0))")
    async with writing(database, catalogue, commit_timeout_s=5) as writer:
        written = await writer.write(batch_of(catalogue, [delivery(sample(1, late))]))
    assert written.stored == {"nev": 1}
    await reader.close()
    await may_not(
        url, "DO $$ BEGIN LOCK TABLE iov.mutex; END $$", "SELECT FROM iov.mutex FOR UPDATE"
    )


async def test_days_made_on_demand_have_a_budget(
    database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.store.days.PARTITIONS_PER_MINUTE", 3)
    now = datetime.now(UTC)
    late = [sample(n, now - timedelta(days=5 + n)) for n in range(6)]
    async with writing(database, catalogue) as writer:
        written = await writer.write(batch_of(catalogue, [delivery(late)]))
        assert (written.stored["nev"], written.refused["nev"]) == (3, 3)
        # Of another device those days are stored, and nobody is not ready for it.
        others = batch_of(catalogue, [delivery(late, "iov/v1/V2/nev")])
        assert (await writer.write(others)).stored == {"nev": 6}
        assert writer.closed is None
    assert await database.reasons() == ["refused_by_store"] * 3


async def test_migrate_says_for_whom_it_waits_and_not_for_ever(
    database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["ingest.store.migrate"], "_LOCK_WAIT_S", 2)
    url = await database.user("iov_just_reads", "iov_reader")
    reader = await asyncpg.connect(url, server_settings={"application_name": "a dashboard"})
    await reader.execute(f"SELECT pg_advisory_lock({0x696F_7669})")
    told: list[str] = []
    with pytest.raises(Unavailable, match="user iov_just_reads \\(a dashboard\\)"):
        await migrate(
            load(environ={"IOV_DATABASE_URL": database.url}), catalogue, waiting=told.append
        )
    assert told
    await reader.close()


async def test_workers_that_store_the_same_samples_do_not_wait_in_a_circle(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    chance, at = Random(1), datetime.now(UTC)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"

    async def store(seed: int) -> None:
        order = Random(seed)
        async with writing(database, catalogue) as writer:
            for batch in batches:
                mixed = order.sample(batch, len(batch))
                await writer.write(batch_of(catalogue, mixed))

    batches = [
        [
            delivery(body, f"iov/v1/V{chance.randrange(20)}/{stream}")
            for number in range(60)
            for stream, body in (
                ("nev", sample(number + 100 * first, at)),
                ("alarm", {"ts": at.isoformat(), "seq": number + 100 * first, "max_level": 1}),
            )
        ]
        for first in range(15)
    ]
    async with asyncio.TaskGroup() as tasks:
        for seed in range(3):
            tasks.create_task(store(seed))
    await database.execute("SELECT pg_stat_force_next_flush()")
    assert await database.one(deadlocks) == 0
    assert await database.count() == 15 * 60
