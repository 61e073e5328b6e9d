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
from ingest.schema import Catalogue, load_catalogue
from ingest.store import migrate
from tests.support import OwnDatabase, Worker, working


def pytest_configure() -> None:
    """No setting of the machine's reaches a test."""
    for name in [name for name in os.environ if name.startswith("IOV_")]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no process is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def pg() -> Iterator[Postgres]:
    # Tests make hundreds of databases; that none of them survives a power cut is fine. What is
    # tested about durability is synchronous_commit, which stays on.
    with postgres({"fsync": "off", "max_connections": "200"}) as server:
        yield server


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return load_catalogue()


_templates: set[str] = set()
_numbers = iter(range(1_000_000))


@pytest.fixture
async def database(pg: Postgres, catalogue: Catalogue) -> AsyncIterator[OwnDatabase]:
    """A migrated database of its own, copied from a template."""
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
    """Both ways to read MQTT: a test that takes this is part of their conformance suite."""
    name: str = request.param
    return name


@pytest.fixture
def worker(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> AbstractAsyncContextManager[Worker]:
    """A worker on the test's broker and database, by the default client."""
    return working(broker.url, database.url, catalogue)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)
