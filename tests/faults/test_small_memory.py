"""A worker in the memory that the shipped containers give it, and messages made to hurt.

`HOSTILE_TEST_S=3600` makes it an hour, of the dearest of all messages that the search knows.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import orjson
import pytest
import structlog
import zstandard

from ingest.config import Settings
from ingest.decode import MessageLimits
from ingest.lab.bench.hostile import Scales
from ingest.lab.hostile import Shape, shapes
from ingest.lab.verify import World, embedded
from ingest.lab.verify.ledger import Ledger
from ingest.lab.verify.world import world
from ingest.schema import Catalogue

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("HOSTILE_TEST_S", "8"))
TRIED = 24 if SECONDS < 600 else None
DEAREST = 25
MEMORY_BYTES = 512 * 1024 * 1024
"""As in the manifests: `resources.limits` of k8s, `mem_limit` of compose."""
NEIGHBOUR_S = 5.0
EVERY_S = 0.1

log = structlog.get_logger("test")


class Group:
    """A memory control group."""

    def __init__(self, path: Path, limit: str, peak: str) -> None:
        self.path = path
        with (path / limit).open("r+") as file:  # which must be there
            file.write(str(MEMORY_BYTES))
        self._peak = path / peak

    @property
    def peak_mb(self) -> float:
        return int(self._peak.read_text()) / 1e6

    @property
    def kills(self) -> int:
        """Count the processes of it that were killed for want of memory."""
        lines = [
            line.split()
            for name in ("memory.events", "memory.oom_control")
            if (self.path / name).exists()
            for line in (self.path / name).read_text().splitlines()
        ]
        return next(int(number) for key, number in lines if key == "oom_kill")

    def command(self) -> tuple[str, ...]:
        """Starts a worker in it."""
        enter = f"echo $$ > {self.path}/cgroup.procs && exec {sys.executable} -m ingest run"
        return ("sh", "-c", enter)


@contextmanager
def group() -> Iterator[Group]:
    """Make one of version 2 or 1 (cgroups(7)); skip the test if that is not allowed."""
    name = f"iov-test-{os.getpid()}"
    root = Path("/sys/fs/cgroup")
    made: list[Path] = []
    for path, limit, peak in (
        (root / name, "memory.max", "memory.peak"),
        (root / "memory" / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    ):
        try:
            path.mkdir()
            made.append(path)
            found = Group(path, limit, peak)
        except OSError:
            continue
        break
    else:
        for path in made:
            path.rmdir()
        # A container or a user without rights may make none.
        pytest.skip("no memory control group may be made here")
    yield found
    for path in made:
        path.rmdir()


def dearest(catalogue: Catalogue) -> list[tuple[str, bytes]]:
    """(stream, packed) of the messages that take the most time, and the most memory."""
    scales, chance, limits = Scales(catalogue), Random(1), MessageLimits.of(Settings())
    known = list(shapes(catalogue))
    tried = known if TRIED is None else chance.sample(known, TRIED)

    def packed(shape: Shape) -> bytes:
        return zstandard.compress(shape.text(scales.at, limits), 3)

    costs = []
    for shape in tried:
        cost = scales.weigh(
            shape.what,
            f"iov/v1/V1/{shape.stream}",
            shape.text(scales.at, limits),
        )
        if cost.seconds:
            costs.append((cost, shape))
    slow = sorted(costs, key=lambda c: -c[0].seconds)[:DEAREST]
    large = sorted(costs, key=lambda c: -c[0].peak_mb)[:DEAREST]
    return [(shape.stream, packed(shape)) for _, shape in slow + large]


async def test_a_worker_in_a_small_container_outlives_the_dearest_messages_and_serves_others(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """One device sends nothing else, one after the other; another one never waits for long."""
    messages = dearest(catalogue)
    ledger = Ledger(1, 1, datetime.now(UTC))
    ends_s = longest_s = 0.0
    said = hurt = 0

    async def neighbour(whole: World) -> None:
        nonlocal longest_s, said
        while time.monotonic() < ends_s:
            began_s = time.monotonic()
            sample = {"ts": datetime.now(UTC).isoformat(), "seq": said, "speed_kmh": 50}
            # Acknowledged is what was committed.
            await whole.visit([("neighbour", "nev", orjson.dumps(sample), None)], NEIGHBOUR_S)
            longest_s, said = max(longest_s, time.monotonic() - began_s), said + 1
            await asyncio.sleep(EVERY_S)  # how often it says something

    async def attacker(whole: World) -> None:
        nonlocal hurt
        while time.monotonic() < ends_s:
            stream, payload = messages[hurt % len(messages)]
            await whole.visit([("hostile", stream, payload, "zstd")], NEIGHBOUR_S)
            hurt += 1

    with group() as small:
        async with embedded() as servers:  # noqa: SIM117  the servers are needed first
            async with world(
                servers, ledger, workers=1, logs=tmp_path, command=small.command()
            ) as whole:
                worker = whole.workers[0].process
                ends_s = time.monotonic() + SECONDS
                async with whole.publisher, asyncio.TaskGroup() as tasks:
                    tasks.create_task(neighbour(whole))
                    tasks.create_task(attacker(whole))
                assert worker is not None
                assert worker.returncode is None
                stored = await whole.ask(
                    "SELECT count(*) FROM iov.nev JOIN iov.device USING (device_id) "
                    "WHERE device = 'visitor-neighbour'"
                )
        log.info("served", dear=hurt, neighbour=said, slowest_s=longest_s, peak_mb=small.peak_mb)
        assert stored == said
        assert hurt > 0
        assert small.kills == 0
