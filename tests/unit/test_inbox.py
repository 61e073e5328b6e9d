from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ingest.model import Delivery
from ingest.source import Inbox
from tests.support import delivery


class Noted:
    """A connection that remembers what was acknowledged on it."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        self.acknowledged += packet_ids


def deliveries(connection: Noted, *packet_ids: int | None) -> list[Delivery]:
    return [delivery(b"1234", connection=connection, packet_id=n) for n in packet_ids]


async def test_lists_come_out_as_they_went_in_and_end_after_close() -> None:
    inbox, here = Inbox(10), Noted()
    first, second = deliveries(here, 1, 2), deliveries(here, 3)
    inbox.put(first, lambda: None)
    inbox.put(second, lambda: None)
    inbox.close()
    inbox.put(deliveries(here, 4), lambda: None)  # stays with the broker
    assert [chunk async for chunk in inbox] == [first, second]
    assert inbox.in_flight == 3


async def test_acknowledgements_go_in_order_each_to_its_own_connection() -> None:
    inbox, old, new = Inbox(10), Noted(), Noted()
    batch = [*deliveries(old, 1, None, 2), *deliveries(new, 1), *deliveries(old, 3)]
    inbox.put(batch, lambda: None)
    inbox.settle(batch)
    assert (old.acknowledged, new.acknowledged) == ([1, 2, 3], [1])
    assert (inbox.in_flight, inbox.in_flight_bytes) == (0, 0)


async def test_a_full_window_resumes_at_half_and_only_once() -> None:
    inbox, here = Inbox(4), Noted()
    resumed: list[int] = []
    batch = deliveries(here, 1, 2, 3, 4)
    states = []
    inbox.put(batch, lambda: resumed.append(1))
    for settled in ([], batch[:1], batch[1:2]):
        inbox.settle(settled)
        states.append(inbox.full)
    assert states == [True, True, False]
    assert resumed == [1]
    inbox.settle(batch[2:])
    assert resumed == [1]


async def test_bytes_fill_the_window_too() -> None:
    inbox, here = Inbox(100, window_bytes=8), Noted()
    batch = deliveries(here, 1, 2)
    inbox.put(batch, lambda: None)
    assert inbox.full
    inbox.settle(batch)
    async with asyncio.timeout(1):
        await inbox.room()


async def test_a_new_connection_that_reads_into_a_full_window_is_resumed_as_well() -> None:
    inbox, old, new = Inbox(4), Noted(), Noted()
    resumed: list[str] = []
    first = deliveries(old, 1, 2, 3, 4)
    inbox.put(first, lambda: resumed.append("old"))
    inbox.settle(first[:1])
    second = deliveries(new, 1)
    inbox.put(second, lambda: resumed.append("new"))
    assert inbox.full
    inbox.settle(first[1:])
    assert resumed == ["new"]


async def test_the_consumer_waits_for_what_comes() -> None:
    inbox, here = Inbox(4), Noted()
    waiting = asyncio.ensure_future(anext(inbox))
    await asyncio.sleep(0)
    assert not waiting.done()
    chunk = deliveries(here, 1)
    inbox.put(chunk, lambda: None)
    assert await waiting == chunk


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(1, 10))
def test_the_account_of_the_window_closes(chunks: list[int], window: int) -> None:
    async def run() -> None:
        inbox, here = Inbox(window), Noted()
        numbers = iter(range(1, 1_000))
        given_out: list[list[Delivery]] = []
        for size in chunks:
            chunk = deliveries(here, *(next(numbers) for _ in range(size)))
            given_out.append(chunk)
            inbox.put(chunk, lambda: None)
            assert inbox.full or inbox.in_flight < window
        for chunk in given_out:
            inbox.settle(chunk)
        assert (inbox.in_flight, inbox.in_flight_bytes, inbox.full) == (0, 0, False)
        assert here.acknowledged == [d.packet_id for chunk in given_out for d in chunk]

    asyncio.run(run())
