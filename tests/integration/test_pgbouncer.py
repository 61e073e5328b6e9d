"""Behind PgBouncer: in session mode as without it, in transaction mode refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from ingest.child import child
from ingest.config import load
from ingest.errors import NotReady
from ingest.lab.embedded import Mosquitto, free_port
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import connect, migrate
from ingest.store.pooler import LIMITS
from tests.support import (
    OwnDatabase,
    bad_sample,
    publish_many,
    sample,
    working,
)

UNPACKED = Path(sys.prefix) / "pgbouncer"
PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path=UNPACKED / "usr/sbin")
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no PgBouncer: tests/install-tools fetches it where there is apt-get"
)
DOCUMENTED = ", ".join(LIMITS)


@asynccontextmanager
async def pooled(database: OwnDatabase, mode: str, ignored: str = DOCUMENTED) -> AsyncIterator[str]:
    """The URL of the database by way of a PgBouncer."""
    assert PROGRAM is not None
    socket_directory, name, port = database.server.socket_directory, database.name, free_port()
    text = (
        f"[databases]\n{name} = host={socket_directory} dbname={name} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = {mode}\nignore_startup_parameters = {ignored}\n"
    )
    libraries = ":".join(sorted({str(lib.parent) for lib in UNPACKED.rglob("lib*.so*")}))
    environ = os.environ | ({"LD_LIBRARY_PATH": libraries} if libraries else {})
    url = f"postgresql://postgres@127.0.0.1:{port}/{name}"

    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    with TemporaryDirectory(prefix="iov-pgbouncer-") as directory:
        file, user = configured(directory, text, socket_directory)
        process = await child(PROGRAM, file, user=user, env=environ, stderr=subprocess.DEVNULL)
        try:
            await until(answers, "PgBouncer")
            yield url
        finally:
            process.terminate()
            await process.wait()


def configured(directory: str, text: str, owner_of: str) -> tuple[Path, int | None]:
    """The file, and who PgBouncer has to be: not root, and whose socket it is."""
    Path(directory).chmod(0o755)
    file = Path(directory) / "pgbouncer.ini"
    file.write_text(text)
    return file, Path(owner_of).stat().st_uid if os.geteuid() == 0 else None


async def test_in_session_mode_all_is_as_without_it(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    now = datetime.now(UTC)
    good = [sample(n, now - timedelta(days=n % 3)) for n in range(600)]
    async with pooled(database, "session") as url:
        assert await migrate(load(environ={"IOV_DATABASE_URL": url}), catalogue) == []
        async with (
            working(broker.url, url, catalogue) as one,
            working(broker.url, url, catalogue, mqtt_client_id="worker-2") as two,
        ):
            # Some come twice in the same batch, and some are refused: both ways to write.
            await publish_many(broker.url, [*good, *good, b"junk", bad_sample(1, now)])
            await until(lambda: one.settled() + two.settled() >= 1_202, "all of them")
            assert await database.count() == 600
            assert sorted(await database.reasons()) == ["bad_json", "schema"]
            await until(lambda: len(one.service.heartbeat.workers or []) == 2, "the register")
            # The pooler cuts all connections: they are made anew and nothing is lost.
            await database.all(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await publish_many(broker.url, [sample(1_000 + n) for n in range(100)])
            await until(lambda: one.settled() + two.settled() >= 1_302, "the rest")
        assert await database.count() == 700


async def test_in_session_mode_time_limits_hold_as_well(database: OwnDatabase) -> None:
    async with pooled(database, "session") as url:
        settings = load(environ={"IOV_DATABASE_URL": url})
        connection = await connect(settings.database, "limits", lock_timeout="1234")
        for name, wanted in (("statement_timeout", "30s"), ("lock_timeout", "1234ms")):
            assert await connection.fetchval(f"SHOW {name}") == wanted
        await connection.close()


@pytest.mark.parametrize("clients", [0, 5])
async def test_in_transaction_mode_nothing_is_committed(
    clients: int,
    database: OwnDatabase,
    broker: Mosquitto,
    catalogue: Catalogue,
) -> None:
    async with pooled(database, "transaction") as url:
        # Others that have left their sessions with the pooler.
        others = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(clients)]
        for other in others:
            await other.execute("SELECT 1")
        async with working(broker.url, url, catalogue, wait=False) as worker:
            await worker.subscribed()
            await publish_many(broker.url, [sample(n) for n in range(10)])

            def told() -> bool:
                return any("pool_mode = session" in text for text in worker.service.problems())

            await until(told, "the refusal")
            await until(lambda: worker.in_flight == 10, "the messages")
            assert worker.metric("iov_samples_stored_total") == 0
            await worker.kill()  # to drain there is nowhere
        for other in others:
            await other.close()
        assert await database.count() == 0


async def test_what_it_has_to_be_told_is_told(database: OwnDatabase) -> None:
    async with pooled(database, "session", ignored="extra_float_digits") as url:
        with pytest.raises(NotReady, match=f"ignore_startup_parameters = {DOCUMENTED}"):
            await connect(load(environ={"IOV_DATABASE_URL": url}).database, "refused")
