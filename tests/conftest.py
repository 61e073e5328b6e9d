"""Real servers: one PostgreSQL for the run, a database and a broker for each test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import asyncpg
import pytest

from ingest.config import load
from ingest.lab.embedded import Mosquitto, Postgres, mosquitto, postgres
from ingest.schema import Catalogue
from ingest.store import migrate
from tests.support import CATALOGUE, OwnDatabase, Worker, working


def pytest_configure() -> None:
    """Remove the machine's own IOV_ settings, so that they do not reach a test."""
    for name in [name for name in os.environ if name.startswith("IOV_")]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no process is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def pg() -> Iterator[Postgres]:
    # Tests make hundreds of databases, which need not survive a power cut. Tests of durability
    # are about synchronous_commit, which stays on.
    with postgres({"fsync": "off", "max_connections": "200"}) as server:
        yield server


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return CATALOGUE


_templates: set[str] = set()
_numbers = iter(range(1_000_000))


@pytest.fixture
async def database(pg: Postgres, catalogue: Catalogue) -> AsyncIterator[OwnDatabase]:
    """Yield a migrated database for one test, copied from a template."""
    admin = await asyncpg.connect(pg.url)
    if pg.url not in _templates:
        await admin.execute("CREATE DATABASE iov_template")
        await migrate(load(environ={"IOV_DATABASE_URL": pg.url_of("iov_template")}), catalogue)
        _templates.add(pg.url)
    name = f"test_{next(_numbers)}"
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE iov_template")
    try:
        yield OwnDatabase(pg, name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
async def broker() -> AsyncIterator[Mosquitto]:
    async with mosquitto() as running:
        yield running


@pytest.fixture(params=["mqtt5", "aiomqtt"])
def client(request: pytest.FixtureRequest) -> str:
    """Return an MQTT client's name; a test that takes it is in the conformance suite of both."""
    name: str = request.param
    return name


@pytest.fixture
def worker(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> AbstractAsyncContextManager[Worker]:
    """Return a context that runs a worker with the default client on the test's servers."""
    return working(broker.url, database.url, catalogue)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)
