from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from ingest.clock import Clock
from ingest.model import Arrival

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def test_nothing_is_judged_before_somebody_has_looked() -> None:
    clock = Clock()
    assert clock.doubts(Arrival(NOW, 0.0))
    assert clock.problem is None


@pytest.mark.parametrize(
    ("ahead_s", "way"), [(59, None), (-59, None), (61, "61 s ahead of"), (-90, "90 s behind")]
)
def test_a_clock_that_is_a_minute_off_is_wrong(ahead_s: int, way: str | None) -> None:
    clock = Clock()
    here = NOW + timedelta(seconds=ahead_s)
    clock.look(here, 5.0, NOW)
    assert clock.doubts(Arrival(here, 5.0)) is (way is not None)
    assert (clock.problem is None) is (way is None)
    assert (way or "") in (clock.problem or "")


def test_a_clock_that_was_set_since_the_last_look_is_doubted_until_the_next() -> None:
    clock = Clock()
    clock.look(NOW, 5.0, NOW)
    assert not clock.doubts(Arrival(NOW + timedelta(seconds=100), 105.0))
    ahead = Arrival(NOW + timedelta(days=31), 106.0)
    assert clock.doubts(ahead)
    clock.look(NOW + timedelta(seconds=101), 106.0, NOW + timedelta(seconds=101))
    assert clock.doubts(ahead)
    assert not clock.doubts(Arrival(NOW + timedelta(seconds=101), 106.0))


async def test_who_waits_goes_on_with_the_next_look() -> None:
    clock = Clock()
    waiting = asyncio.create_task(clock.looked())
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.look(NOW, 0.0, NOW)
    await waiting
