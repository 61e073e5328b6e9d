"""A message that kills whoever reads it does so three times, and no more."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.child import child
from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import Guard, connect
from tests.integration.test_nothing_stops_it import raising
from tests.support import (
    OwnDatabase,
    environment,
    publish_many,
    sample,
    working,
)

SCRIPT = Path(__file__).parent / "poison.py"


async def started(how: str, broker: Mosquitto, database: OwnDatabase) -> asyncio.subprocess.Process:
    own = environment(broker.url, database.url) | {"PYTHONPATH": str(SCRIPT.parents[2])}
    return await child(
        sys.executable, str(SCRIPT), how, env=os.environ | own, stdout=asyncio.subprocess.PIPE
    )


@pytest.mark.parametrize("readers", [("run",) * 4, ("run", "drain", "drain", "drain")])
async def test_a_message_that_kills_whoever_reads_it_is_set_aside(
    readers: tuple[str, ...], broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue):
        pass  # a session that is kept
    for first in range(0, 600, 300):
        await publish_many(broker.url, [sample(n) for n in range(first, first + 300)])
        await publish_many(broker.url, [sample(first)], "iov/v1/POISON/nev")
    deaths: list[int] = []
    poisons = 2
    for _ in range(3 * poisons + 1):
        how = readers[min(len(deaths), len(readers) - 1)]
        process = await started(how, broker, database)
        dead = asyncio.create_task(process.wait())

        async def all_there(dead: asyncio.Task[int] = dead) -> bool:
            return dead.done() or (
                await database.count() == 600 and (len(await database.reasons()) == poisons)
            )

        await until(all_there, "a death, or everything in the database")
        if how == "run" and not dead.done():
            process.terminate()
        status = await dead
        if status == 0:
            break
        assert status == -signal.SIGABRT
        deaths.append(status)
    assert len(deaths) <= 3 * poisons
    letters = await database.all("SELECT reason, detail, device, payload FROM iov.dead_letter")
    assert [letter["reason"] for letter in letters] == ["internal_error"] * poisons
    assert {letter["device"] for letter in letters} == {"POISON"}
    assert "in flight at the last three ends" in letters[0]["detail"]
    assert await database.count() == 600
    assert await database.one("SELECT count(*) FROM iov.guard WHERE running") == 0


async def test_while_care_is_taken_one_connection_is_enough(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = 0

    async def counted(*args: Any, **how: Any) -> asyncpg.Connection:
        nonlocal opened
        opened += 1
        return await connect(*args, **how)

    monkeypatch.setattr(f"{Guard.__module__}.connect", counted)
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(0)])
        await worker.settles(1)
    await database.execute("UPDATE iov.guard SET running = true")  # as after a SIGKILL
    monkeypatch.setattr(f"{Guard.__module__}.TOGETHER", 10)
    async with working(broker.url, database.url, catalogue, mqtt_receive_maximum="300") as worker:
        await publish_many(broker.url, [sample(n) for n in range(1, 201)])
        await worker.settles(200)
        assert opened == 1
        # It is cut, and made anew.
        assert worker.service.guard._connection is not None
        worker.service.guard._connection.terminate()
        await publish_many(broker.url, [sample(n) for n in range(201, 301)])
        await worker.settles(300)
        assert opened == 2
        assert worker.service.guard._connection is None, "care has ended"
    assert await database.count() == 301


async def test_while_care_is_taken_a_row_that_fails_alone_still_waits_for_others(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    """Nothing can tell whose fault it is before others are read."""
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(0)])
        await worker.settles(1)
    await database.execute("UPDATE iov.guard SET running = true")  # as after a SIGKILL
    await database.execute(raising("new.soc_pct = 66"))
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [sample(1, soc_pct=66)])
        await until(lambda: "P0001" in str(worker.service.problems()), "its words at /readyz")
        await publish_many(broker.url, [sample(n) for n in range(2, 22)])
        await worker.settles(21)
        await worker.ready()
    assert await database.reasons() == ["refused_by_store"]
    assert await database.count() == 21
