"""The same promises on a hypertable, where a PostgreSQL with TimescaleDB is at hand.

Name the directory above its `bin` in TIMESCALEDB_PGINSTALL.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp

import asyncpg
import pytest

from ingest.child import child
from ingest.config import load
from ingest.errors import ConfigError, NotReady
from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import maintain, migrate
from tests.support import (
    publish_many,
    sample,
    working,
)

INSTALLED = os.environ.get("TIMESCALEDB_PGINSTALL")
pytestmark = pytest.mark.skipif(
    not INSTALLED, reason="no PostgreSQL with TimescaleDB: set TIMESCALEDB_PGINSTALL"
)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A new cluster with the extension loaded; PostgreSQL refuses to run as root."""
    assert INSTALLED is not None
    tools = Path(INSTALLED) / "bin"
    directory = Path(mkdtemp(prefix="iov-timescale-"))
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        owner = pwd.getpwnam(user)
        os.chown(directory, owner.pw_uid, owner.pw_gid)
    subprocess.run(  # noqa: ASYNC221  before anything runs
        [tools / "initdb", "-D", directory / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"],
        check=True, capture_output=True, user=user,
    )  # fmt: skip
    server = await child(
        tools / "postgres", "-D", directory / "data", "-c", "listen_addresses=",
        "-c", f"unix_socket_directories={directory}",
        "-c", "shared_preload_libraries=timescaledb",
        user=user, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"postgresql://postgres@/postgres?host={directory}"

    async def reachable() -> bool:
        try:
            connection = await asyncpg.connect(address)
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True

    try:
        await until(reachable, "PostgreSQL with TimescaleDB")
        yield address
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for connections (postgres, 18.5)
        await server.wait()
        shutil.rmtree(directory, ignore_errors=True)


async def test_where_the_extension_is_the_tables_are_hypertables_and_take_late_data(
    url: str, broker: Mosquitto, catalogue: Catalogue
) -> None:
    demanded = load(environ={"IOV_DATABASE_URL": url, "IOV_STORE": "timescaledb"})
    with pytest.raises(NotReady, match="CREATE EXTENSION timescaledb"):
        await migrate(demanded, catalogue)
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE EXTENSION timescaledb")
    await migrate(load(environ={"IOV_DATABASE_URL": url}), catalogue)
    assert await migrate(demanded, catalogue) == []
    hypertables = await connection.fetch(
        "SELECT hypertable_name FROM timescaledb_information.hypertables ORDER BY 1"
    )
    assert [row[0] for row in hypertables] == sorted(s.table for s in catalogue.values())

    now = datetime.now(UTC)
    days = [sample(n, now - timedelta(days=n % 20)) for n in range(200)]
    async with working(broker.url, url, catalogue) as worker:
        await publish_many(broker.url, days)
        await worker.settles(200)
        await publish_many(broker.url, days)
        await worker.settles(400)
        assert worker.metric("iov_samples_duplicate_total") == 200
    assert await connection.fetchval("SELECT count(*) FROM iov.nev") == 200
    chunks = await connection.fetchval("SELECT count(*) FROM show_chunks('iov.nev')")
    assert chunks == 20
    await connection.close()


async def test_an_owner_a_worker_and_a_reader_are_enough(
    url: str, broker: Mosquitto, catalogue: Catalogue
) -> None:
    """As in the compose stack: nobody but who made the extension is a superuser."""
    admin = await asyncpg.connect(url)
    await admin.execute(
        "CREATE EXTENSION timescaledb; CREATE ROLE iov_worker; CREATE ROLE iov_reader;"
        "CREATE ROLE owner LOGIN; CREATE ROLE worker LOGIN IN ROLE iov_worker;"
        "CREATE ROLE reader LOGIN IN ROLE iov_reader;"
        "GRANT CREATE, TEMPORARY ON DATABASE postgres TO owner WITH GRANT OPTION"
    )

    def as_user(name: str) -> str:
        return url.replace("postgres@", f"{name}@")

    await migrate(load(environ={"IOV_DATABASE_URL": as_user("owner")}), catalogue)
    now = datetime.now(UTC)
    days = [sample(n, now - timedelta(days=n)) for n in range(20)]
    async with working(broker.url, as_user("worker"), catalogue) as worker:
        await publish_many(broker.url, [*days, *days])
        await worker.settles(40)
    reader = await asyncpg.connect(as_user("reader"))
    assert await reader.fetchval("SELECT count(*) FROM iov.nev") == 20
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await reader.fetchval("SELECT vin FROM iov.device")
    await reader.close()
    await admin.close()


async def test_what_is_kept_how_long_is_left_to_its_own_policies(
    url: str, broker: Mosquitto, catalogue: Catalogue, tmp_path: Path
) -> None:
    file = tmp_path / "retention.toml"
    owner = await asyncpg.connect(url)
    await owner.execute("CREATE EXTENSION timescaledb")
    plain = {"IOV_DATABASE_URL": url}
    settings = load(environ=plain | {"IOV_RETENTION_FILE": write(file, "[nev]\nkeep_days = 1")})
    with pytest.raises(ConfigError, match="kept for 1 days and samples of 30"):
        await maintain(settings, catalogue)
    await migrate(load(environ=plain), catalogue)
    # What an operator has set without a file is left as it is.
    await owner.execute("SELECT add_retention_policy('iov.alarm', INTERVAL '400 days')")
    now = datetime.now(UTC)
    async with working(broker.url, url, catalogue) as worker:
        await publish_many(broker.url, [sample(n, now - timedelta(days=n)) for n in range(20)])
        await worker.settles(20)
    await owner.execute(
        "INSERT INTO iov.nev (device_id, ts, seq, received_at) "
        "VALUES (1, now() - interval '50 days', 1, now())"
    )

    async def policies(table: str) -> dict[str, str]:
        return dict(
            await owner.fetch(
                "SELECT proc_name, coalesce(config ->> 'drop_after', config ->> 'compress_after') "
                "FROM timescaledb_information.jobs WHERE hypertable_name = $1",
                table,
            )
        )

    write(file, "[nev]\nkeep_days = 40\ncompress_after_days = 9\n[battery]\nkeep_days = 31\n")
    planned = await maintain(settings, catalogue, dry_run=True)
    assert await policies("nev") == {}
    done = await maintain(settings, catalogue)
    assert done.later == []
    assert done.policies == planned.policies
    assert await policies("nev") == {"policy_retention": "40 days", "policy_compression": "9 days"}
    assert await policies("battery") == {"policy_retention": "31 days"}
    assert await policies("alarm") == {"policy_retention": "400 days"}
    assert (await maintain(settings, catalogue)).policies == []

    # Its own workers see to it; those that ended nine days ago or before are compressed.
    async def seen_to() -> bool:
        rows = await owner.fetchval("SELECT count(*) FROM iov.nev")
        packed = await owner.fetchval(
            "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed"
        )
        return (rows, packed) == (20, 10)

    await until(seen_to, "the policies' work")
    write(file, "[nev]\nkeep_days = 60\n")
    await maintain(settings, catalogue)
    assert await policies("nev") == {"policy_retention": "60 days"}
    assert await policies("battery") == {}
    assert await policies("alarm") == {"policy_retention": "400 days"}
    await owner.close()


def write(file: Path, text: str) -> str:
    file.write_text(text + "\n")
    return str(file)
