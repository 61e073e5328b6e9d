"""Helpers for tests: a worker in the test's own loop, a database to query, a publisher."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import aiomqtt
import asyncpg
import orjson
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from ingest.batch import Batch
from ingest.budget import Budget
from ingest.cancelled import unless_cancelled
from ingest.check import Checker
from ingest.config import Settings, load
from ingest.lab.embedded import Postgres
from ingest.lab.until import until
from ingest.metrics import Metrics
from ingest.model import Arrival, Delivery, Row
from ingest.schema import Catalogue, Stream, load_catalogue
from ingest.source import source as source_module
from ingest.source.aiomqtt import AiomqttClient
from ingest.store import StoreConnection, Writer
from ingest.worker.service import Service

CATALOGUE = load_catalogue()
"""Schemas of the product, loaded once for all tests of a process."""


@dataclass
class OwnDatabase:
    """One test's database."""

    server: Postgres
    name: str

    @property
    def url(self) -> str:
        return self.server.url_of(self.name)

    async def all(self, query: str, *args: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *args)
            return rows
        finally:
            await connection.close()

    async def one(self, query: str, *args: Any) -> Any:
        return (await self.all(query, *args))[0][0]

    async def count(self, table: str = "nev") -> int:
        number: int = await self.one(f"SELECT count(*) FROM iov.{table}")
        return number

    async def execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def user(self, name: str, group: str | None = None) -> str:
        """Return the URL for a user in one group role, or in no group; users are server-wide."""
        grant = f"GRANT {group} TO {name}" if group else ""
        await self.execute(
            f"DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; "
            f"END $$; {grant}"
        )
        return self.server.url_of(self.name, name)

    async def reasons(self) -> list[str]:
        return [r[0] for r in await self.all("SELECT reason FROM iov.dead_letter ORDER BY id")]


class Worker:
    """A service under test and the task it runs in."""

    def __init__(self, service: Service, tasks: asyncio.TaskGroup) -> None:
        self.service = service
        self.task = tasks.create_task(service.run(), name="worker under test")

    @property
    def in_flight(self) -> int:
        return self.service.source.inbox.in_flight

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.http_port}"

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample of the worker's metrics, summed over the labels that are not given."""
        return self.service.metrics.value(name, **labels)

    def settled(self) -> float:
        return sum(
            self.metric(f"iov_samples_{outcome}_total")
            for outcome in ("stored", "duplicate", "rejected")
        )

    async def ready(self) -> None:
        await until(lambda: not self.service.problems(), "a ready worker")

    async def subscribed(self) -> None:
        """Wait until it has subscribed; its database may be away."""
        await until(lambda: self.service.source.problem is None, "its subscription")

    async def settles(self, samples: int) -> None:
        """Wait until this many samples were settled and nothing is in flight."""
        await until(
            lambda: self.settled() >= samples and not self.in_flight, f"{samples} samples settled"
        )

    async def stop(self) -> None:
        self.service.stop()
        await self.task

    async def kill(self) -> None:
        """End it as SIGKILL would: sockets are cut, and nothing more is sent."""
        self.task.cancel()
        await asyncio.wait([self.task])


async def may_not(url: str, *statements: str) -> None:
    """Assert that the URL's user lacks the privilege for each statement."""
    connection = await asyncpg.connect(url)
    for statement in statements:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


def sql_blocks(page: str) -> list[str]:
    """Return the SQL blocks of a page of docs/."""
    text = (Path(__file__).parents[1] / "docs" / page).read_text()
    return re.findall(r"^```sql\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def plenty() -> Budget:
    """Return a budget of dead letters that a test about something else never exhausts."""
    return Budget(1_000_000_000, 1 << 60)


def only_version_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the source `aiomqtt` speak MQTT 3.1.1, as with a broker that knows no other."""

    def version_3(*args: Any, **_: Any) -> AiomqttClient:
        return AiomqttClient(*args, version_5=False)

    monkeypatch.setattr(source_module, "AiomqttClient", version_3)


def writer_to(url: str, catalogue: Catalogue, commit_timeout_s: int = 60) -> Writer:
    """Make a writer as a service has it, without the service."""
    metrics = Metrics(dict.fromkeys(catalogue, ()))
    connection = StoreConnection(
        load(environ={"IOV_DATABASE_URL": url}).database,
        "iov-ingest w",
        catalogue,
        metrics,
        Random(1),
        commit_timeout_s,
    )
    samples_json = Checker.of(catalogue, Settings()).samples_json
    return Writer(connection, catalogue, metrics, samples_json, plenty())


def batch_of(catalogue: Catalogue, deliveries: list[Delivery]) -> Batch:
    """Return the batch of what a worker with the default settings makes of deliveries."""
    checker, batch = Checker.of(catalogue, Settings()), Batch(0.0)
    for one in deliveries:
        batch.add(one, checker.check(one), plenty(), 0.0)
    return batch


def environment(mqtt_url: str, database_url: str, **settings: str) -> dict[str, str]:
    return {
        "IOV_MQTT_URL": mqtt_url,
        "IOV_DATABASE_URL": database_url,
        "IOV_MQTT_CLIENT_ID": "worker-1",
        "IOV_HTTP_HOST": "127.0.0.1",
        "IOV_HTTP_PORT": "0",
        # The tests' database has no fsync; another test checks that it is refused by default.
        "IOV_UNSAFE_DATABASE": "accept",
    } | {f"IOV_{name.upper()}": value for name, value in settings.items()}


@asynccontextmanager
async def working(
    mqtt_url: str,
    database_url: str,
    catalogue: Catalogue,
    *,
    checker: Checker | None = None,
    wait: bool = True,
    **settings: str,
) -> AsyncIterator[Worker]:
    """Run a worker while the block runs, ready from its start; stop it cleanly at the end.

    If the worker ends with an error, the block is cancelled and the error is raised.
    """
    configured = load(environ=environment(mqtt_url, database_url, **settings))
    async with asyncio.TaskGroup() as tasks:
        worker = Worker(Service(configured, catalogue, checker=checker), tasks)
        if wait:
            await worker.ready()
        yield worker
        if not worker.task.done():
            await worker.stop()


def sample(
    seq: int | None = None, ts: datetime | str | int | None = None, **fields: Any
) -> dict[str, Any]:
    """Return a good `nev` sample, with the given fields replaced or added."""
    instant = ts if ts is not None else datetime.now(UTC)
    text = instant.isoformat() if isinstance(instant, datetime) else instant
    head: dict[str, Any] = {"ts": text}
    if seq is not None:
        head["seq"] = seq
    return head | {"speed_kmh": 46.8, "soc_pct": 71, "gear": "D"} | fields


def bad_sample(
    seq: int | None = None, ts: datetime | str | int | None = None, **fields: Any
) -> dict[str, Any]:
    """Return a `nev` sample that is rejected, because nothing is left without its bad value."""
    nothing = dict.fromkeys(("speed_kmh", "soc_pct", "gear"))
    return sample(seq, ts, **(nothing | (fields or {"soc_pct": -50})))


def delivery(
    payload: Any,
    topic: str = "iov/v1/V1/nev",
    *,
    encoding: str | None = None,
    content_type: str | None = None,
    connection: Any = None,
    packet_id: int | None = 1,
    at: datetime | None = None,
) -> Delivery:
    """Return a delivery as a source would hand it over."""
    text = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    arrival = Arrival(at or datetime.now(UTC), time.monotonic())
    return Delivery(topic, text, encoding, content_type, packet_id, arrival, connection or Silent())


def every_column(stream: Stream, record: list[Any], present: int) -> dict[str, Any]:
    """Return a record's values by column of its table; None if it has no value."""
    names = stream.layout.columns(present)
    return dict.fromkeys(stream.column_names) | dict(zip(names, record, strict=True))


def column(row: Row, catalogue: Catalogue, name: str) -> Any:
    """Return the value a row has for one column."""
    return every_column(catalogue[row.stream], row.record, row.present)[name]


class Silent:
    """A connection that takes acknowledgements and sends nothing."""

    def acknowledge(self, packet_ids: Any) -> None:
        pass


@asynccontextmanager
async def publisher(
    url: str, *, version_5: bool = True, **options: Any
) -> AsyncIterator[Callable[..., Any]]:
    """Connect, and yield a function that publishes: (payload, topic, qos=1, encoding=None)."""
    host, port = url.split("//")[1].split(":")
    protocol = aiomqtt.ProtocolVersion.V5 if version_5 else aiomqtt.ProtocolVersion.V311
    async with aiomqtt.Client(host, int(port), protocol=protocol, **options) as client:
        client.pending_calls_threshold = 1_000_000

        async def publish(
            payload: Any,
            topic: str = "iov/v1/V1/nev",
            qos: int = 1,
            encoding: str | None = None,
            *,
            content_type: str | None = None,
            retain: bool = False,
        ) -> None:
            text = payload if isinstance(payload, bytes) else orjson.dumps(payload)
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
            if encoding is not None:
                properties.UserProperty = [("content-encoding", encoding)]
            if content_type is not None:
                properties.ContentType = content_type
            await client.publish(
                topic, text, qos=qos, properties=properties if version_5 else None, retain=retain
            )
            unless_cancelled()

        yield publish


async def publish_many(url: str, payloads: list[Any], topic: str = "iov/v1/V1/nev") -> None:
    """Publish a list with QoS 1, many at a time; returns when all are acknowledged."""
    async with publisher(url, max_inflight_messages=200) as publish:
        for start in range(0, len(payloads), 200):
            async with asyncio.TaskGroup() as tasks:
                for payload in payloads[start : start + 200]:
                    tasks.create_task(publish(payload, topic))
