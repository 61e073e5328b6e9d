"""Faults that consist of messages: costly ones, or the same ones sent again and again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from random import Random

import zstandard

from ingest.config import Settings
from ingest.decode import MessageLimits
from ingest.errors import ServerError
from ingest.lab.hostile import frames, shapes, vary
from ingest.lab.until import LIMIT_S, until
from ingest.lab.verify.faults.database import deadlocks
from ingest.lab.verify.faults.fault import MOMENT_S, Fault
from ingest.lab.verify.world import ADOPT_AFTER_S, Visitor, World
from ingest.model import GBT32960
from ingest.schema import load_catalogue

_HOSTILE, _FRAMES = 20, 5
_AGAIN, _TIMES = 1_000, 3


async def _hostile_message(world: World, chance: Random) -> None:
    """Publish messages as costly as allowed: each must be acknowledged, and no worker may crash."""
    now, limits = datetime.now(UTC), MessageLimits.of(Settings())
    dear = chance.sample(list(shapes(load_catalogue())), _HOSTILE)
    visitors: list[Visitor] = []
    for number, shape in enumerate(dear):
        text = vary(shape, chance).text(now, limits)
        packed = zstandard.compress(text, 3)
        if len(packed) <= limits.payload_bytes:
            visitors.append((f"hostile-{number}", shape.stream, packed, "zstd"))
    for number, (_, frame) in enumerate(chance.sample(list(frames(now)), _FRAMES)):
        packed = zstandard.compress(frame, 3)
        visitors.append((f"hostile-frame-{number}", GBT32960, packed, "zstd"))
    await world.visit(visitors, MOMENT_S * 6)


async def _duplicate_storm(world: World, chance: Random) -> None:
    """Publish messages stored a moment ago three times more, out of order and to any worker.

    All must be acknowledged, no sample may be stored again, and no two workers may deadlock.
    """
    ledger = world.ledger
    await until(lambda: ledger.settled >= _AGAIN, "messages to repeat")
    settled = [n for n in range(ledger.issued) if ledger.settled_s(n) < float("inf")]
    numbers = settled[-_AGAIN:] * _TIMES
    chance.shuffle(numbers)
    repeated, dead = ledger.repeated, await deadlocks(world)
    waiting = iter(numbers)

    async def publish() -> None:
        for number in waiting:
            await world.publish(ledger.message(number))

    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(publish(), name=f"repeat {number}")
    # A share of them may wait in a session that was left behind, until it is adopted.
    limit_s = 3 * ADOPT_AFTER_S if world.left_behind else LIMIT_S
    wanted = repeated + len(numbers)
    await until(lambda: ledger.repeated >= wanted, "their acknowledgements", limit_s)
    if more := await deadlocks(world) - dead:
        raise ServerError(f"{more} deadlocks between workers that store the same samples")


FAULTS = (
    Fault("hostile_message", "messages as dear as the limits allow", _hostile_message),
    Fault("duplicate_storm", "a thousand messages come three times more", _duplicate_storm),
)
