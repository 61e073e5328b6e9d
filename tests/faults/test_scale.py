"""Workers come and go under load: four, one, three; nothing stays behind in a session."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingest.commands.leave import leave
from ingest.config import Settings, load
from ingest.lab.proxy import Proxy
from ingest.lab.until import until
from ingest.lab.verify import FaultPlan, embedded
from ingest.lab.verify.ledger import Ledger
from ingest.lab.verify.run import Course, account_of
from ingest.lab.verify.servers import Servers
from ingest.lab.verify.tap import Tap
from ingest.lab.verify.world import world
from ingest.store.connect import connected

pytestmark = pytest.mark.slow


def told(_: str) -> None:
    pass


def administrator(servers: Servers, port: int) -> Settings:
    """Who runs `iov-ingest leave`."""
    return load(
        environ={
            "IOV_MQTT_URL": f"mqtt://127.0.0.1:{port}",
            "IOV_DATABASE_URL": servers.worker_url,
            "IOV_MQTT_CLIENT_ID": "administrator",
            "IOV_MQTT_BROKER_ID": "verify",
            "IOV_MQTT_GROUP": f"iov-verify-{servers.run}",
            "IOV_DEAD_LETTERS_PER_MINUTE": "1000000",
        }
    )


async def test_from_four_workers_to_one_to_three_under_load(tmp_path: Path) -> None:
    async with embedded() as servers:
        ledger = Ledger(1, 20, datetime.now(UTC))
        tapped = Proxy(
            "127.0.0.1",
            servers.settings.broker.port,
            listener=lambda: Tap(ledger.settle, lambda: None, print).listener(),
        )
        async with tapped as tap, world(servers, ledger, workers=4, logs=tmp_path) as whole:
            course = Course(whole, FaultPlan([], rate=100), lambda *_: None)
            settings = administrator(servers, tap.port)
            asked, signalled, killed, stays = whole.workers
            async with course.load():
                await whole.some_published(100)
                # One is asked through the database, one gets the signal, one dies and is drained.
                assert (await leave(settings, asked.client_id, last=False, progress=told))[
                    "how"
                ] == "left"
                assert await asked.end(None) == 0
                assert await signalled.end(signal.SIGUSR1) == 0
                await killed.end(signal.SIGKILL)
                await whole.some_published(100)
                done = await leave(settings, killed.client_id, last=False, progress=told)
                assert done["how"] == "drained"
                assert done["messages"] > 0
                await whole.some_published(100)
                for worker in (asked, killed):
                    await worker.start()
                whole.workers.remove(signalled)
                await until(whole.all_ready, "three ready workers")
                await whole.some_published(100)
            await course.rest()
            async with connected(settings.database, "iov-test") as connection:
                rows = await connection.fetch("SELECT client_id FROM iov.worker ORDER BY client_id")
            assert [row[0] for row in rows] == [w.client_id for w in (asked, killed, stays)]
            for worker in whole.workers:
                assert await worker.end(signal.SIGTERM) == 0
            account = await account_of(whole)
    assert account.holds, account
    assert account.published == account.stored
