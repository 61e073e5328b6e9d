"""Comparison with another program, the peer: it reads the same broker and writes a table.

Our service and the peer run in turn. The user names the peer by its command and its table. Nobody
can see from outside what the peer promises: its own documentation must say what it acknowledges,
and when.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from ingest.errors import ServerError
from ingest.lab.bench.drive import Counters, Run, cpu_s, drive, rss_mb
from ingest.lab.bench.figures import Figures
from ingest.lab.bench.plan import BenchPlan, Peer
from ingest.lab.bench.publisher import Traffic, connected
from ingest.lab.bench.stand import Load, Stand
from ingest.lab.bench.throughput import told

_START_TIMEOUT_S = 30.0
_LOOK_EVERY_S = 0.2


async def peer(stand: Stand, plan: BenchPlan) -> Figures:
    """Measure our service and the peer in turn, on the same messages."""
    if plan.peer is None:
        return {"left_out": "no peer given: --peer-command and --peer-table"}
    found: dict[str, list[Run]] = {"iov-ingest": [], "peer": []}
    for number in range(plan.runs):
        plan.say(f"ours, run {number + 1} of {plan.runs}")
        ours = await stand.run(Load(), plan.seconds, plan.warm_up_s, plan.say)
        found["iov-ingest"].append(ours)
        plan.say(f"the peer, run {number + 1} of {plan.runs}")
        found["peer"].append(await _run(stand, plan, plan.peer))
    return {"command": plan.peer.command} | {name: told(runs) for name, runs in found.items()}


async def _run(stand: Stand, plan: BenchPlan, other: Peer) -> Run:
    async with (
        stand.database(devices=1_000) as url,
        stand.connection(url) as connection,
        _running(stand, other, url) as pid,
    ):

        async def look() -> Counters:
            rows = await _rows(connection, other.table)
            pids = _group(pid)
            used, memory = sum(map(cpu_s, pids)), sum(map(rss_mb, pids))
            return Counters(time.monotonic(), used, memory, rows)

        publisher = await connected(stand.broker.port)
        traffic = Traffic()
        try:
            deadline_s = time.monotonic() + _START_TIMEOUT_S
            # A message that comes before the peer has subscribed is lost.
            while not await _rows(connection, other.table):
                if time.monotonic() > deadline_s or not _group(pid):
                    raise ServerError(f"the peer wrote nothing into {other.table}")
                await publisher.send(traffic.next(1))
                await asyncio.sleep(_LOOK_EVERY_S)
            return await drive(publisher, traffic, look, plan.seconds, plan.warm_up_s, plan.say)
        finally:
            publisher.close()


async def _rows(connection: asyncpg.Connection, table: str) -> int:
    """Return the number of rows of a table; 0 if it does not exist yet."""
    try:
        number: int = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608  the user's own table
    except asyncpg.UndefinedTableError:
        return 0
    return number


@asynccontextmanager
async def _running(stand: Stand, other: Peer, url: str) -> AsyncIterator[int]:
    """Run the peer while the block runs; yield its process group."""
    command = other.command.format(mqtt_url=stand.broker.url, database_url=url)
    process = await asyncio.create_subprocess_shell(command, start_new_session=True)
    try:
        yield process.pid
    finally:
        if _group(process.pid):
            os.killpg(process.pid, signal.SIGTERM)
        await process.wait()


def _group(leader: int) -> list[int]:
    """Return the processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(group) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found
