"""The servers, the proxies before them, and the workers: everything that `verify` may break.

Embedded, it breaks servers of its own. On configured servers it breaks its own proxies and a
scratch database, and every topic has a prefix of its own, so that no other worker hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from uuid import uuid4

import aiohttp
import asyncpg

from ingest.config import Settings, load
from ingest.errors import ServerError
from ingest.schema import load_catalogue
from ingest.store import connect, migrate
from ingest.tools.embedded import Mosquitto, Postgres, free_port, mosquitto, postgres
from ingest.tools.proxy import Proxy
from ingest.tools.verify.ledger import Ledger
from ingest.tools.verify.tap import Tap

COMMAND = (sys.executable, "-m", "ingest", "run")
COMMIT_TIMEOUT_S = 5.0
"""What workers are told: a silent database is left after so long."""
_EMBEDDED_KEEP_ALIVE_S, _USUAL_KEEP_ALIVE_S = 10.0, 30.0
"""mosquitto is told its least, so that a silence need not be long."""
_FILE_SYSTEM_BYTES = 6 * 1024**3
_WAIT_S = 60.0
_LOOK_EVERY_S = 0.02
_ROLE = "iov_verify"


async def until(condition: Callable[[], Any], what: str, limit_s: float = _WAIT_S) -> None:
    """Wait for `condition`, plain or async, to hold; raises ServerError after `limit_s`."""
    try:
        async with asyncio.timeout(limit_s):
            while True:
                value = condition()
                if await value if asyncio.iscoroutine(value) else value:
                    return
                await asyncio.sleep(_LOOK_EVERY_S)
    except TimeoutError:
        raise ServerError(f"waited {limit_s:.0f} s in vain for {what}") from None


@dataclass
class Servers:
    """What there is to work with, and what of it may be broken."""

    settings: Settings
    """To publish, and to own the scratch database."""
    database_url: str
    """The scratch database, as its owner."""
    worker_url: str
    """The same as the workers' user."""
    run: str
    """Name of this run, in client ids, group and scratch database."""
    prefix: str = ""
    """Before `iov/v1` in every topic."""
    keep_alive_s: float = _USUAL_KEEP_ALIVE_S
    database: Postgres | None = None
    broker: Mosquitto | None = None
    small_disk: SmallDisk | None = None
    """The file system that holds nothing but the database, where one could be made."""

    def cannot(self, needed: str) -> str | None:
        """Why a fault that needs `needed` to be ours is impossible; None where it is not."""
        if not needed or getattr(self, needed) is not None:
            return None
        if needed == "small_disk" and self.database is not None:
            return "a file system of its own may not be mounted here"
        return f"the {needed.replace('_', ' ')} is not ours to break"

    @property
    def scratch(self) -> str:
        """Name of the scratch database."""
        return urlsplit(self.database_url).path.lstrip("/")


class Worker:
    """One worker process with a proxy to each server; what it says goes to a file."""

    def __init__(
        self,
        number: int,
        servers: Servers,
        command: Sequence[str],
        environ: Mapping[str, str],
        log: Path,
    ) -> None:
        self.number = number
        self.client_id = f"iov-verify-{servers.run}-{number}"
        self.process: asyncio.subprocess.Process | None = None
        self.subscriptions = 0
        """How many SUBACKs it was sent."""
        self.crashes = 0
        """How often it ended by itself."""
        self.frozen = False
        self._servers, self._command, self._environ, self._log = servers, command, environ, log
        self._port = free_port()
        self.broker: Proxy
        self.database: Proxy

    async def open(self, stack: AsyncExitStack, ledger: Ledger) -> None:
        """Its proxies, listening until the stack unwinds."""
        settings = self._servers.settings
        self.broker = await stack.enter_async_context(
            Proxy(
                settings.broker.hostname,
                settings.broker_port,
                tls=settings.tls(),
                listener=lambda: Tap(ledger.settle, self._subscribed).listener(),
            )
        )
        self.database = await stack.enter_async_context(Proxy(*address(self._servers.worker_url)))

    def _subscribed(self) -> None:
        self.subscriptions += 1

    async def start(self) -> None:
        """Start the process; it is ready when `ready` says so."""
        with self._open_log() as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_without_settings(), **self._environ, **self._own()},
            )

    def _open_log(self) -> IO[bytes]:
        return self._log.open("ab")

    def _own(self) -> dict[str, str]:
        url = through(self._servers.worker_url, self.database.port)
        return {
            "IOV_MQTT_URL": f"mqtt://127.0.0.1:{self.broker.port}",
            "IOV_DATABASE_URL": url,
            "IOV_MQTT_CLIENT_ID": self.client_id,
            "IOV_HTTP_PORT": str(self._port),
        }

    async def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.terminate()
        return await process.wait()

    async def left(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self.process is not None
        status = await self.process.wait()
        self.process = None
        return status

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        process, self.process = self.process, None
        process.kill()
        await process.wait()

    async def revive(self) -> None:
        """Start it again where it ended by itself, and count that."""
        if self.process is not None and self.process.returncode is not None:
            self.crashes += 1
            await self.start()

    async def ready(self) -> bool:
        """Whether it says it would store a message now."""
        if self.process is None or self.frozen:
            return False
        try:
            timeout = aiohttp.ClientTimeout(total=1)
            async with (
                aiohttp.ClientSession(timeout=timeout) as client,
                client.get(f"http://127.0.0.1:{self._port}/readyz") as answer,
            ):
                return answer.ok
        except (aiohttp.ClientError, TimeoutError):
            return False

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


@dataclass
class World:
    """Everything while it runs."""

    servers: Servers
    ledger: Ledger
    gate: Proxy
    """Between publisher and broker."""
    workers: list[Worker]
    logs: Path
    publishing: asyncio.Event = field(default_factory=asyncio.Event)
    outstanding: int = 0
    """Messages on their way to the broker."""
    unwell: list[str] = field(default_factory=list)
    """What went wrong besides the messages."""

    @property
    def victims(self) -> list[Worker]:
        """Who may be killed: not the first, whose memory is to tell the whole story."""
        return self.workers[1:] or self.workers

    async def ask(self, query: str, *args: Any) -> Any:
        """One value from the scratch database, as its owner and past every proxy."""
        async with self.owner() as connection:
            return await connection.fetchval(query, *args)

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection to the scratch database that may write whatever its default says."""
        settings = load(environ={"IOV_DATABASE_URL": self.servers.database_url})
        connection = await connect(
            settings, "iov-ingest verify", default_transaction_read_only="off"
        )
        try:
            yield connection
        finally:
            connection.terminate()

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
        broker = servers.settings
        gate = await stack.enter_async_context(
            Proxy(broker.broker.hostname, broker.broker_port, tls=broker.tls())
        )
        crew = [
            Worker(number, servers, command, environ, logs / f"worker-{number}.log")
            for number in range(1, workers + 1)
        ]
        whole = World(servers, ledger, gate, crew, logs)
        for worker in crew:
            await worker.open(stack, ledger)
            stack.push_async_callback(_end, worker)
            await worker.start()
        await until(whole.all_ready, f"ready workers (their logs are in {logs})")
        yield whole


async def _end(worker: Worker) -> None:
    if worker.process is not None and worker.process.returncode is None:
        worker.process.kill()
        await worker.process.wait()


def _environment(servers: Servers) -> dict[str, str]:
    """What every worker is told, but for what is its own."""
    environ = {
        "IOV_MQTT_GROUP": f"iov-verify-{servers.run}",
        "IOV_MQTT_TOPIC": f"{servers.prefix}iov/v1/+/+",
        "IOV_HTTP_HOST": "127.0.0.1",
        "IOV_COMMIT_TIMEOUT_S": str(COMMIT_TIMEOUT_S),
        "IOV_DEAD_LETTERS_PER_MINUTE": "1000000000",  # each is a debt
        "IOV_DEAD_LETTER_BYTES_PER_MINUTE": "1000000000000",
    }
    if servers.settings.mqtt_username:
        environ["IOV_MQTT_USERNAME"] = servers.settings.mqtt_username
    if (secret := servers.settings.mqtt_secret()) is not None:
        environ["IOV_MQTT_PASSWORD"] = secret
    return environ


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("IOV_")}


@asynccontextmanager
async def embedded() -> AsyncIterator[Servers]:
    """A database and a mosquitto of our own, the database on a small disk where one can be had."""
    run = uuid4().hex[:8]
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(small_disk())
        database = stack.enter_context(
            postgres({"track_commit_timestamp": "on"}, directory=disk.path if disk else None)
        )
        broker = await stack.enter_async_context(
            mosquitto(f"max_keepalive {_EMBEDDED_KEEP_ALIVE_S:.0f}\n")
        )
        url = database.url_of("verify")
        settings = load(environ={"IOV_MQTT_URL": broker.url, "IOV_DATABASE_URL": url})
        await _scratch(database.url, "verify", settings)
        connection = await asyncpg.connect(url)
        await connection.execute(f"CREATE ROLE {_ROLE} LOGIN IN ROLE iov_worker")
        await connection.close()
        yield Servers(
            settings,
            url,
            database.url_of("verify", _ROLE),
            run,
            keep_alive_s=_EMBEDDED_KEEP_ALIVE_S,
            database=database,
            broker=broker,
            small_disk=disk,
        )


@asynccontextmanager
async def configured(settings: Settings) -> AsyncIterator[Servers]:
    """The configured servers: a scratch database there, dropped at the end, and a topic prefix."""
    run = uuid4().hex[:8]
    name = f"iov_verify_{run}"
    url = _with_database(settings.dsn(), name)
    scratch = load(environ={"IOV_DATABASE_URL": url})
    await _scratch(settings.dsn(), name, scratch)
    try:
        yield Servers(settings, url, url, run, prefix=f"iov-check/verify-{run}/")
    finally:
        connection = await asyncpg.connect(settings.dsn())
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


async def _scratch(admin_url: str, name: str, settings: Settings) -> None:
    connection = await asyncpg.connect(admin_url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    await migrate(settings, load_catalogue())


class SmallDisk:
    """A file system of its own (tmpfs) that can be full at will."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no room: its size becomes what is in use; raises ServerError where it cannot."""
        for _ in range(100):
            at = os.statvfs(self.path)
            # Refused where more has been written in the meantime.
            if _mount("-o", f"remount,size={(at.f_blocks - at.f_bfree) * at.f_frsize}", self.path):
                return
        raise ServerError("the file system could not be filled")

    def free(self) -> None:
        """Give it its size back."""
        _mount("-o", f"remount,size={_FILE_SYSTEM_BYTES}", self.path)


@contextmanager
def small_disk() -> Iterator[SmallDisk | None]:
    """A small disk while the block runs; None where one may not be mounted."""
    with tempfile.TemporaryDirectory(prefix="iov-disk-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        options = f"size={_FILE_SYSTEM_BYTES},mode=755"
        mounted = _mount("-t", "tmpfs", "-o", options, "iov-verify", path)
        try:
            yield SmallDisk(path) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", directory], check=False, capture_output=True)  # noqa: S607  wherever it is


def _mount(*arguments: str | Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(["mount", *arguments], check=False, capture_output=True)  # noqa: S607  wherever it is
        return done.returncode == 0
    return False


def address(url: str) -> tuple[str | None, int | None, str | None]:
    """(host, port, None) of a PostgreSQL URL, or (None, None, path) of its Unix socket."""
    parts, query = urlsplit(url), dict(parse_qsl(urlsplit(url).query))
    host = query.get("host") or unquote(parts.hostname or "localhost")
    port = int(query.get("port") or parts.port or 5432)
    return (None, None, f"{host}/.s.PGSQL.{port}") if host.startswith("/") else (host, port, None)


def through(url: str, port: int) -> str:
    """The same URL by way of a proxy on 127.0.0.1."""
    parts = urlsplit(url)
    query = [(k, v) for k, v in parse_qsl(parts.query) if k not in {"host", "port"}]
    if address(url)[2]:
        query.append(("sslmode", "disable"))
    user = parts.netloc.rpartition("@")[0]
    netloc = f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"
    return parts._replace(netloc=netloc, query=urlencode(query)).geturl()


def _with_database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{quote(name)}").geturl()
