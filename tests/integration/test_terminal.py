"""Ctrl-C in a real terminal, which sends SIGINT to every process of the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from ingest.child import child
from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from tests.terminal import CTRL_C, terminal


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a path short enough for a Unix socket in it, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        yield Path(directory)


def servers_in(directory: Path) -> list[int]:
    """Processes that have a file in a directory among their arguments: mosquitto, PostgreSQL."""
    found = []
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(directory) in arguments.read_text():
                found.append(int(arguments.parent.name))
    return found


def names_in(directory: Path) -> set[str]:
    """Names of these processes, as far as they are still there."""
    found = set()
    for pid in servers_in(directory):
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


async def test_ctrl_c_ends_the_demo_with_its_account(scratch: Path) -> None:
    async with terminal("demo", "--rate", "1000", scratch=scratch) as screen:
        await screen.shows(r"[1-9]\d*\s+[1-9]\d* .* yes")
        assert not any(map(screen.hears_ctrl_c, servers_in(scratch)))
        screen.press(CTRL_C)
        assert await screen.ended() == 0, screen.shown
        account = dict(re.findall(r"(?m)^ *(published|stored|lost) +([\d,]+)", screen.shown))
    assert int(account["published"].replace(",", "")) > 0
    assert account["stored"] == account["published"]
    assert account["lost"] == "0"
    assert "no connection" not in screen.shown
    assert not servers_in(scratch)


@pytest.mark.parametrize(
    ("command", "begun"),
    [("verify", "published"), ("bench", "committed/s")],
)
async def test_ctrl_c_ends_what_has_servers_of_its_own(
    command: str, begun: str, scratch: Path
) -> None:
    async with terminal(command, scratch=scratch) as screen:
        await screen.shows(begun)
        assert not any(map(screen.hears_ctrl_c, servers_in(scratch)))
        screen.press(CTRL_C)
        assert await screen.ended() == 128 + signal.SIGINT, screen.shown
    assert "Traceback" not in screen.shown
    assert not servers_in(scratch)


async def test_ctrl_c_ends_a_replay_with_its_account(scratch: Path, broker: Mosquitto) -> None:
    hour = datetime(2026, 11, 1, 8, tzinfo=UTC)
    lines = [
        {"topic": "iov/v1/V1/nev", "payload": {"ts": (hour + timedelta(seconds=n)).isoformat()}}
        for n in range(3_600)
    ]
    (scratch / "hour").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    settings = scratch / "settings.toml"
    settings.write_text(f'IOV_MQTT_URL = "{broker.url}"')
    asked = ["replay", str(scratch / "hour"), "--config", str(settings), "--json"]
    async with terminal(*asked, scratch=scratch) as screen:
        await screen.shows(r"[1-9]\d*/3600")
        screen.press(CTRL_C)
        assert await screen.ended() == 0, screen.shown
    assert 0 < orjson.loads(screen.shown.split()[-1])["acknowledged"] < 3_600


async def test_ctrl_c_while_the_database_is_made(scratch: Path) -> None:
    async with terminal("demo", scratch=scratch) as screen:
        await screen.shows("Starting")
        screen.press(CTRL_C)
        assert await screen.ended() == 0
        await screen.shows(r"lost +0")
    assert "Traceback" not in screen.shown
    assert not servers_in(scratch)


async def test_a_temporary_directory_too_deep_for_a_socket_is_said(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    async with terminal("demo", scratch=deep) as screen:
        assert await screen.ended() == 1
        await screen.shows("failed: .*TMPDIR")
    assert "Traceback" not in screen.shown


async def test_of_a_run_that_is_killed_nothing_stays(scratch: Path) -> None:
    """Nobody is left who could end PostgreSQL and mosquitto, or remove what they wrote."""
    process = await child(
        sys.executable, "-m", "ingest", "demo",
        env=os.environ | {"TMPDIR": str(scratch)}, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await until(lambda: {"mosquitto", "postgres"} <= names_in(scratch), "both servers")
    process.kill()
    await process.wait()
    await until(lambda: not servers_in(scratch), "their end")
    await until(lambda: not list(scratch.glob("iov-pg-*")), "the removal of its data")
