"""Headless Chromium, controlled over the DevTools protocol."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from ingest.child import child
from ingest.lab.until import until

# Without these options Chromium looks up its maker's hosts at every start.
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def chromium() -> str | None:
    """Return the path of Chromium; None if it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self.exceptions: list[str] = []
        """Exceptions that scripts did not catch, and their output to the console."""
        self.refused: list[str] = []
        """Messages of the browser about a page's requests."""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its answer; note the page's events meanwhile."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            match message.get("method"):
                case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                    self.exceptions.append(str(message["params"]))
                case "Log.entryAdded":
                    entry = message["params"]["entry"]
                    texts = self.refused if entry["source"] == "network" else self.exceptions
                    texts.append(entry["text"])

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@asynccontextmanager
async def browsing(url: str, directory: Path, width: int = 1200) -> AsyncIterator[Browser]:
    """Open a page while the block runs; the browser's profile is in `directory`."""
    program = chromium()
    assert program is not None
    process = await child(
        program, *_QUIET, f"--user-data-dir={directory}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while b"DevTools listening on" not in (line := await process.stderr.readline()):
                assert line, "Chromium ended"
        address = line.split()[-1].decode().removeprefix("ws://").split("/")[0]
        # Chromium stops and waits if its output is not read.
        async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as client:
            reading = tasks.create_task(process.stderr.read(), name="what Chromium says")
            async with client.get(f"http://{address}/json/list") as answer:
                pages = [page for page in await answer.json() if page["type"] == "page"]
            async with client.ws_connect(
                pages[0]["webSocketDebuggerUrl"], max_msg_size=0
            ) as socket:
                browser = Browser(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await browser.call(f"{domain}.enable")
                await browser.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
                )  # fmt: skip
                await browser.call("Page.navigate", url=url)
                there = f"location.href == {url!r} && document.readyState == 'complete'"
                await until(lambda: browser.evaluate(there), f"{url} to be loaded")
                yield browser
            reading.cancel()
    finally:
        process.terminate()
        await process.wait()
