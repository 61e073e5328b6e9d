"""An operator's own triggers, rules and locks hold up what they are about, and nothing else."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
import structlog

from ingest.config import load
from ingest.errors import TooMuch, Unavailable
from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue, load_catalogue
from ingest.schema.catalogue import default_directory
from ingest.store import migrate
from ingest.store.devices import DeviceIds
from ingest.store.part import Part
from tests.integration.test_nothing_stops_it import raising
from tests.integration.test_store import writing
from tests.support import (
    OwnDatabase,
    batch_of,
    delivery,
    publish_many,
    sample,
    working,
)

ANSWERING_S = 20
connect_module: Any = sys.modules["ingest.store.connect"]


@pytest.mark.parametrize(
    "state",
    [
        "23514", "42501", "42703", "55000", "53400", "58030", "08000", "28000", "3D000", "25006",
        "54000", "P0004",
    ],
)  # fmt: skip
async def test_a_trigger_may_raise_whatever_it_likes_for_one_row(
    state: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(raising("new.soc_pct = 66", state=state))
    samples = [sample(n, soc_pct=66 if n == 3 else 7) for n in range(20)]
    async with writing(database, catalogue) as writer, asyncio.timeout(ANSWERING_S):
        written = await writer.write(batch_of(catalogue, [delivery(samples)]))
        assert (written.stored["nev"], written.refused["nev"]) == (19, 1)
    assert await database.reasons() == ["refused_by_store"]


async def test_a_row_that_a_policy_does_not_let_in_holds_up_no_other(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    url = await database.user("iov_works", "iov_worker")
    await database.execute(
        "ALTER TABLE iov.nev ENABLE ROW LEVEL SECURITY; CREATE POLICY seen ON iov.nev FOR SELECT "
        "USING (true); CREATE POLICY let_in ON iov.nev FOR INSERT WITH CHECK (soc_pct <> 66)"
    )
    samples = [sample(n, soc_pct=66 if n == 3 else 7) for n in range(20)]
    async with writing(database, catalogue, url) as writer, asyncio.timeout(ANSWERING_S):
        written = await writer.write(batch_of(catalogue, [delivery(samples)]))
        assert (written.stored["nev"], written.refused["nev"]) == (19, 1)
    assert await database.reasons() == ["refused_by_store"]


async def test_a_row_that_takes_too_long_alone_waits_for_others(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_module, "STATEMENT_TIMEOUT_S", 1.0)
    await database.execute(_SLOW.format(seconds=100, which="new.soc_pct = 66"))
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(0, soc_pct=66)])
        await until(lambda: "57014" in str(worker.service.problems()), "its words at /readyz")
        await publish_many(broker.url, [sample(n) for n in range(1, 5)])
        await worker.settles(5)
    assert await database.reasons() == ["refused_by_store"]
    assert await database.count() == 4


_SLOW = (
    "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM pg_sleep({seconds}); RETURN new; END $$; "
    "CREATE TRIGGER slow BEFORE INSERT ON iov.nev FOR EACH ROW "
    "WHEN ({which}) EXECUTE FUNCTION public.slow()"
)
_REFUSE = """
CREATE FUNCTION public.refuse_device() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN {then} END $$;
CREATE TRIGGER refuse_device BEFORE INSERT ON iov.device
FOR EACH ROW WHEN (new.device = 'BAD') EXECUTE FUNCTION public.refuse_device()
"""


@pytest.mark.parametrize(
    "rule",
    [
        "ALTER TABLE iov.device ADD CHECK (device <> 'BAD')",
        _REFUSE.format(then="RAISE EXCEPTION 'no vehicle of ours';"),
        _REFUSE.format(then="RETURN NULL;"),
    ],
)
async def test_a_device_that_cannot_be_registered_holds_up_no_other(
    rule: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(rule)
    said = {
        "ts": datetime.now(UTC).isoformat(),
        "seq": 1,
        "event": "login",
        "vin": "LSVAA4182E2184847",
    }
    batch = batch_of(
        catalogue,
        [
            delivery(sample(1), "iov/v1/BAD/nev"),
            delivery(said, "iov/v1/BAD/session"),
            *[delivery(sample(n), f"iov/v1/GOOD{n % 3}/nev") for n in range(50)],
        ],
    )
    async with writing(database, catalogue) as writer, asyncio.timeout(ANSWERING_S):
        written = await writer.write(batch)
        assert written.stored == {"nev": 50}
        assert written.refused.total() == 2
        # And again, now that the others are known.
        written = await writer.write(batch_of(catalogue, [delivery(sample(2), "iov/v1/GOOD1/nev")]))
        assert written.stored["nev"] + written.duplicate["nev"] == 1
    letters = await database.all("SELECT device, detail FROM iov.dead_letter")
    assert all(row["detail"].startswith("its device: ") for row in letters)
    assert [row["device"] for row in letters] == ["BAD", "BAD"]


async def locking(database: OwnDatabase, table: str) -> asyncpg.Connection:
    """Hold the lock that CREATE INDEX holds, until the connection is closed."""
    connection = await asyncpg.connect(database.url)
    await connection.execute(f"BEGIN; LOCK TABLE iov.{table} IN SHARE MODE")
    return connection


async def test_a_lock_on_a_day_that_is_past_holds_up_that_day_only(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    """CREATE INDEX, VACUUM FULL or an archiving job hold one."""
    past = datetime.now(UTC) - timedelta(days=10)
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [delivery(sample(1, past))]))
        other = await locking(database, f"nev_{past:%Y%m%d}")
        today = [sample(n) for n in range(50)]
        batch = batch_of(catalogue, [delivery(today), delivery(sample(2, past)), delivery(b"junk")])
        async with asyncio.timeout(ANSWERING_S * 3):
            written = await writer.write(batch)
        assert (written.stored["nev"], written.refused["nev"]) == (50, 1)
        assert "55P03" in str(writer.closed)
        assert await database.reasons() == ["bad_json", "refused_by_store"]
        await other.close()


async def test_today_that_is_locked_waits_and_becomes_no_dead_letter(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    now, past = datetime.now(UTC), datetime.now(UTC) - timedelta(days=10)
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [delivery([sample(1, now), sample(1, past)])]))
        other = await locking(database, f"nev_{now:%Y%m%d}")
        batch = batch_of(catalogue, [delivery([sample(2, now), sample(2, past)])])
        writes = asyncio.create_task(writer.write(batch))
        await until(
            lambda: "55P03" in str(writer.connection.problem), "a lock that was not to be had"
        )
        assert re.search(
            r"process \d+ \(unnamed\) has locked iov\.nev", str(writer.connection.problem)
        )
        await other.close()
        written = await writes
    assert written.stored == {"nev": 2}
    assert await database.reasons() == []


async def test_a_table_that_is_locked_waits_with_its_late_samples_too(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    past = datetime.now(UTC) - timedelta(days=10)
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [delivery(sample(1, past))]))
        other = await locking(database, "nev")
        batch = batch_of(catalogue, [delivery(sample(2, past))])
        writes = asyncio.create_task(writer.write(batch))
        await until(
            lambda: "55P03" in str(writer.connection.problem), "a lock that was not to be had"
        )
        assert re.search(
            r"process \d+ \(unnamed\) has locked iov\.nev", str(writer.connection.problem)
        )
        await other.close()
        assert (await writes).stored == {"nev": 1}
        assert writer.closed is None


@pytest.mark.parametrize("which", ["true", "new.soc_pct = 66"])
async def test_what_takes_longer_than_a_statement_may_is_halved_until_it_is_alone(
    which: str, database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_module, "STATEMENT_TIMEOUT_S", 1.0)
    seconds = "0.02" if which == "true" else "100"
    await database.execute(_SLOW.format(seconds=seconds, which=which))
    # The first of all, so that others show only later that it is its own fault.
    samples = [sample(n, soc_pct=66 if n == 0 else 7) for n in range(100 if which == "true" else 8)]
    async with writing(database, catalogue) as writer, asyncio.timeout(ANSWERING_S * 8):
        written = await writer.write(batch_of(catalogue, [delivery(samples)]))
    slow = 0 if which == "true" else 1
    assert (written.stored["nev"], written.refused["nev"]) == (len(samples) - slow, slow)


async def test_a_silent_server_says_nothing_about_a_row(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    """A connection that we cut is no word of the server's, however often and beside whatever."""
    (row,) = batch_of(catalogue, [delivery(sample(1))]).rows["nev"]
    part = Part({"nev": [row]}, [], [])
    async with writing(database, catalogue) as writer:
        for failure in (
            Unavailable("silent"),
            TooMuch("57014"),
            Unavailable("silent"),
            TooMuch("57014"),
        ):
            writer._refuse_if_hopeless(part, failure)
            writer._refuse_if_hopeless(part, Unavailable("silent"))
            assert part.hopeless is None
        writer._refuse_if_hopeless(part, TooMuch("57014"))
    assert part.hopeless is not None


@pytest.mark.parametrize("state", ["40P01", "53100", "25006", "57014"])
async def test_trouble_of_a_moment_while_a_day_is_made_refuses_nothing(
    state: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(
        "CREATE SEQUENCE public.calls; "
        "ALTER FUNCTION iov.make_partition(text, date) RENAME TO make_partition_in_time; "
        "CREATE FUNCTION iov.make_partition(t text, d date) RETURNS boolean LANGUAGE plpgsql "
        "SECURITY DEFINER AS $$ BEGIN IF nextval('public.calls') < 3 THEN "
        f"RAISE EXCEPTION 'for a moment' USING ERRCODE = '{state}'; END IF; "
        "RETURN iov.make_partition_in_time(t, d); END $$"
    )
    past = datetime.now(UTC) - timedelta(days=10)
    async with writing(database, catalogue) as writer, asyncio.timeout(ANSWERING_S * 2):
        batch = batch_of(catalogue, [delivery([sample(n, past) for n in range(20)])])
        assert (await writer.write(batch)).stored == {"nev": 20}
        assert writer.closed is None
    assert await database.reasons() == []


async def test_a_partition_of_the_right_name_and_the_wrong_days_is_told(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    past = datetime.now(UTC) - timedelta(days=10)
    day, before = past.date(), past.date() - timedelta(days=40)
    await database.execute(
        f"CREATE TABLE iov.nev_{day:%Y%m%d} PARTITION OF iov.nev "
        f"FOR VALUES FROM ('{before}') TO ('{before + timedelta(days=1)}')"
    )
    async with writing(database, catalogue) as writer, asyncio.timeout(ANSWERING_S):
        batch = batch_of(catalogue, [delivery([sample(1), sample(2, past)])])
        written = await writer.write(batch)
    assert (written.stored["nev"], written.refused["nev"]) == (1, 1)


@pytest.mark.parametrize("table", ["dead_letter", "nev"])
async def test_a_warning_of_a_trigger_at_the_commit_is_no_doubt_about_it(
    table: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(
        "CREATE FUNCTION public.warn() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE WARNING 'looked at'; RETURN NULL; END $$; "
        f"CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON iov.{table} DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION public.warn()"
    )
    async with writing(database, catalogue) as writer, asyncio.timeout(ANSWERING_S):
        await writer.write(batch_of(catalogue, [delivery(sample(1)), delivery(b"junk")]))
    assert await database.reasons() == ["bad_json"]


async def test_what_is_deleted_before_the_first_batch_of_a_connection_is_noticed(
    database: OwnDatabase,
) -> None:
    await database.execute("INSERT INTO iov.device (device, first_seen_at) VALUES ('V1', now())")
    connection = await asyncpg.connect(database.url)
    ids = DeviceIds(connection)
    await ids.resolve({"V1"})
    await database.execute("DELETE FROM iov.device")
    assert not await ids.hold()
    await connection.close()


async def test_a_device_may_be_deleted_while_it_describes_itself(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    def says(seq: int) -> dict[str, Any]:
        said = {"ts": datetime.now(UTC).isoformat(), "seq": seq, "event": "login"}
        return said | {"vin": f"LSVAA4182E218484{seq}"}

    with structlog.testing.capture_logs() as logs:
        async with writing(database, catalogue) as writer:
            await writer.write(batch_of(catalogue, [delivery(says(1), "iov/v1/V1/session")]))
            deleter = await asyncpg.connect(database.url)
            transaction = deleter.transaction()
            await transaction.start()
            await deleter.execute("DELETE FROM iov.device WHERE device = 'V1'")
            batch = batch_of(catalogue, [delivery(says(2), "iov/v1/V1/session")])
            writes = asyncio.create_task(writer.write(batch))
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

            async def waiting() -> bool:
                return bool(await database.one(waits))

            async with asyncio.timeout(ANSWERING_S):
                await until(waiting, "a worker that waits for the row")
                await transaction.commit()
                assert (await writes).stored == {"session": 1}
            await deleter.close()
    # Neither was the victim of a deadlock.
    assert not [line for line in logs if "40P01" in str(line)]
    ids = "SELECT count(*) FROM iov.session JOIN iov.device USING (device_id) WHERE vin IS NOT NULL"
    assert await database.one(ids) == 1


@pytest.mark.parametrize("name", ["number", "first", "one", "broken", "the_row", "iov_place"])
async def test_a_field_may_have_any_name(name: str, database: OwnDatabase, tmp_path: Path) -> None:
    """The program that the server runs has names that no column can have."""
    shutil.copytree(default_directory(), tmp_path, dirs_exist_ok=True)
    schema = orjson.loads((tmp_path / "alarm.schema.json").read_bytes())
    whole = {"type": "integer", "minimum": 0, "maximum": 1_000, "description": "x"}
    schema |= {"title": "Own", "required": [], "properties": {name: whole, "even": whole}}
    schema.pop("allOf", None)
    (tmp_path / "own.schema.json").write_bytes(orjson.dumps(schema))
    own = load_catalogue(tmp_path)
    await migrate(load(environ={"IOV_DATABASE_URL": database.url}), own)
    await database.execute("ALTER TABLE iov.own ADD CHECK (even <> 66)")
    now = datetime.now(UTC).isoformat()
    samples = [{"ts": now, "seq": n, name: n, "even": 66 if n == 3 else 1} for n in range(10)]
    async with writing(database, own) as writer, asyncio.timeout(ANSWERING_S):
        written = await writer.write(batch_of(own, [delivery(samples, "iov/v1/V1/own")]))
        assert (written.stored["own"], written.refused["own"]) == (9, 1)
    assert orjson.loads(await database.one("SELECT payload FROM iov.dead_letter"))["seq"] == 3
