"""The shipped Prometheus configuration, run by a real Prometheus."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from ingest.child import child
from ingest.lab.embedded import free_port
from ingest.lab.until import until

SHIPPED = Path(__file__).parents[1] / "deploy" / "prometheus"
_OWN = [str(Path(sys.prefix) / name / "usr" / "bin") for name in ("prometheus", "alertmanager")]
_PLACES = ":".join([*_OWN, "/usr/bin", "/usr/local/bin"])


_TEMPLATES = Path("/usr/share/prometheus/alertmanager/default.tmpl")


def program(name: str) -> str:
    """Return the path of a Prometheus program; skip the test if it is not installed."""
    found = shutil.which(name) or shutil.which(name, path=_PLACES)
    if found is None:
        pytest.skip(f"no {name}: tests/install-tools fetches it where there is apt-get")
    if "alertmanager" in name and not _TEMPLATES.exists():
        pytest.skip(f"no {_TEMPLATES}, which Debian's Alertmanager reads")
    return found


@asynccontextmanager
async def prometheus(
    directory: Path,
    *ports: int,
    every: str = "200ms",
    alertmanager: str | None = None,
    at_once: bool = False,
) -> AsyncIterator[str]:
    """Run Prometheus with the shipped configuration, in short intervals; yield its URL.

    If `alertmanager` (`host:port`) is given, alerts are sent there and do not wait (`for: 0s`).
    With `at_once` alerts do not wait either, look back 5 s, and take 10 s ago for a day ago.
    """
    address = f"127.0.0.1:{free_port()}"
    for file in SHIPPED.glob("*.yml"):
        # Intervals of 15 s are right for an operator and too long for a test.
        text = file.read_text().replace("_interval: 15s", f"_interval: {every}")
        text = text.replace("[5m]", "[5s]").replace("[1m]", "[5s]")
        if alertmanager is not None or at_once:
            text = re.sub(r"for: \d+m", "for: 0s", text)
        if at_once:
            text = re.sub(r"\[\d+m\]", "[5s]", text).replace("offset 1d", "offset 10s")
        (directory / file.name).write_text(text)
    (directory / "alertmanagers").mkdir()
    if alertmanager is not None:
        known = [{"targets": [alertmanager], "labels": {}}]
        (directory / "alertmanagers" / "local.json").write_bytes(orjson.dumps(known))
    (directory / "targets").mkdir()
    (directory / "nodes").mkdir()
    targets = [{"targets": [f"127.0.0.1:{port}" for port in ports], "labels": {}}]
    (directory / "targets" / "workers.json").write_bytes(orjson.dumps(targets))
    process = await child(
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


@asynccontextmanager
async def alertmanager(directory: Path, webhook: str) -> AsyncIterator[str]:
    """Run Alertmanager as shipped, with a webhook as receiver `night`; yield its host:port."""
    address = f"127.0.0.1:{free_port()}"
    text = (SHIPPED / "alertmanager.yml").read_text()
    named = f"  - name: night\n    webhook_configs: [{{url: {webhook!r}}}]\n"
    text = text.replace("  - name: night\n", named).replace("group_wait: 30s", "group_wait: 0s")
    (directory / "alertmanager.yml").write_text(text)
    process = await child(
        program("prometheus-alertmanager"),
        f"--config.file={directory / 'alertmanager.yml'}",
        f"--storage.path={directory / 'alerts'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
        "--log.level=warn",
    )
    try:
        await until(lambda: _answers(f"http://{address}/-/ready"), "Alertmanager")
        yield address
    finally:
        process.terminate()
        await process.wait()


async def _answers(url: str) -> bool:
    """Return whether a server answers with success; while Prometheus starts, it answers 503."""
    try:
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            return answer.ok
    except aiohttp.ClientError:
        return False


async def ask(url: str, expression: str) -> list[dict[str, Any]]:
    """Return the value of an expression now."""
    return await _query(f"{url}/api/v1/query", query=expression)


async def ask_range(
    url: str, expression: str, start: float, end: float, step_s: float
) -> list[dict[str, Any]]:
    """Return the values of an expression between two instants (Unix seconds), step by step."""
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
