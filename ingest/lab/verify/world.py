"""The workers, the proxies between them and the servers, and who may break what of it."""

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
"""What workers are told: a silent database is left after so long."""
ADOPT_AFTER_S = 60
"""Seconds of silence after which workers are told to adopt a session: the least there may be."""
_PUBLISH_TIMEOUT_S = 2.0


class ProxiedWorker(WorkerProcess):
    """One worker process with a proxy to each server; what it says goes to a file."""

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
        """Return what it is told."""
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
        """Return whether it says that it would store a message now; false while it is frozen."""
        return not self.frozen and await super().ready()

    def resources(self) -> tuple[float, int] | None:
        """(resident memory in MB, open file descriptors); None while it does not run."""
        if self.process is None:
            return None
        proc = Path("/proc") / str(self.process.pid)
        try:
            pages = int((proc / "statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(list((proc / "fd").iterdir()))
        except (OSError, IndexError):
            return None


class Hire(Protocol):
    """Makes one more worker."""

    async def __call__(
        self, number: int | None = None, on: Servers | None = None, **more: str
    ) -> ProxiedWorker:
        """With its proxies open, and not started; by default of a new number, `on` our servers.

        `more` of environment than the others have.
        """


Visitor = tuple[str, str, bytes, str | None]
"""(end of the device's name, stream, payload, encoding) of a message that is no debt."""


@dataclass
class World:
    """Everything while it runs."""

    servers: Servers
    ledger: Ledger
    gate: Proxy
    """Between publisher and broker."""
    publisher: Publisher
    """Through the gate."""
    workers: list[ProxiedWorker]
    hire: Hire
    logs: Path
    publishing: asyncio.Event = field(default_factory=asyncio.Event)
    outstanding: int = 0
    """Messages on their way to the broker."""
    unwell: list[str] = field(default_factory=list)
    """What went wrong besides the messages."""
    left_behind: list[str] = field(default_factory=list)
    """Client ids whose sessions somebody has to adopt."""

    @property
    def victims(self) -> list[ProxiedWorker]:
        """Who may be killed: not the first, whose memory is to tell the whole story."""
        return self.workers[1:] or self.workers

    async def ask(self, query: str, *args: Any) -> Any:
        """One value from the scratch database, as its owner and past every proxy."""
        async with self.owner() as connection:
            return await connection.fetchval(query, *args)

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection to the scratch database that may write whatever its default says."""
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
        """Publish a message that was issued, now or before; the broker has acknowledged it then."""
        properties = {PROPERTY: str(message.number)}
        if message.encoding:
            properties["content-encoding"] = message.encoding
        topic = f"{self.servers.prefix}iov/v1/{message.device}/{message.stream}"
        await (publisher or self.publisher).publish(topic, message.payload, properties)

    async def visit(
        self, visitors: Sequence[Visitor], limit_s: float, publisher: Publisher | None = None
    ) -> None:
        """Publish messages that are no debts, and wait until workers have acknowledged them all.

        Where a session is left behind they wait for its adoption first: it would get its share.
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
        """Tell if no session is left behind any more."""
        query = "SELECT count(*) FROM iov.worker WHERE client_id = ANY($1::text[])"
        return not self.left_behind or await self.ask(query, self.left_behind) == 0

    async def pause(self) -> None:
        """Stop publishing, and wait until the broker has acknowledged what was begun."""
        self.publishing.clear()
        await until(lambda: not self.outstanding, "the broker's acknowledgements")

    async def all_ready(self) -> bool:
        """Whether every worker is ready."""
        for worker in self.workers:
            if not await worker.ready():
                return False
        return True

    async def some_published(self, messages: int) -> None:
        """Wait until so many more messages were published."""
        wanted = self.ledger.published + messages
        await until(lambda: self.ledger.published >= wanted, "the load")

    async def resubscribed(self, before: Sequence[int]) -> None:
        """Wait until every worker has subscribed since it had so many subscriptions."""
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
    """Workers on the servers while the block runs, ready from the start; `settings` are theirs."""
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
    """What every worker is told, but for what is its own."""
    environ = {
        "IOV_MQTT_GROUP": f"iov-verify-{servers.run}",
        "IOV_MQTT_TOPIC": f"{servers.prefix}iov/v1/+/+",
        # Each worker has a port of its own to it.
        "IOV_MQTT_BROKER_ID": _BROKER_ID,
        "IOV_HTTP_HOST": "127.0.0.1",
        "IOV_COMMIT_TIMEOUT_S": str(COMMIT_TIMEOUT_S),
        "IOV_ADOPT_AFTER_S": str(ADOPT_AFTER_S),
        "IOV_UNSAFE_DATABASE": servers.settings.unsafe_database,
        "IOV_DEAD_LETTER_UNREADABLE": "payload",
        "IOV_DEAD_LETTERS_PER_MINUTE": "1000000000",  # each is a debt
        "IOV_DEAD_LETTER_BYTES_PER_MINUTE": "1000000000000",
    }
    if servers.settings.mqtt_username:
        environ["IOV_MQTT_USERNAME"] = servers.settings.mqtt_username
    if (secret := servers.settings.broker.secret()) is not None:
        environ["IOV_MQTT_PASSWORD"] = secret
    return environ


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("IOV_")}
