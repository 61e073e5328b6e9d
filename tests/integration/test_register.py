"""Who may say what about devices and workers: an operator's word stands, each keeps to its own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
import structlog

from ingest.commands.devices import Described, import_devices
from ingest.config import load
from ingest.lab.until import until
from ingest.metrics import Metrics
from ingest.model import Delivery
from ingest.schema import Catalogue
from ingest.store import register
from ingest.store.heartbeat import Heartbeat
from tests.integration.test_store import writing
from tests.support import (
    OwnDatabase,
    batch_of,
    delivery,
    environment,
    may_not,
)

NOW = datetime.now(UTC)


def says(seq: int, at: datetime, **fields: str) -> Delivery:
    body = {"ts": at.isoformat(), "seq": seq, "event": "login", **fields}
    return delivery(body, "iov/v1/V1/session")


async def test_an_operators_word_outranks_a_vehicles(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    settings = load(environ={"IOV_DATABASE_URL": database.url})
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [says(1, NOW, region="mars", fleet="ours")]))
        account = await import_devices(settings, catalogue, [Described("V1", region="eu")])
        assert account["changed"] == 1
        later = NOW + timedelta(seconds=60)
        await writer.write(batch_of(catalogue, [says(2, later, region="mars", fleet="theirs")]))
    (device,) = await database.all("SELECT region, fleet FROM iov.device")
    assert tuple(device) == ("eu", "theirs")
    again = await import_devices(settings, catalogue, [Described("V1", region="eu")])
    assert again["changed"] == 0


async def test_a_clock_that_is_ahead_wins_nothing_by_it(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with writing(database, catalogue) as writer:
        ahead = datetime.now(UTC) + timedelta(seconds=250)
        await writer.write(batch_of(catalogue, [says(1, ahead, region="wrong")]))
        await writer.write(batch_of(catalogue, [says(2, datetime.now(UTC), region="right")]))
    assert await database.one("SELECT region FROM iov.device") == "right"


async def test_a_worker_learns_nothing_and_changes_no_other_workers_row(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with writing(database, catalogue) as writer:
        await writer.write(batch_of(catalogue, [says(1, NOW, vin="LSVAA4182E2184847")]))
    mine = await database.user("iov_worker_a", "iov_worker")
    other = await database.user("iov_worker_b", "iov_worker")
    first, second = await asyncpg.connect(mine), await asyncpg.connect(other)
    row = "VALUES ('{}', 'b', 's', clock_timestamp())"
    insert = "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at) "
    await first.execute(insert + row.format("a"))
    await second.execute(insert + row.format("b"))
    assert await first.execute("UPDATE iov.worker SET heartbeat_at = now()") == "UPDATE 1"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await first.execute(
            "INSERT INTO iov.worker (client_id, broker, subscription, heartbeat_at, login) "
            "VALUES ('c', 'b', 's', now(), 'iov_worker_b')"
        )
    assert await first.fetchval("SELECT iov.strike_off('b', 'b', 0)") is False
    assert await first.fetchval("SELECT iov.strike_off('b', 'a', 0)") is True
    guess = (
        "SELECT iov.describe_devices(ARRAY[1], ARRAY[now()], ARRAY[NULL::text], "
        "ARRAY['LSVAA4182E2184847'], ARRAY[NULL::text], ARRAY[NULL::text])"
    )
    assert not await first.fetchval(guess)
    await first.close()
    await second.close()
    await may_not(
        mine,
        "DELETE FROM iov.worker",
        "SELECT iov.describe_devices_as(1::smallint, '{1}', '{now}', '{a}', '{a}', '{a}', '{a}')",
    )


async def test_a_worker_whose_login_was_changed_goes_on_when_its_row_has_been_silent(
    database: OwnDatabase,
) -> None:
    """A vault gives it a new one; meanwhile it says that nobody hears of it."""
    before = await database.user("iov_monday", "iov_worker")
    after = await database.user("iov_tuesday", "iov_worker")
    settings = [load(environ=environment("mqtt://127.0.0.1:1", url)) for url in (before, after)]
    async with register.opened(settings[0].database, settings[0].broker) as opened:
        await opened.heartbeat(first=True)
    with structlog.testing.capture_logs() as logs:
        changed = Heartbeat(settings[1].database, settings[1].broker, Metrics({}), lambda: None)
        beat = asyncio.create_task(changed.run())
        await until(lambda: logs, "a warning")
        beat.cancel()
    assert [line["event"] for line in logs] == ["the register does not take the heartbeat"]
    await database.execute("UPDATE iov.worker SET heartbeat_at = now() - interval '31 s'")
    async with register.opened(settings[1].database, settings[1].broker) as opened:
        assert (await opened.heartbeat(first=True)).known
    assert await database.one("SELECT login FROM iov.worker") == "iov_tuesday"
