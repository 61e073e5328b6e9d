"""The servers that `verify` works with: of its own, or the configured ones.

Embedded, it breaks servers of its own. On configured servers it breaks its own proxies and a
scratch database, and every topic has a prefix of its own, so that no other worker hears of it.
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
"""mosquitto is told its least, so that a silence need not be long."""
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
    plain_user: bool = True
    """The workers' user is no superuser, so that a limit holds it."""
    small_disk: SmallDisk | None = None
    """The file system that holds nothing but the database, where one could be made."""

    def cannot(self, needed: str) -> str | None:
        """Why a fault that needs `needed` to be ours is impossible; None where it is not."""
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
