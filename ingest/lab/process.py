"""A worker, or a supervisor and its workers, as a process of its own, as an operator has it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from ingest.child import child
from ingest.errors import ServerError
from ingest.lab.until import LIMIT_S, until

COMMAND = (sys.executable, "-m", "ingest", "run")


class WorkerProcess:
    """Process of a worker or a supervisor: its start, its HTTP answers, its end."""

    def __init__(
        self,
        environ: Mapping[str, str],
        port: int,
        command: Sequence[str] = COMMAND,
        log: Path | None = None,
    ) -> None:
        """Prepare a process; `environ` is its whole environment, `port` its HTTP port on loopback.

        Its output goes to the file `log`, or without one to the same place as ours.
        """
        self.process: asyncio.subprocess.Process | None = None
        """None before it is started and after it was ended."""
        self.crashes = 0
        """Number of times that it ended by itself."""
        self._environ, self._port, self._command, self._log = environ, port, command, log

    async def start(self, **environ: str) -> None:
        """Start the process, with more environment variables; `ready` says when it is ready."""
        with ExitStack() as stack:
            log = stack.enter_context(self._log.open("ab")) if self._log else None
            self.process = await child(
                *self._command,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                env={**self._environ, **environ},
            )

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal and go on."""
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self, number: signal.Signals | None) -> int:
        """Send a signal, if any, and return the exit status; kill the process after `LIMIT_S`."""
        assert self.process is not None
        process, self.process = self.process, None
        try:
            if number is not None:
                process.send_signal(number)
            async with asyncio.timeout(LIMIT_S):
                return await process.wait()
        except ProcessLookupError:
            self.crashes += 1  # it had just ended by itself
            return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    async def revive(self) -> None:
        """Start it again if it ended by itself, and count that."""
        if self.process is not None and self.process.returncode is not None:
            self.crashes += 1
            await self.start()

    async def get(
        self, path: str, port: int | None = None, timeout_s: float = 5
    ) -> tuple[int, str]:
        """Return status and body; (0, "") if nobody answers."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        url = f"http://127.0.0.1:{port or self._port}{path}"
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as client,
                client.get(url) as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""

    async def ready(self) -> bool:
        """Return whether it says that it would store a message now."""
        return self.process is not None and (await self.get("/readyz"))[0] == HTTPStatus.OK

    async def metric(self, name: str, port: int | None = None) -> float:
        """Return the sum of a sample over its labels; raises ServerError if nobody answers."""
        # Serving all metrics takes a worker 5 ms, serving one a tenth of that.
        status, text = await self.get(f"/metrics?name[]={name}", port, timeout_s=30)
        if status != HTTPStatus.OK:
            raise ServerError("the worker does not answer")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        )

    def children(self) -> list[int]:
        """List the processes that it has started (Linux, proc(5))."""
        assert self.process is not None
        pid = self.process.pid
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def until_ready(self) -> None:
        """Wait until it is ready; raises ServerError if it ends before."""

        async def ready_or_ended() -> bool:
            return self.process is None or self.process.returncode is not None or await self.ready()

        await until(ready_or_ended, "a ready worker")
        if self.process is None or self.process.returncode is not None:
            status = self.process.returncode if self.process else "none"
            raise ServerError(f"the worker ended with status {status}")


@asynccontextmanager
async def running(process: WorkerProcess) -> AsyncIterator[WorkerProcess]:
    """Start the process, wait until it is ready, and end it after the block.

    Raises ServerError if it does not end in order, unless the block has ended it.
    """
    await process.start()
    status = 0
    try:
        await process.until_ready()
        yield process
    finally:
        if process.process is not None:
            status = await process.end(signal.SIGTERM)
    if status:
        raise ServerError(f"the worker ended with status {status}")
