"""What the store promises, against a real PostgreSQL: once, all of it, and only what is good."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import asyncpg
import orjson
import pytest

from ingest.batch import Batch
from ingest.check import Checker
from ingest.config import Settings, load
from ingest.errors import NotReady, Unavailable
from ingest.lab.embedded import Postgres
from ingest.lab.proxy import Proxy
from ingest.lab.until import until
from ingest.model import Delivery, Row
from ingest.schema import Catalogue
from ingest.schema.stream import stream
from ingest.store import Writer, connect, expect_migrated, migrate
from ingest.store.devices import DeviceIds
from ingest.store.partitions import make_ahead
from tests.support import (
    OwnDatabase,
    bad_sample,
    batch_of,
    delivery,
    may_not,
    plenty,
    sample,
    writer_to,
)


@asynccontextmanager
async def writing(
    database: OwnDatabase, catalogue: Catalogue, url: str | None = None, commit_timeout_s: int = 60
) -> AsyncIterator[Writer]:
    writer = writer_to(url or database.url, catalogue, commit_timeout_s)
    try:
        yield writer
    finally:
        await writer.connection.close()


async def test_a_batch_of_several_streams_and_dead_letters_is_one_transaction(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    batch = batch_of(
        catalogue,
        [
            delivery([sample(n) for n in range(5)]),
            delivery({"ts": datetime.now(UTC).isoformat(), "max_level": 1}, "iov/v1/V2/alarm"),
            delivery(b"junk"),
        ],
    )
    async with writing(database, catalogue) as writer:
        written = await writer.write(batch)
    assert written.stored == {"nev": 5, "alarm": 1}
    transactions = await database.all(
        "SELECT DISTINCT xmin::text FROM iov.nev UNION SELECT xmin::text FROM iov.alarm "
        "UNION SELECT xmin::text FROM iov.dead_letter"
    )
    assert len(transactions) == 1


async def test_of_equal_keys_the_first_one_wins_in_a_batch_and_between_batches(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    at = datetime.now(UTC)
    async with writing(database, catalogue) as writer:
        first = await writer.write(
            batch_of(catalogue, [delivery([sample(1, at, soc_pct=n) for n in (10, 20, 30)])])
        )
        again = await writer.write(
            batch_of(catalogue, [delivery([sample(1, at, soc_pct=40), sample(2, at)])])
        )
    assert (first.stored, first.duplicate) == ({"nev": 1}, {"nev": 2})
    assert (again.stored, again.duplicate) == ({"nev": 1}, {"nev": 1})
    assert await database.one("SELECT soc_pct FROM iov.nev WHERE seq = 1") == 10


async def test_after_duplicates_the_fast_way_is_taken_again(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with writing(database, catalogue) as writer:
        at = datetime.now(UTC)
        for _ in range(2):
            await writer.write(batch_of(catalogue, [delivery(sample(1, at))]))
        assert writer._careful
        await writer.write(batch_of(catalogue, [delivery(sample(2, at))]))
        assert not writer._careful


class Trusting(Checker):
    """A checker that lets through what only the store notices."""

    def check(self, one: Delivery) -> Any:
        checked = super().check(one)
        for outcome in checked.outcomes:
            if isinstance(outcome, Row):
                names = self._catalogue["nev"].layout.columns(outcome.present)
                place = names.index("sw_version")
                text = outcome.record[place]
                outcome.record[place] = {"nul": "a\0b", "type": 7}.get(text, text)
        return checked


@pytest.mark.parametrize("bad", [{0}, {999}, {17, 18, 500}])
@pytest.mark.parametrize("kind", ["nul", "type"])
async def test_one_refused_row_in_a_thousand_is_found_and_the_rest_is_stored(
    bad: set[int], kind: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    checker, batch = Trusting.of(catalogue, Settings()), Batch(0.0)
    one = delivery([sample(n, sw_version=kind if n in bad else "ok") for n in range(1000)])
    batch.add(one, checker.check(one), plenty(), 0.0)
    async with writing(database, catalogue) as writer:
        written = await writer.write(batch)
        assert written.stored == {"nev": 1000 - len(bad)}
        assert written.refused == {"nev": len(bad)}
    letters = await database.all("SELECT reason, detail, payload FROM iov.dead_letter")
    assert {orjson.loads(letter["payload"])["seq"] for letter in letters} == bad
    assert {letter["reason"] for letter in letters} == {"refused_by_store"}
    assert all(kind not in letter["detail"] for letter in letters)


async def test_late_samples_get_their_partitions_on_demand(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    now = datetime.now(UTC)
    days = [now - timedelta(days=n) for n in (0, 3, 29)]
    async with writing(database, catalogue) as writer:
        batch = batch_of(catalogue, [delivery(sample(1, day)) for day in days])
        assert (await writer.write(batch)).stored == {"nev": 3}
    tables = await database.all("SELECT DISTINCT tableoid::regclass::text FROM iov.nev")
    assert {t[0] for t in tables} == {f"iov.nev_{day:%Y%m%d}" for day in days}


async def test_partitions_are_made_ahead_once(database: OwnDatabase, catalogue: Catalogue) -> None:
    connection = await asyncpg.connect(database.url)
    today = datetime.now(UTC).date()
    assert await make_ahead(connection, catalogue, today) == 5 * len(catalogue)
    assert await make_ahead(connection, catalogue, today) == 0
    await connection.close()


async def test_many_workers_may_make_the_same_partition_at_once(database: OwnDatabase) -> None:
    connections = [await asyncpg.connect(database.url) for _ in range(8)]
    day = datetime(2026, 1, 1, tzinfo=UTC).date()
    made = await asyncio.gather(
        *(c.fetchval("SELECT iov.make_partition('nev', $1)", day) for c in connections)
    )
    assert sorted(made) == [False] * 7 + [True]
    for connection in connections:
        await connection.close()


async def test_a_partition_is_made_while_a_reader_and_a_writer_hold_the_table(
    database: OwnDatabase,
) -> None:
    reader, other = await asyncpg.connect(database.url), await asyncpg.connect(database.url)
    day = datetime(2026, 1, 1, tzinfo=UTC).date()
    async with reader.transaction():
        await reader.execute("SELECT count(*) FROM iov.nev")
        await reader.execute("LOCK TABLE iov.nev IN ROW EXCLUSIVE MODE")
        async with asyncio.timeout(4):  # less than the function's lock_timeout
            assert await other.fetchval("SELECT iov.make_partition('nev', $1)", day)
    await reader.close()
    await other.close()


async def test_the_function_makes_partitions_of_streams_and_of_nothing_else(
    database: OwnDatabase,
) -> None:
    day = datetime(2026, 1, 1, tzinfo=UTC).date()
    for table in ("device", "no such", "pg_class", "nev; DROP TABLE iov.nev"):
        with pytest.raises(asyncpg.UndefinedTableError):
            await database.all("SELECT iov.make_partition($1, $2)", table, day)


async def test_a_day_whose_partition_was_detached_gets_another(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    at = datetime.now(UTC) - timedelta(days=9)
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [delivery(sample(1, at))]))
        await database.execute(f"ALTER TABLE iov.nev DETACH PARTITION iov.nev_{at:%Y%m%d}")
        await writer.write(batch_of(catalogue, [delivery(sample(2, at))]))
    assert await database.one("SELECT tableoid::regclass::text FROM iov.nev") == (
        f"iov.nev_{at:%Y%m%d}_again"
    )


def large(catalogue: Catalogue) -> Batch:
    """A batch of 32 megabytes, more than asyncpg and the sockets take at once."""
    pad = "p" * 8_000
    samples = [[sample(n + m, pad=pad) for n in range(25)] for m in range(0, 4_000, 25)]
    return batch_of(catalogue, [delivery(some) for some in samples])


@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_a_large_copy_that_is_cut_or_stalled_is_begun_again(
    fault: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with Proxy(None, None, f"{database.server.socket_directory}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database.name}?sslmode=disable"
        async with writing(database, catalogue, url, commit_timeout_s=1) as writer:
            await writer.connection.connect()
            await writer.write(batch_of(catalogue, [delivery(sample(9_999))]))
            proxy.stall(after_bytes=500_000)  # in the middle of the COPY
            writing_ = asyncio.create_task(writer.write(large(catalogue)))
            await until(lambda: proxy.stalled, "the COPY")
            if fault == "cut":
                proxy.cut()
            else:
                await until(lambda: writer.connection.problem, "the silence noticed")
            proxy.flow()
            written = await writing_
            assert sum(written.stored.values()) + sum(written.duplicate.values()) == 4_000
    assert await database.count() == 4_001


async def test_a_writer_that_is_cancelled_in_a_large_copy_ends_at_once(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with Proxy(None, None, f"{database.server.socket_directory}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database.name}?sslmode=disable"
        async with writing(database, catalogue, url) as writer:
            await writer.connection.connect()
            await writer.write(batch_of(catalogue, [delivery(sample(9_999))]))
            proxy.stall(after_bytes=500_000)
            writing_ = asyncio.create_task(writer.write(large(catalogue)))
            await until(lambda: proxy.stalled, "the COPY")
            writer.connection.cut()
            writing_.cancel()
            async with asyncio.timeout(5):
                await asyncio.wait([writing_])
            assert writing_.cancelled()
            proxy.flow()


async def test_the_right_to_temporary_tables_is_looked_for_before_it_is_needed(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    url = await database.user("plain_worker", "iov_worker")
    await database.execute(f"REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC")
    connection = await asyncpg.connect(url)
    with pytest.raises(NotReady, match="GRANT TEMPORARY"):
        await expect_migrated(connection, catalogue)
    await connection.close()


async def test_while_a_batch_cannot_be_committed_connecting_does_not_make_ready(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with writing(database, catalogue) as writer:
        await database.execute("ALTER TABLE iov.nev RENAME COLUMN soc_pct TO charge_pct")
        writing_ = asyncio.create_task(writer.write(batch_of(catalogue, [delivery(sample(1))])))
        await until(lambda: "soc_pct" in str(writer.connection.problem), "the reason")
        await writer.connection.connect()
        assert "soc_pct" in str(writer.connection.problem)
        await database.execute("ALTER TABLE iov.nev RENAME COLUMN charge_pct TO soc_pct")
        await writing_
        assert writer.connection.problem is None


@pytest.mark.parametrize("query", ["ssl_min_protocol_version=hunter2", "sslnegotiation=hunter2"])
async def test_a_url_the_driver_cannot_read_is_not_printed(query: str) -> None:
    """The rest of it is judged before, see `test_unreachable.py`."""
    url = f"postgresql://u@127.0.0.1/db?sslmode=require&{query}"
    with pytest.raises(NotReady) as caught:
        await connect(load(environ={"IOV_DATABASE_URL": url}).database, "test")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_device_ids_are_given_once_and_only_for_accepted_samples(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with writing(database, catalogue) as writer:
        await writer.write(
            batch_of(
                catalogue,
                [
                    delivery([sample(1), sample(2)], "iov/v1/A/nev"),
                    delivery(bad_sample(3), "iov/v1/B/nev"),
                ],
            )
        )
        await writer.write(batch_of(catalogue, [delivery(sample(4), "iov/v1/A/nev")]))
    rows = await database.all("SELECT device, first_seen_at FROM iov.device")
    assert [row["device"] for row in rows] == ["A"]
    assert await database.one("SELECT count(DISTINCT device_id) FROM iov.nev") == 1


async def test_the_cache_of_devices_is_bounded_and_still_right(database: OwnDatabase) -> None:
    connection = await asyncpg.connect(database.url)
    ids = DeviceIds(connection, most=10)
    names = {f"d{n}" for n in range(25)}
    first = await ids.resolve(names)
    assert len(ids._ids) == 10
    assert await ids.resolve(names) == first
    assert len(set(first.values())) == 25
    # What was there already uses up no numbers.
    assert await database.one("SELECT max(device_id) FROM iov.device") == 25
    await connection.close()


async def test_a_batch_does_not_go_through_every_device_there_is(database: OwnDatabase) -> None:
    class Known(dict[str, int]):
        def __iter__(self) -> Iterator[str]:
            yield from map(self.pop, "any")  # a KeyError for who goes on from here

        def keys(self) -> Any:
            return iter(self)

    connection = await asyncpg.connect(database.url)
    ids = DeviceIds(connection)
    wanted = await ids.resolve({"d1", "d2"})
    ids._ids = Known(wanted)
    assert await ids.resolve({"d1", "d2"}) == wanted
    assert len(await ids.resolve({"d2", "d3"})) == 2
    await connection.close()


@pytest.fixture
async def empty(pg: Postgres) -> AsyncIterator[OwnDatabase]:
    """A database that was never migrated."""
    admin = await asyncpg.connect(pg.url)
    name = f"empty_{os.urandom(4).hex()}"
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield OwnDatabase(pg, name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


def extended(catalogue: Catalogue, **fields: Any) -> Mapping[str, Any]:
    """The catalogue after somebody has edited the `nev` schema."""
    schema = catalogue["nev"].schema
    return {
        **catalogue,
        "nev": stream("nev", schema | {"properties": schema["properties"] | fields}),
    }


async def test_migrate_is_safe_when_several_start_at_once(
    empty: OwnDatabase, catalogue: Catalogue
) -> None:
    configured = load(environ={"IOV_DATABASE_URL": empty.url})
    applied = await asyncio.gather(*(migrate(configured, catalogue) for _ in range(4)))
    bases = len(list(files("ingest.store").joinpath("sql").iterdir()))
    assert sorted(len(steps) for steps in applied) == [0, 0, 0, bases + len(catalogue)]


async def test_a_dry_run_changes_nothing_and_shows_what_would(
    empty: OwnDatabase, catalogue: Catalogue
) -> None:
    configured = load(environ={"IOV_DATABASE_URL": empty.url})
    steps = await migrate(configured, catalogue, dry_run=True)
    assert any("CREATE TABLE iov" in statement for step in steps for statement in step.statements)
    assert await empty.one("SELECT to_regnamespace('iov')") is None


async def test_every_column_says_what_it_means(database: OwnDatabase) -> None:
    silent = await database.all(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = 'iov'::regnamespace AND c.relkind = 'p' AND a.attnum > 0 "
        "AND coalesce(col_description(c.oid, a.attnum), '') = ''"
    )
    assert silent == []
    # Partitions are what a client lists, so they say it as well, and so does the readers' view.
    await database.execute("SELECT iov.make_partition('nev', '2026-01-02')")
    assert await database.one("SELECT obj_description('iov.nev_20260102'::regclass)") == (
        "iov.nev, samples of 2026-01-02 (UTC)."
    )
    for name in ("nev_20260102", "vehicle"):
        silent = await database.all(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('iov.' || $1) "
            "AND attnum > 0 AND coalesce(col_description(attrelid, attnum), '') = ''",
            name,
        )
        assert silent == []


async def test_an_added_field_becomes_an_added_column(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    configured = load(environ={"IOV_DATABASE_URL": database.url})
    more = extended(catalogue, heater_w={"type": ["number", "null"], "title": "Heater"})
    assert [s.what for s in await migrate(configured, more)] == ["add column iov.nev.heater_w"]
    assert await migrate(configured, more) == []
    async with writing(database, more) as writer:
        await writer.write(batch_of(more, [delivery(sample(1, heater_w=900))]))
    assert await database.one("SELECT heater_w FROM iov.nev") == 900
    # A worker of before goes on: what it does not know goes to extra.
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [delivery(sample(2, heater_w=800))]))
    assert orjson.loads(await database.one("SELECT extra FROM iov.nev WHERE seq = 2")) == {
        "heater_w": 800
    }


async def test_a_changed_type_is_refused_and_nothing_is_changed(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    configured = load(environ={"IOV_DATABASE_URL": database.url})
    more = extended(
        catalogue, soc_pct={"type": ["string", "null"]}, heater_w={"type": ["number", "null"]}
    )
    with pytest.raises(
        NotReady, match=r"iov\.nev\.soc_pct is double precision and the schema wants"
    ):
        await migrate(configured, more)
    connection = await asyncpg.connect(database.url)
    with pytest.raises(NotReady, match="heater_w"):
        await expect_migrated(connection, more)
    await connection.close()


async def test_a_narrower_integer_fits_into_the_column_there_is(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    configured = load(environ={"IOV_DATABASE_URL": database.url})
    field = {"type": ["integer", "null"], "minimum": 0, "maximum": 9, "title": "Insulation"}
    steps = await migrate(configured, extended(catalogue, insulation_kohm=field))
    assert [step.what for step in steps] == ["comment on column iov.nev.insulation_kohm"]


async def test_a_worker_facing_an_older_database_says_what_to_run(
    database: OwnDatabase, catalogue: Catalogue, empty: OwnDatabase
) -> None:
    more = extended(catalogue, heater_w={"type": ["number", "null"]})
    for where, streams in ((database, more), (empty, catalogue)):
        async with writing(where, streams) as writer:
            await writer.connection.connect()
            assert "run iov-ingest migrate" in str(writer.connection.problem)


async def test_a_connection_that_is_cut_between_two_steps_of_a_statement_is_away(
    database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg has prepared it, and finds nothing to execute it with."""
    original = asyncpg.Connection._get_statement
    async with writing(database, catalogue) as writer:
        held = writer.connection

        async def and_cut(connection: Any, *args: Any, **how: Any) -> Any:
            statement = await original(connection, *args, **how)
            held.cut()
            return statement

        async with held.use():
            pass
        monkeypatch.setattr(asyncpg.Connection, "_get_statement", and_cut)
        with pytest.raises(Unavailable):
            async with held.use() as (connection, _):
                await connection.fetchval("SELECT $1::integer", 1)
        monkeypatch.undo()
        assert (await writer.write(batch_of(catalogue, [delivery(sample(1))]))).stored == {"nev": 1}


async def test_a_bug_in_a_use_is_not_taken_for_an_outage(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with writing(database, catalogue) as writer:
        with pytest.raises(AttributeError):
            async with writer.connection.use() as (connection, _):
                connection.no_such_thing  # noqa: B018  it raises


async def test_the_workers_role_owns_nothing_and_can_do_its_work(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    url = await database.user("plain_worker", "iov_worker")
    writer = writer_to(url, catalogue)
    at = datetime.now(UTC) - timedelta(days=9)
    for _ in range(2):  # the second time all are duplicates, through staging
        batch = batch_of(catalogue, [delivery([sample(1, at), sample(2, at)]), delivery(b"junk")])
        await writer.write(batch)
    await writer.connection.close()
    assert await database.count() == 2
    await may_not(
        url,
        "DROP TABLE iov.nev",
        "SELECT vin FROM iov.device",
        "DELETE FROM iov.nev",
        "CREATE TABLE iov.mine (a int)",
    )


async def test_a_missing_right_is_named(database: OwnDatabase, catalogue: Catalogue) -> None:
    url = await database.user("nobody2")
    await database.execute("GRANT USAGE ON SCHEMA iov TO nobody2")
    connection = await asyncpg.connect(url)
    with pytest.raises(NotReady, match=r"no right to insert into iov\.\w+: grant iov_worker"):
        await expect_migrated(connection, catalogue)
    await connection.close()
