"""The servers that `verify` works with: its own (embedded), or the configured ones.

It may break embedded servers. With configured servers it breaks only its own proxies and a scratch
database, and its topics have a prefix of their own, so that no other worker gets its messages.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from uuid import uuid4

import asyncpg

from ingest.config import Settings, load
from ingest.errors import ServerError
from ingest.lab.embedded import Mosquitto, Postgres, mosquitto, postgres
from ingest.schema import load_catalogue
from ingest.store import migrate

_EMBEDDED_KEEP_ALIVE_S, _USUAL_KEEP_ALIVE_S = 10.0, 30.0
"""Seconds of keep-alive; 10 is the least mosquitto allows, and keeps faults of silence short."""
_FILE_SYSTEM_BYTES = 6 * 1024**3
_ROLE = "iov_verify"
_FAKETIME = "faketime/libfaketimeMT.so.1"
_LIBRARIES = ("usr/lib/*", "usr/local/lib")
"""Directories of libraries: Debian's, and those of an installation by hand."""
_NOT_OURS = {
    "database": "the database is not ours to stop",
    "broker": "the broker is not ours to stop",
    "small_disk": "the database's disk is not ours to fill",
    "plain_user": "no limit holds a superuser, which IOV_DATABASE_URL names",
    "faketime": "libfaketime is not installed: apt-get install libfaketime",
}


@dataclass
class Servers:
    """The servers of a run, and which of them may be broken."""

    settings: Settings
    """Settings for the publisher and for the owner of the scratch database."""
    database_url: str
    """URL of the scratch database for its owner."""
    worker_url: str
    """URL of the scratch database for the workers' user."""
    run: str
    """Name of this run, in client ids, group and scratch database."""
    prefix: str = ""
    """Prefix before `iov/v1` in every topic."""
    keep_alive_s: float = _USUAL_KEEP_ALIVE_S
    database: Postgres | None = None
    broker: Mosquitto | None = None
    plain_user: bool = True
    """True if the workers' user is no superuser, so that a connection limit applies to it."""
    small_disk: SmallDisk | None = None
    """File system that holds only the database; None if it could not be mounted."""

    def cannot(self, needed: str) -> str | None:
        """Return why a fault that needs `needed` is not possible; None if it is possible."""
        if not needed or getattr(self, needed):
            return None
        if needed == "small_disk" and self.database is not None:
            return "a file system of its own may not be mounted here"
        return _NOT_OURS[needed]

    @property
    def faketime(self) -> Path | None:
        """Path of the library that gives a process its own clock; None if it is not installed."""
        found = [path for place in _LIBRARIES for path in Path("/").glob(f"{place}/{_FAKETIME}")]
        return found[0] if found else None

    @property
    def scratch(self) -> str:
        """Name of the scratch database."""
        return urlsplit(self.database_url).path.lstrip("/")


@asynccontextmanager
async def embedded() -> AsyncIterator[Servers]:
    """Run a database and a mosquitto of our own, with a small disk if one can be mounted."""
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
    """Use the configured servers, with a topic prefix and a temporary scratch database."""
    run = uuid4().hex[:8]
    name = f"iov_verify_{run}"
    url = _with_database(settings.database.url, name)
    scratch = load(environ={"IOV_DATABASE_URL": url})
    try:
        await _scratch(settings.database.url, name, scratch)
        connection = await asyncpg.connect(url)
        superuser = await connection.fetchval("SELECT usesuper FROM pg_user WHERE usename = user")
        await connection.close()
        yield Servers(
            settings, url, url, run, prefix=f"iov-check/verify-{run}/", plain_user=not superuser
        )
    finally:
        connection = await asyncpg.connect(settings.database.url)
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.close()


async def _scratch(admin_url: str, name: str, settings: Settings) -> None:
    connection = await asyncpg.connect(admin_url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    await migrate(settings, load_catalogue())


class SmallDisk:
    """A separate file system (tmpfs) that can be made full at will."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Shrink it to the bytes in use, so that it is full; raise ServerError if that fails."""
        for _ in range(100):
            at = os.statvfs(self.path)
            # The new size is refused if more has been written in the meantime.
            if _mount("-o", f"remount,size={(at.f_blocks - at.f_bfree) * at.f_frsize}", self.path):
                return
        raise ServerError("the file system could not be filled")

    def free(self) -> None:
        """Give it its size back."""
        _mount("-o", f"remount,size={_FILE_SYSTEM_BYTES}", self.path)


@contextmanager
def small_disk() -> Iterator[SmallDisk | None]:
    """Mount a small disk while the block runs; yield None if that is not allowed."""
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
    """Return (host, port, None) of a PostgreSQL URL, or (None, None, path) of its Unix socket."""
    parts, query = urlsplit(url), dict(parse_qsl(urlsplit(url).query))
    host = query.get("host") or unquote(parts.hostname or "localhost")
    port = int(query.get("port") or parts.port or 5432)
    return (None, None, f"{host}/.s.PGSQL.{port}") if host.startswith("/") else (host, port, None)


def through(url: str, port: int) -> str:
    """Return the same URL, changed to connect through a proxy on 127.0.0.1."""
    parts = urlsplit(url)
    query = [(k, v) for k, v in parse_qsl(parts.query) if k not in {"host", "port"}]
    if address(url)[2]:
        query.append(("sslmode", "disable"))
    user = parts.netloc.rpartition("@")[0]
    netloc = f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"
    return parts._replace(netloc=netloc, query=urlencode(query)).geturl()


def _with_database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{quote(name)}").geturl()
