"""Dead letters come back: what is mended is stored, the rest stays as it was, nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from ingest.batch import Batch, Written
from ingest.check import Checker
from ingest.commands.dead_letters.replay import (
    PATIENCE_S,
    Judge,
    LetterReplay,
    Outcome,
    ReplayAccount,
)
from ingest.config import load
from ingest.errors import NotReady, TooMuch, Unavailable
from ingest.model import Delivery
from ingest.schema import Catalogue, default_directory, digest_of, load_catalogue
from ingest.store import Writer, dead_letters, migrate
from ingest.store.connect import connected
from ingest.store.dead_letters import Which
from ingest.store.part import Part
from tests.commands import iov_ingest
from tests.frames import AT, TIME, frame
from tests.support import OwnDatabase, delivery, may_not, plenty, sample, writer_to

KEY = "k" * 32
ALL = Which()
WIDER: dict[str, Any] = dict.fromkeys(
    ("max_values", "max_sample_values", "max_payload_bytes"), "1000000"
)


@contextmanager
def no_bar(_: int) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


async def kept(
    database: OwnDatabase, deliveries: list[Delivery], **settings: str
) -> list[asyncpg.Record]:
    """Have a worker of old keep deliveries, which it rejects; return their letters.

    It does not set a field aside: one bad field costs the sample.
    """
    names = {f"IOV_{name.upper()}": value for name, value in settings.items()}
    old = load(environ={"IOV_REFUSED_FIELDS": "reject"} | names)
    catalogue = load_catalogue(old.schema_dir, digest_of(old.digest_key_file))
    checker, batch = Checker.of(catalogue, old), Batch(0.0)
    for one in deliveries:
        batch.add(one, checker.check(one), plenty(), 0.0)
    writer = writer_to(database.url, catalogue)
    await writer.write(batch)
    await writer.connection.close()
    return await letters(database)


async def letters(database: OwnDatabase) -> list[asyncpg.Record]:
    return await database.all("SELECT * FROM iov.dead_letter ORDER BY id")


@asynccontextmanager
async def replaying(url: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(load(environ={"IOV_DATABASE_URL": url}).database, "replay") as connection:
        await dead_letters.expect_letters(connection, may_read=True, may_change=True)
        await dead_letters.change_alone(connection)
        yield connection


async def replay(
    database: OwnDatabase,
    which: Which = ALL,
    *,
    most_failed: float = 1.0,
    dry_run: bool = False,
    url: str | None = None,
    patience_s: float = PATIENCE_S,
    **settings: str,
) -> ReplayAccount:
    """Replay as the command does, with the settings of now."""
    names = {f"IOV_{name.upper()}": value for name, value in settings.items()}
    # The tests' database has no fsync.
    names |= {"IOV_DATABASE_URL": url or database.url, "IOV_UNSAFE_DATABASE": "accept"}
    now = load(environ=names)
    judge = Judge.of(now.schema_dir, now)
    async with replaying(url or database.url) as connection:
        again = LetterReplay(connection, which)
        if dry_run:
            return await again.dry_run(judge, no_bar)
        return await again.run(now, judge, most_failed, no_bar, patience_s)


def one_bad_field(seq: int, at: datetime | None = None) -> dict[str, Any]:
    return sample(seq, at, soc_pct=-50)


async def test_a_letter_whose_cause_is_mended_becomes_its_row(database: OwnDatabase) -> None:
    [letter] = await kept(database, [delivery(one_bad_field(1))])
    account = await replay(database)
    assert account.outcomes == {Outcome("nev", "schema", "stored"): 1}
    assert (account.letters, account.stored, account.duplicates) == (1, 1, 0)
    assert not await letters(database)
    [row] = await database.all("SELECT * FROM iov.nev")
    assert row["speed_kmh"] == 46.8
    assert row["received_at"] == letter["received_at"]


async def test_it_is_deleted_in_the_transaction_that_stores_its_samples(
    database: OwnDatabase,
) -> None:
    await kept(database, [delivery(one_bad_field(n)) for n in range(3)])
    await database.execute("""
        CREATE TABLE public.deleted AS SELECT 0::bigint AS id, ''::text AS xmin_ WITH NO DATA;
        CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.deleted VALUES (OLD.id, pg_current_xact_id()::xid::text);
            RETURN OLD;
        END $$;
        CREATE TRIGGER note AFTER DELETE ON iov.dead_letter
            FOR EACH ROW EXECUTE FUNCTION public.note();
    """)
    await replay(database)
    deleted = await database.all("SELECT DISTINCT xmin_ FROM public.deleted")
    assert deleted == await database.all("SELECT DISTINCT xmin::text AS xmin_ FROM iov.nev")
    assert await database.count() == 3


async def test_what_is_rejected_again_stays_as_it_is_with_the_reason_of_now(
    database: OwnDatabase,
) -> None:
    [before] = await kept(database, [delivery(sample(1, speed_kmh="fast", soc_pct="x", gear=7))])
    account = await replay(database)
    assert account.failed == 1
    [after] = await letters(database)
    assert dict(after) == dict(before) | {
        "attempts": 1,
        "replayed_at": after["replayed_at"],
        "detail": after["detail"],
    }
    assert after["detail"] != before["detail"]
    await replay(database)
    assert (await letters(database))[0]["attempts"] == 2


async def test_its_age_is_judged_by_the_time_of_its_arrival(database: OwnDatabase) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=200)
    old = sample(1, long_ago - timedelta(days=40))
    await kept(
        database, [delivery(one_bad_field(2, long_ago), at=long_ago), delivery(old, at=long_ago)]
    )
    account = await replay(database)
    assert account.outcomes == {
        Outcome("nev", "schema", "stored"): 1,
        Outcome("nev", "too_old", "too_old"): 1,
    }
    assert (await replay(database, max_age_days="60")).stored == 1


@pytest.mark.parametrize("keyed", [True, False])
async def test_a_digest_is_not_digested_again_and_the_key_is_that_of_the_live_way(
    keyed: bool,  # noqa: FBT001  a parameter
    database: OwnDatabase,
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    settings: dict[str, Any] = {"digest_key_file": str(key)} if keyed else {}
    at = datetime.now(UTC).isoformat()
    login = {"ts": at, "event": "login", "iccid": "89860012345678901234", "session_seq": -9}
    trip = {
        "ts": at,
        "driver_hash": "D-4711",
        "gross_weight_kg": -1,
        "trailers": [{"vin": "WDB9340321"}],
    }
    both = [delivery(login, "iov/v1/V1/session"), delivery(trip, "iov/v1/V1/truck")]
    kept_letters = await kept(database, both, **settings)
    assert len(kept_letters) == 2
    assert b"4711" not in kept_letters[1]["payload"]
    await replay(database, **settings)
    assert not await letters(database)
    # Sent again, it is the sample that is there: the same key, and the same digests.
    now = load(environ={f"IOV_{name.upper()}": value for name, value in settings.items()})
    catalogue = load_catalogue(now.schema_dir, digest_of(now.digest_key_file))
    checker, batch = Checker.of(catalogue, now), Batch(0.0)
    for one in both:
        batch.add(one, checker.check(one), plenty(), 0.0)
    digests = [await database.one("SELECT iccid FROM iov.session")]
    digests.append(await database.one("SELECT driver_hash FROM iov.truck"))
    vins = await database.one("SELECT trailers->0->>'vin' FROM iov.truck")
    digest = digest_of(now.digest_key_file)
    assert digests == [digest("89860012345678901234"), digest("D-4711")]
    assert vins == digest("WDB9340321")
    writer = writer_to(database.url, catalogue)
    written = await writer.write(batch)
    await writer.connection.close()
    assert written.duplicate == {"session": 1, "truck": 1}


async def test_of_a_message_that_could_not_be_split_each_bad_sample_becomes_a_letter(
    database: OwnDatabase,
) -> None:
    good, bad = sample(1), sample(2, speed_kmh="fast", soc_pct="x", gear=7)
    many = [good, bad, sample(3)]
    [whole] = await kept(database, [delivery(many)], max_samples="2")
    assert whole["reason"] == "too_large"
    account = await replay(database)
    assert account.outcomes == {Outcome("nev", "too_large", "stored in part"): 1}
    assert await database.count() == 2
    [letter] = await letters(database)
    assert (letter["reason"], letter["id"] != whole["id"]) == ("schema", True)
    assert letter["attempts"] == 1
    assert orjson.loads(letter["payload"]) == bad
    assert letter["received_at"] == whole["received_at"]


async def test_a_letter_whose_samples_the_store_divides_goes_with_the_last_of_them(
    database: OwnDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept(database, [delivery([sample(n) for n in range(6)])], max_samples="2")
    write_part = Writer._write_part
    seen: list[tuple[int, int]] = []

    async def narrow(
        self: Writer, connection: asyncpg.Connection, ids_of: Any, ids: Any, part: Part, *args: Any,
        **how: Any,
    ) -> Written | None:  # fmt: skip
        if part.size > 2:
            raise TooMuch("54000")
        written = await write_part(self, connection, ids_of, ids, part, *args, **how)
        rows = await connection.fetchval("SELECT count(*) FROM iov.nev")
        seen.append((rows, await connection.fetchval("SELECT count(*) FROM iov.dead_letter")))
        return written

    monkeypatch.setattr(Writer, "_write_part", narrow)
    await replay(database)
    *before, last = seen
    assert last == (6, 0)
    assert before
    assert {letters for _, letters in before} == {1}


async def test_a_sample_of_a_frame_comes_back_into_its_stream(database: OwnDatabase) -> None:
    vehicle = bytes.fromhex("010301 0000 00000001 0fa0 2710 52 01 0e 0000 0000")
    late = AT + timedelta(days=40)
    [letter] = await kept(
        database, [delivery(frame(TIME + b"\x01" + vehicle), "iov/v1/V1/gbt32960", at=late)]
    )
    assert (letter["stream"], letter["reason"]) == ("nev", "too_old")
    assert (await replay(database, max_age_days="60")).stored == 1
    assert await database.count() == 1


async def test_a_letter_without_its_content_stays_untouched(database: OwnDatabase) -> None:
    before = await kept(database, [delivery(b"\xff\xfe junk"), delivery(b"")])
    account = await replay(database)
    assert account.outcomes == {
        Outcome("nev", "bad_json", "its payload was not kept"): 2,
    }
    assert (account.failed, account.tried) == (0, 0)
    assert await letters(database) == before


async def test_what_was_kept_unchanged_stays_unchanged_under_other_settings(
    database: OwnDatabase,
) -> None:
    [before] = await kept(database, [delivery(b"{junk")], dead_letter_unreadable="payload")
    assert (await replay(database)).failed == 1
    [after] = await letters(database)
    assert after["payload"] == before["payload"] == b"{junk"


async def test_a_row_that_the_store_refuses_leaves_its_letter(database: OwnDatabase) -> None:
    await kept(database, [delivery(one_bad_field(n)) for n in range(4)])
    await database.execute("ALTER TABLE iov.nev ADD CHECK (seq <> 2)")
    account = await replay(database)
    assert account.outcomes == {
        Outcome("nev", "schema", "stored"): 3,
        Outcome("nev", "schema", "refused_by_store"): 1,
    }
    [letter] = await letters(database)
    assert (letter["reason"], letter["attempts"]) == ("refused_by_store", 1)
    assert orjson.loads(letter["payload"])["seq"] == 2


async def test_a_letter_that_may_not_be_changed_is_not_deleted_either(
    database: OwnDatabase,
) -> None:
    good, bad = sample(1), sample(2, speed_kmh="fast", soc_pct="x", gear=7)
    await kept(database, [delivery([good, bad, sample(3)]), delivery([good])], max_samples="2")
    await database.execute("ALTER TABLE iov.dead_letter ADD CHECK (reason <> 'schema') NOT VALID")
    before = await letters(database)
    await replay(database)
    assert await database.count() == 2
    assert [row["id"] for row in await letters(database)] == [before[0]["id"]]


async def test_too_many_failures_stop_it_and_leave_the_rest(database: OwnDatabase) -> None:
    bad = [delivery(sample(n, speed_kmh="x", soc_pct="x", gear=7)) for n in range(700)]
    await kept(database, bad)
    account = await replay(database, most_failed=0.5)
    assert (account.stopped, account.done, account.letters) == (True, 500, 700)
    assert await database.one("SELECT sum(attempts) FROM iov.dead_letter") == 500
    assert (await replay(database, Which(most_attempts=0))).letters == 200
    assert not (await replay(database, most_failed=1.0)).stopped


async def test_a_message_of_which_nothing_can_be_stored_stays_one_letter(
    database: OwnDatabase,
) -> None:
    """Otherwise one message of a thousand numbers becomes a thousand letters."""
    [whole] = await kept(database, [delivery([1] * 900, "iov/v1/V1/nev")], max_samples="2")
    await replay(database)
    [letter] = await letters(database)
    assert (letter["id"], letter["reason"], letter["attempts"]) == (whole["id"], "bad_envelope", 1)
    assert letter["payload"] == whole["payload"]


async def test_a_batch_of_letters_is_no_larger_than_a_workers(
    database: OwnDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [delivery([sample(100 * n + m) for m in range(100)]) for n in range(6)]
    await kept(database, many, max_samples="2")
    write, sizes = Writer.write, list[int]()

    async def counted(self: Writer, batch: Batch, *args: Any) -> Written:
        sizes.append(batch.samples)
        return await write(self, batch, *args)

    monkeypatch.setattr(Writer, "write", counted)
    assert (await replay(database, batch_rows="200")).stored == 600
    assert sizes == [200, 200, 200]


async def test_a_sample_that_would_be_kept_as_its_size_only_keeps_its_letter(
    database: OwnDatabase,
) -> None:
    """A name with a backslash cannot be searched quickly, so a large sample is not kept whole."""
    large = {"ts": datetime.now(UTC).isoformat(), "seq": 2, 'a"b': 1, "pad": [0] * 3_000}
    [before] = await kept(database, [delivery([sample(1), large])], max_samples="1")
    account = await replay(database, max_sample_values="1000")
    assert account.outcomes == {Outcome("nev", "too_large", "too_large"): 1}
    [after] = await letters(database)
    assert (after["id"], after["payload"]) == (before["id"], before["payload"])
    assert (await replay(database)).stored == 2


async def test_in_a_raw_letter_what_looks_like_a_digest_is_none(
    database: OwnDatabase, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    theirs = "ab" * 32
    trip = {"ts": datetime.now(UTC).isoformat(), "driver_hash": theirs, "pad": [0] * 300_001}
    settings: dict[str, Any] = {"digest_key_file": str(key), "dead_letter_unreadable": "payload"}
    [letter] = await kept(database, [delivery(trip, "iov/v1/V1/truck")], **settings)
    assert (letter["reason"], letter["kept"]) == ("too_large", "raw")
    await replay(database, **WIDER, **settings)
    assert await database.one("SELECT driver_hash FROM iov.truck") == digest_of(key)(theirs)


async def test_a_raw_letter_that_can_be_read_now_is_kept_without_what_is_private(
    database: OwnDatabase,
) -> None:
    trip = {"ts": "2020-01-01T00:00:00Z", "driver_hash": "D-4711", "driver_name": "Somebody"}
    packed = {"pad": [0] * 300_001}
    [letter] = await kept(
        database, [delivery(trip | packed, "iov/v1/V1/truck")], dead_letter_unreadable="payload"
    )
    assert b"4711" in letter["payload"]
    await replay(database, **WIDER)
    [letter] = await letters(database)
    assert (letter["reason"], letter["kept"]) == ("too_old", "clean")
    assert b"4711" not in letter["payload"]
    assert b"Somebody" not in letter["payload"]


async def test_what_a_person_has_to_mend_ends_it_at_once(
    database: OwnDatabase, tmp_path: Path
) -> None:
    await kept(database, [delivery(one_bad_field(1))])
    directory = tmp_path / "schemas"
    shutil.copytree(default_directory(), directory)
    file = directory / "nev.schema.json"
    schema = orjson.loads(file.read_bytes())
    schema["properties"]["foo_pct"] = {"type": ["number", "null"], "title": "Foo"}
    file.write_bytes(orjson.dumps(schema))
    with pytest.raises(NotReady, match="no column foo_pct"):
        await replay(database, schema_dir=str(directory))
    await database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    with pytest.raises(NotReady, match="read-only"):
        await replay(database)


async def test_it_ends_if_nothing_can_be_committed_for_long(database: OwnDatabase) -> None:
    before = await kept(database, [delivery(one_bad_field(1))])
    await database.execute("""
        CREATE FUNCTION public.never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'not today';
        END $$;
        CREATE TRIGGER never BEFORE INSERT ON iov.nev
            FOR EACH ROW EXECUTE FUNCTION public.never();
    """)
    with pytest.raises(Unavailable, match="not today"):
        await replay(database, patience_s=0.5)
    assert await letters(database) == before


async def test_only_the_chosen_letters_are_replayed(database: OwnDatabase) -> None:
    old = datetime.now(UTC) - timedelta(hours=2)
    await kept(
        database,
        [
            delivery(one_bad_field(1), "iov/v1/A/nev"),
            delivery(one_bad_field(2), "iov/v1/B/nev"),
            delivery(one_bad_field(3, old), "iov/v1/A/nev", at=old),
            delivery(sample(4, soc_pct="x"), "iov/v1/A/what"),
        ],
    )
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    choices = [
        (Which(devices=["B"]), 1),
        (Which(until=an_hour_ago), 1),
        (Which(streams=["what"]), 1),
        (Which(reasons=["schema"], since=an_hour_ago), 1),
        (Which(), 1),
    ]
    for which, expected in choices:
        assert (await replay(database, which)).letters == expected
    assert await database.count() == 3


async def test_a_dry_run_changes_nothing(database: OwnDatabase) -> None:
    before = await kept(database, [delivery(one_bad_field(1)), delivery(b"{"), delivery(b"[]")])
    account = await replay(database, dry_run=True)
    assert account.outcomes == {
        Outcome("nev", "schema", "stored"): 1,
        Outcome("nev", "bad_json", "its payload was not kept"): 1,
        Outcome("nev", "bad_envelope", "bad_envelope"): 1,
    }
    assert await letters(database) == before
    assert await database.count() == 0


async def test_a_connection_that_breaks_on_the_way_loses_nothing(database: OwnDatabase) -> None:
    await kept(database, [delivery(one_bad_field(n)) for n in range(50)])
    blocker = await asyncpg.connect(database.url)
    lock = blocker.transaction()
    await lock.start()
    await blocker.execute("LOCK TABLE iov.dead_letter IN SHARE MODE")
    end_it = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
        "'iov-ingest dead-letters replay' AND wait_event_type = 'Lock'"
    )
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(replay(database))
        async with asyncio.timeout(10):
            while not await database.all(end_it):  # nobody reports that a session waits for a lock
                pass
        await lock.rollback()
    await blocker.close()
    assert await database.count() == 50
    assert not await letters(database)
    assert task.result().stored == 50


async def test_there_is_one_replay_at_a_time(database: OwnDatabase) -> None:
    async with replaying(database.url):
        with pytest.raises(Unavailable, match="another replay"):
            await replay(database)


async def test_a_role_of_its_own_may_do_it_and_no_other_may(database: OwnDatabase) -> None:
    await kept(database, [delivery(one_bad_field(1)), delivery(b"[]")])
    operator = await database.user("replays", "iov_dead_letters")
    reader = await database.user("just_reads", "iov_reader")
    worker = await database.user("just_works", "iov_worker")
    payload = "SELECT payload FROM iov.dead_letter"
    await may_not(reader, payload, "DELETE FROM iov.dead_letter")
    await may_not(worker, payload, "DELETE FROM iov.dead_letter")
    await may_not(
        operator, "SELECT vin FROM iov.device", "DELETE FROM iov.nev", "DROP TABLE iov.nev"
    )
    with pytest.raises(NotReady, match="grant iov_dead_letters"):
        await replay(database, url=worker)
    assert (await replay(database, url=operator)).stored == 1
    assert await database.one("SELECT attempts FROM iov.dead_letter") == 1


async def test_an_operator_sees_what_was_rejected_and_brings_it_back(
    database: OwnDatabase,
) -> None:
    [first, *_] = await kept(
        database,
        [delivery(one_bad_field(1)), delivery(b"[]"), delivery(b"[]", "iov/v1/[red]/nev")],
        # Kept as an attacker wrote them, and shown as they are.
    )
    settings = {"database_url": database.url, "unsafe_database": "accept"}
    listed = await iov_ingest("dead-letters", "list", "--json", **settings)
    assert listed.json["letters"] == 3
    assert {group["reason"]: group["letters"] for group in listed.json["groups"]} == {
        "schema": 1, "bad_envelope": 1, "bad_topic": 1,
    }  # fmt: skip
    assert listed.json["newest"][-1]["id"] == first["id"]
    shown = await iov_ingest("dead-letters", "show", str(first["id"]), **settings)
    assert "now          stored" in shown.out
    assert '"soc_pct": -50' in shown.out
    raw = await iov_ingest("dead-letters", "show", str(first["id"]), "--raw", **settings)
    assert raw.out.encode() == first["payload"]
    dry = await iov_ingest("dead-letters", "replay", "--dry-run", **settings)
    assert dry.status == 0
    assert ["nev", "schema", "→", "stored", "1"] in [line.split() for line in dry.out.splitlines()]
    replayed = await iov_ingest("dead-letters", "replay", "--json", **settings)
    assert {"stored": 1, "failed": 2, "letters": 3}.items() <= replayed.json.items()
    unasked = await iov_ingest("dead-letters", "purge", "--reason", "bad_topic", **settings)
    assert unasked.status == 2
    assert "--yes" in unasked.err
    assert (await iov_ingest("dead-letters", "purge", "--yes", **settings)).status == 2
    some = ("--reason", "bad_topic", "--since", "1h")
    purged = await iov_ingest("dead-letters", "purge", *some, "--yes", "--json", **settings)
    assert purged.json == {"dry_run": False, "letters": 1, "purged": 1}
    assert await database.reasons() == ["bad_envelope"]
    wrong = await iov_ingest("dead-letters", "list", "--since", "yesterday", **settings)
    assert wrong.status == 2
    assert "24h" in wrong.err
    gone = await iov_ingest("dead-letters", "show", str(first["id"]), **settings)
    assert (gone.status, "no dead letter" in gone.err) == (1, True)


async def test_a_role_that_was_made_later_gets_its_rights_by_the_next_migrate(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    settings = load(environ={"IOV_DATABASE_URL": database.url})
    await database.execute("REVOKE ALL ON iov.dead_letter FROM iov_dead_letters")
    steps = await migrate(settings, catalogue)
    assert [step.what for step in steps] == ["grant what iov_dead_letters needs"]
    assert not await migrate(settings, catalogue)
    operator = await database.user("replays_later", "iov_dead_letters")
    await kept(database, [delivery(one_bad_field(1))])
    assert (await replay(database, url=operator)).stored == 1
