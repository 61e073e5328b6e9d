"""The workers, the proxies between them and the servers, and helpers for faults."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from ingest.commands.publisher import Publisher
from ingest.config import Settings, load
from ingest.database import Database
from ingest.lab.embedded import free_port
from ingest.lab.process import COMMAND, WorkerProcess
from ingest.lab.proxy import Proxy
from ingest.lab.until import until
from ingest.lab.verify.ledger import VISITOR, Issued, Ledger
from ingest.lab.verify.servers import Servers, address, through
from ingest.lab.verify.tap import PROPERTY, Complain, Tap
from ingest.store import connect

COMMIT_TIMEOUT_S = 5.0
"""Seconds after which workers give up an attempt to commit (`IOV_COMMIT_TIMEOUT_S`)."""
ADOPT_AFTER_S = 60
"""Seconds of silence before a session is adopted (`IOV_ADOPT_AFTER_S`); the least allowed."""
_PUBLISH_TIMEOUT_S = 2.0


class ProxiedWorker(WorkerProcess):
    """One worker process with a proxy to each server; its output goes to a log file."""

    def __init__(
        self,
        number: int,
        servers: Servers,
        command: Sequence[str],
        environ: Mapping[str, str],
        log: Path,
    ) -> None:
        port = free_port()
        super().__init__({**_without_settings(), **environ}, port, command, log)
        self.number = number
        self.client_id = f"iov-verify-{servers.run}-{number}"
        self.subscriptions = 0
        """Number of SUBACKs it was sent."""
        self.frozen = False
        self._servers = servers
        self.broker: Proxy
        self.database: Proxy

    async def open(self, stack: AsyncExitStack, ledger: Ledger, complain: Complain) -> None:
        """Open its proxies, which listen until the stack unwinds."""
        broker = self._servers.settings.broker
        self.broker = await stack.enter_async_context(
            Proxy(
                broker.host,
                broker.port,
                tls=broker.tls(),
                listener=lambda: Tap(ledger.settle, self._subscribed, complain).listener(),
            )
        )
        self.database = await stack.enter_async_context(Proxy(*address(self._servers.worker_url)))

    def _subscribed(self) -> None:
        self.subscriptions += 1

    async def start(self, **environ: str) -> None:
        """Start it behind its proxies."""
        await super().start(**self._own(), **environ)

    def settings(self) -> Settings:
        """Return the settings that it is started with."""
        environ = {**self._environ, **self._own()}
        return load(environ={n: value for n, value in environ.items() if n.startswith("IOV_")})

    def _own(self) -> dict[str, str]:
        url = through(self._servers.worker_url, self.database.port)
        return {
            "IOV_MQTT_URL": f"mqtt://127.0.0.1:{self.broker.port}",
            "IOV_DATABASE_URL": url,
            "IOV_MQTT_CLIENT_ID": self.client_id,
            "IOV_HTTP_PORT": str(self._port),
        }

    async def ready(self) -> bool:
        """Return whether it reports that it would store a message now; False while it is frozen."""
        return not self.frozen and await super().ready()

    def resources(self) -> tuple[float, int] | None:
        """Return (resident memory in MB, open file descriptors); None while it does not run."""
        if self.process is None:
            return None
        proc = Path("/proc") / str(self.process.pid)
        try:
            pages = int((proc / "statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(list((proc / "fd").iterdir()))
        except (OSError, IndexError):
            return None


class Hire(Protocol):
    """A function that makes one more worker."""

    async def __call__(
        self, number: int | None = None, on: Servers | None = None, **more: str
    ) -> ProxiedWorker:
        """Return a worker that is not started, with its proxies open.

        By default it gets the next number and runs `on` our servers. `more` is added to its
        environment.
        """


Visitor = tuple[str, str, bytes, str | None]
"""Message that a fault sends: (end of the device's name, stream, payload, encoding)."""


@dataclass
class World:
    """Everything that takes part in a run."""

    servers: Servers
    ledger: Ledger
    gate: Proxy
    """Proxy between publisher and broker."""
    publisher: Publisher
    """Publisher that connects through `gate`."""
    workers: list[ProxiedWorker]
    hire: Hire
    logs: Path
    publishing: asyncio.Event = field(default_factory=asyncio.Event)
    outstanding: int = 0
    """Number of messages published and not yet acknowledged by the broker."""
    unwell: list[str] = field(default_factory=list)
    """Problems besides those of the messages, one text each."""
    left_behind: list[str] = field(default_factory=list)
    """Client ids of lost workers, whose sessions another worker must adopt."""

    @property
    def victims(self) -> list[ProxiedWorker]:
        """Workers that may be killed; the first of several is spared, to measure its memory."""
        return self.workers[1:] or self.workers

    async def ask(self, query: str, *args: Any) -> Any:
        """Return one value from the scratch database, asked as its owner and without a proxy."""
        async with self.owner() as connection:
            return await connection.fetchval(query, *args)

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[asyncpg.Connection]:
        """Connect to the scratch database; may write even if its default is read-only."""
        connection = await connect(
            Database(self.servers.database_url),
            "iov-ingest verify",
            default_transaction_read_only="off",
        )
        try:
            yield connection
        finally:
            connection.terminate()

    async def publish(self, message: Issued, publisher: Publisher | None = None) -> None:
        """Publish an issued message, first or again; return after the broker's acknowledgement."""
        properties = {PROPERTY: str(message.number)}
        if message.encoding:
            properties["content-encoding"] = message.encoding
        topic = f"{self.servers.prefix}iov/v1/{message.device}/{message.stream}"
        await (publisher or self.publisher).publish(topic, message.payload, properties)

    async def visit(
        self, visitors: Sequence[Visitor], limit_s: float, publisher: Publisher | None = None
    ) -> None:
        """Publish visitors, and wait until workers have acknowledged all of them.

        On our own broker, first wait until no session is left behind: it would get some of them.
        """
        if publisher is None:
            await until(self.adopted, "the adoption of a session", 2 * ADOPT_AFTER_S)
        numbers = []
        for device, stream, payload, encoding in visitors:
            name = f"{VISITOR}{device}"
            number = self.ledger.visitor(name)
            numbers.append(number)
            message = Issued(number, name, stream, payload, encoding)
            await self.publish(message, publisher)
        settled = self.ledger.visitors_settled
        await until(lambda: settled.issuperset(numbers), "the visitors' acknowledgements", limit_s)

    async def adopted(self) -> bool:
        """Return whether every session that was left behind has been adopted."""
        query = "SELECT count(*) FROM iov.worker WHERE client_id = ANY($1::text[])"
        return not self.left_behind or await self.ask(query, self.left_behind) == 0

    async def pause(self) -> None:
        """Stop publishing, and wait until the broker has acknowledged every message on its way."""
        self.publishing.clear()
        await until(lambda: not self.outstanding, "the broker's acknowledgements")

    async def all_ready(self) -> bool:
        """Return whether every worker is ready."""
        for worker in self.workers:
            if not await worker.ready():
                return False
        return True

    async def some_published(self, messages: int) -> None:
        """Wait until this many more messages have been published."""
        wanted = self.ledger.published + messages
        await until(lambda: self.ledger.published >= wanted, "the load")

    async def resubscribed(self, before: Sequence[int]) -> None:
        """Wait until every worker has more `subscriptions` than `before`."""
        pairs = list(zip(self.workers, before, strict=True))
        await until(
            lambda: all(worker.subscriptions > count for worker, count in pairs),
            "the workers' subscriptions",
        )


@asynccontextmanager
async def world(
    servers: Servers,
    ledger: Ledger,
    *,
    workers: int,
    logs: Path,
    command: Sequence[str] = COMMAND,
    **settings: str,
) -> AsyncIterator[World]:
    """Run workers while the block runs, ready from its start; `settings` are the workers'."""
    environ = _environment(servers) | {f"IOV_{k.upper()}": v for k, v in settings.items()}
    async with AsyncExitStack() as stack:
        broker = servers.settings.broker
        gate = await stack.enter_async_context(Proxy(broker.host, broker.port, tls=broker.tls()))
        to_gate = replace(broker, url=f"mqtt://127.0.0.1:{gate.port}")
        publisher = Publisher(to_gate, timeout_s=_PUBLISH_TIMEOUT_S)
        numbers = count(1)

        async def hire(
            number: int | None = None, on: Servers | None = None, **more: str
        ) -> ProxiedWorker:
            number = number or next(numbers)
            log = logs / f"worker-{number}.log"
            worker = ProxiedWorker(number, on or servers, command, environ | more, log)
            await worker.open(stack, ledger, whole.unwell.append)
            stack.push_async_callback(_end, worker)
            return worker

        whole = World(servers, ledger, gate, publisher, [], hire, logs)
        whole.workers += [await hire() for _ in range(workers)]
        for worker in whole.workers:
            await worker.start()
        await until(whole.all_ready, f"ready workers (their logs are in {logs})")
        yield whole


async def _end(worker: ProxiedWorker) -> None:
    if worker.process is not None and worker.process.returncode is None:
        worker.process.kill()
        await worker.process.wait()


_BROKER_ID = "verify"


def _environment(servers: Servers) -> dict[str, str]:
    """Return the environment that all workers share."""
    environ = {
        "IOV_MQTT_GROUP": f"iov-verify-{servers.run}",
        "IOV_MQTT_TOPIC": f"{servers.prefix}iov/v1/+/+",
        # The default, host:port, would differ: each worker has a proxy of its own.
        "IOV_MQTT_BROKER_ID": _BROKER_ID,
        "IOV_HTTP_HOST": "127.0.0.1",
        "IOV_COMMIT_TIMEOUT_S": str(COMMIT_TIMEOUT_S),
        "IOV_ADOPT_AFTER_S": str(ADOPT_AFTER_S),
        "IOV_UNSAFE_DATABASE": servers.settings.unsafe_database,
        "IOV_DEAD_LETTER_UNREADABLE": "payload",
        "IOV_DEAD_LETTERS_PER_MINUTE": "1000000000",  # one that is not kept counts as lost
        "IOV_DEAD_LETTER_BYTES_PER_MINUTE": "1000000000000",
    }
    if servers.settings.mqtt_username:
        environ["IOV_MQTT_USERNAME"] = servers.settings.mqtt_username
    if (secret := servers.settings.broker.secret()) is not None:
        environ["IOV_MQTT_PASSWORD"] = secret
    return environ


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("IOV_")}
