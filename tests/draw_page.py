"""Takes pictures of the live page into DIRECTORY: nothing received, busy, the database away.

Each state is taken in light and in dark, at the width of a telephone and of a desktop.
"""

from __future__ import annotations

import asyncio
import base64
import signal
import sys
import tempfile
from itertools import product
from pathlib import Path

from ingest.commands.publisher import Publisher
from ingest.config import load
from ingest.lab.embedded import free_port, mosquitto, postgres
from ingest.lab.fleet import Fleet, Mischief
from ingest.lab.simulate import Simulation
from ingest.lab.until import until
from ingest.schema import load_catalogue
from ingest.store import migrate
from tests.browser import Browser, browsing
from tests.support import (
    environment,
    working,
)

WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
DEVICES, MESSAGES_PER_S, BUSY_S = 200, 300.0, 40.0


async def run(directory: Path) -> None:
    """Start everything, and take the pictures of one state after the other."""
    catalogue, port = load_catalogue(), str(free_port())
    with postgres() as server, tempfile.TemporaryDirectory() as scratch:
        async with mosquitto() as broker:
            settings = load(environ=environment(broker.url, server.url))
            await migrate(settings, catalogue)
            fleet = Fleet(DEVICES, 7, mischief=Mischief(bad=0.02, duplicate=0.01, late=0.01))
            url = f"http://127.0.0.1:{port}/"
            async with (
                working(broker.url, server.url, catalogue, http_port=port) as worker,
                browsing(url, Path(scratch)) as page,
            ):
                await take(page, directory, "nothing")
                async with (
                    working(broker.url, server.url, catalogue, mqtt_client_id="worker-2"),
                    Publisher(settings.broker) as publisher,
                ):
                    simulation = Simulation(fleet, MESSAGES_PER_S, BUSY_S)
                    simulating = asyncio.create_task(simulation.run(publisher))
                    await until(lambda: simulation.samples > MESSAGES_PER_S * BUSY_S / 3)
                    await take(page, directory, "busy")
                    await simulating
                await asyncio.to_thread(server.stop, signal.SIGINT)
                await until(worker.service.problems)
                await page.call("Page.reload")
                await take(page, directory, "database-away")
                await asyncio.to_thread(server.start)


async def take(page: Browser, directory: Path, state: str) -> None:
    """Save pictures of the page in this state, each after it has drawn two more seconds."""
    for scheme, width in product(SCHEMES, WIDTHS):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await page.call("Emulation.setEmulatedMedia", features=[feature])
        await page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < WIDTHS[1],
        )  # fmt: skip
        told = await page.evaluate("history.rate.length")

        async def drawn(told: int = told) -> bool:
            return bool(await page.evaluate("history.rate.length") > told + 1)

        await until(drawn, "the page to be drawn")
        shot = await page.call("Page.captureScreenshot", captureBeyondViewport=True)
        file = directory / f"page-{state}-{scheme}-{width}.png"
        file.write_bytes(base64.b64decode(shot["data"]))
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
