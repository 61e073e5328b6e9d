"""A command in a terminal of its own, as a person has it: what it shows, and Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

CTRL_C = b"\x03"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_COLUMNS, _LINES = 160, 50
_PATIENCE_S = 60.0


class Terminal:
    """The other side of a process's terminal."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self._process, self._master = process, master
        self._shown = ""
        self._changed, self._closed = asyncio.Event(), False
        os.set_blocking(master, False)
        asyncio.get_running_loop().add_reader(master, self._read)

    @property
    def shown(self) -> str:
        """Everything shown so far, without control sequences for cursor and colours."""
        return _CONTROL.sub("", self._shown)

    async def shows(self, pattern: str) -> str:
        """Wait for text that matches a regular expression; return the match."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not (found := re.search(pattern, self.shown)):
                    assert not self._closed, f"ended without {pattern}:\n{self.shown[-2_000:]}"
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"nothing like {pattern} in:\n{self.shown[-2_000:]}") from None
        return found[0]

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._master, keys)

    def hears_ctrl_c(self, pid: int) -> bool:
        """Return whether a process is in the command's group, to which Ctrl-C is sent."""
        try:
            return os.getpgid(pid) == self._process.pid
        except ProcessLookupError:
            return False  # it has ended since it was listed

    async def ended(self) -> int:
        """Wait until it ends; return the exit status."""
        async with asyncio.timeout(_PATIENCE_S):
            return await self._process.wait()

    def _read(self) -> None:
        try:
            self._shown += os.read(self._master, 65_536).decode(errors="replace")
        except OSError:  # EIO: nobody has the other side open any more
            self._closed = True
            asyncio.get_running_loop().remove_reader(self._master)
        self._changed.set()


@contextlib.asynccontextmanager
async def terminal(*args: str, scratch: Path) -> AsyncIterator[Terminal]:
    """Run `iov-ingest` with arguments in a terminal; its temporary files go to `scratch`."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))

    def take() -> None:
        # Like a shell. Otherwise SIGINT may be ignored, as for `pytest &` in a script.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest", *args,
        stdin=slave, stdout=slave, stderr=slave, preexec_fn=take,
        env=os.environ | {"TMPDIR": str(scratch), "TERM": "xterm"},
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _PATIENCE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
