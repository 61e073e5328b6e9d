"""The shipped Prometheus configuration, run by a real Prometheus."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from ingest.tools.embedded import free_port
from tests.support import until

SHIPPED = Path(__file__).parents[1] / "deploy" / "prometheus"
_PLACES = f"{Path(sys.prefix) / 'prometheus' / 'usr' / 'bin'}:/usr/bin:/usr/local/bin"


def program(name: str) -> str:
    """Where a program of Prometheus' is; the test is skipped where it is nowhere."""
    found = shutil.which(name) or shutil.which(name, path=_PLACES)
    if found is None:
        pytest.skip(f"no {name}: tests/install-tools fetches it where there is apt-get")
    return found


@asynccontextmanager
async def prometheus(directory: Path, port: int, every: str = "200ms") -> AsyncIterator[str]:
    """Prometheus on the shipped configuration, in a hurry; its URL."""
    address = f"127.0.0.1:{free_port()}"
    for file in SHIPPED.glob("*.yml"):
        # 15 s between two looks is right for an operator and long for a test.
        text = file.read_text().replace("_interval: 15s", f"_interval: {every}")
        (directory / file.name).write_text(text.replace("[5m]", "[5s]").replace("[1m]", "[5s]"))
    (directory / "targets").mkdir()
    targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {}}]
    (directory / "targets" / "workers.json").write_bytes(orjson.dumps(targets))
    process = await asyncio.create_subprocess_exec(
        program("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    )
    try:
        await until(lambda: _answers(f"http://{address}/-/ready"), "Prometheus")
        yield f"http://{address}"
    finally:
        process.terminate()
        await process.wait()


async def _answers(url: str) -> bool:
    """Whether somebody is there and well; while Prometheus starts it answers 503."""
    try:
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            return answer.ok
    except aiohttp.ClientError:
        return False


async def ask(url: str, expression: str) -> list[dict[str, Any]]:
    """What an expression comes to now."""
    return await _query(f"{url}/api/v1/query", query=expression)


async def ask_range(
    url: str, expression: str, start: float, end: float, step_s: float
) -> list[dict[str, Any]]:
    """What an expression came to between two instants (Unix seconds), step by step."""
    return await _query(
        f"{url}/api/v1/query_range",
        query=expression, start=str(start), end=str(end), step=str(step_s),
    )  # fmt: skip


async def _query(url: str, **parameters: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as client, client.get(url, params=parameters) as answer:
        document = await answer.json()
    assert document["status"] == "success", document
    found: list[dict[str, Any]] = document["data"]["result"]
    return found
