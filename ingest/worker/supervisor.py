"""Several workers on one machine: started, watched, started again when they die, told to stop.

Each worker is a process, because one interpreter uses one core. It has its own client id in the
shared group and its own metrics port, counted up from `IOV_HTTP_PORT`. The supervisor touches no
message; if it is gone, its workers end in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from random import Random

import aiohttp
import structlog

from ingest import web
from ingest.backoff import Backoff
from ingest.child import child
from ingest.config import Settings
from ingest.errors import ConfigError, Unavailable
from ingest.store import register

_FIRST_DELAY_S, _MOST_DELAY_S = 0.5, 30.0
_LASTING_S = 30.0
"""Seconds that a worker must have run to be started again after the shortest delay."""
_ASK_TIMEOUT_S = 2.0
_SURPLUS_EVERY_S = 5.0
_ANY, _LOOPBACK = {"", "0.0.0.0", "::"}, "127.0.0.1"  # noqa: S104  compared with, not bound to

log = structlog.get_logger(__name__)


def environments(settings: Settings, workers: int) -> list[dict[str, str]]:
    """Return the environment variables that each worker has instead of those in the settings.

    The first worker keeps the client id, so that no session is left behind when one worker becomes
    two. Raises ConfigError if a port would be 0 or above 65,535.
    """
    first = settings.http_port
    if not 0 < first <= 65_535 - workers:
        needed = f"{workers + 1} ports from it on, so a fixed one"
        raise ConfigError([f"IOV_HTTP_PORT: {workers} workers need {needed}"])
    name = settings.mqtt_client_id
    return [
        {
            "IOV_MQTT_CLIENT_ID": f"{name}-{number}" if number else name,
            "IOV_HTTP_PORT": str(first + number),
        }
        for number in range(workers)
    ]


class Supervisor:
    """A number of worker processes that are kept running."""

    def __init__(
        self, settings: Settings, command: Sequence[str], workers: int, leave: Sequence[str]
    ) -> None:
        """Set it up; `command` runs one worker by its environment, `leave` takes over a session."""
        self._settings = settings
        self._leave = leave
        self._surplus = re.compile(re.escape(settings.mqtt_client_id) + r"-([1-9][0-9]*)")
        self._environments = environments(settings, workers)
        self._command = command
        self._host = settings.http_host
        self._port = settings.http_port
        self._stop = asyncio.Event()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._random = Random()  # noqa: S311  spreads restarts, protects nothing

    async def run(self) -> bool:
        """Work until `stop` or until all workers have left; return whether all ended in order.

        The port after the last worker's serves a list of where their metrics are, and whether all
        are ready.
        """
        workers = len(self._environments)
        ports = range(self._port, self._port + workers)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S)) as client,
            web.serve(
                self._host, self._port + workers, web.group(ports, lambda: self._problems(client))
            ) as port,
            asyncio.TaskGroup() as tasks,
        ):
            log.info("started", workers=workers, metrics=f"{ports[0]}-{ports[-1]}", http_port=port)
            kept = [
                tasks.create_task(self._keep(number, environment), name=f"worker {number}")
                for number, environment in enumerate(self._environments)
            ]
            surplus = tasks.create_task(self._take_over_surplus(), name="surplus")
            await asyncio.wait(kept)
            surplus.cancel()
        log.info("stopped")
        return all(task.result() == 0 for task in kept)

    def stop(self) -> None:
        """Have every worker drain and end; called again, have them give up at once."""
        self._stop.set()
        self.tell(signal.SIGTERM)

    def tell(self, number: signal.Signals) -> None:
        """Pass a signal on."""
        for process in self._processes.values():
            # A process that has just ended must not keep the signal from the others.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int, environment: Mapping[str, str]) -> int:
        """Start one worker again each time it dies; return its last exit status."""
        backoff = Backoff(_FIRST_DELAY_S, _MOST_DELAY_S, self._random)
        while True:
            started_s = time.monotonic()
            status = await self._one(number, environment)
            if self._stop.is_set() or status == 0:
                log.info("worker ended", worker=number, status=status)
                return status
            if time.monotonic() - started_s >= _LASTING_S:
                backoff.reset()
            delay_s = backoff.delay_s()
            log.error("worker died", worker=number, status=status, starts_again_s=round(delay_s, 1))
            try:
                async with asyncio.timeout(delay_s):
                    await self._stop.wait()
            except TimeoutError:
                continue
            return status

    async def _one(self, number: int, environment: Mapping[str, str]) -> int:
        process = await child(*self._command, env={**os.environ, **environment})
        self._processes[number] = process
        try:
            if self._stop.is_set():
                process.terminate()
            return await process.wait()
        finally:
            del self._processes[number]
            if process.returncode is None:
                process.terminate()

    async def _take_over_surplus(self) -> None:
        """Take over sessions left behind by a supervisor of more workers, until cancelled.

        Their workers are silent, and have our client id with a number that we do not start.
        """
        settings = self._settings
        while True:
            await asyncio.sleep(_SURPLUS_EVERY_S)
            try:
                async with register.opened(settings.database, settings.broker) as opened:
                    silent = await opened.silent(register.SILENT_S)
            except Unavailable:
                continue
            for client_id in (worker.client_id for worker in silent):
                found = self._surplus.fullmatch(client_id)
                if found and int(found[1]) >= len(self._environments):
                    log.info("taking over a worker that is no longer started", client_id=client_id)
                    await self._run_leave(client_id)

    async def _run_leave(self, client_id: str) -> None:
        process = await child(*self._leave, "--client-id", client_id)
        try:
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
        if status:
            log.warning("not taken over", client_id=client_id, status=status, hint="tried again")

    async def _problems(self, client: aiohttp.ClientSession) -> list[str]:
        """Return the reasons why workers are not ready."""
        host = _LOOPBACK if self._host in _ANY else self._host
        asked = [_ask(client, host, environment) for environment in self._environments]
        found = await asyncio.gather(*asked)
        return [f"worker {n}: {why}" for n, whys in enumerate(found) for why in whys]


async def _ask(
    client: aiohttp.ClientSession, host: str, environment: Mapping[str, str]
) -> list[str]:
    url = f"http://{host}:{environment['IOV_HTTP_PORT']}/readyz"
    try:
        async with client.get(url) as response:
            problems: list[str] = (await response.json())["problems"]
            return problems
    except (aiohttp.ClientError, TimeoutError):
        return ["does not answer"]
