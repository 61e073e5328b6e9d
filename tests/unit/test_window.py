from __future__ import annotations

from random import Random

from ingest.source.window import SPAN_S, BrokerWindow


def flow(window: BrokerWindow, limit: int, commit_s: float, refill_s: float) -> None:
    """A broker with more waiting than it lets us have: `limit` at a time, refilled at once."""
    now_s = 0.0
    while now_s < SPAN_S * 1.5:
        for level in range(1, limit + 1, max(1, limit // 3)):
            now_s += refill_s
            window.changed(level, now_s)
        window.changed(limit, now_s)
        now_s += commit_s
        window.changed(0, now_s)


def test_a_broker_that_lets_twenty_through_is_found_out() -> None:
    window = BrokerWindow(10_000)
    flow(window, 20, commit_s=0.004, refill_s=0.0001)
    assert window.limit == 20


def test_a_limit_that_was_raised_is_forgotten() -> None:
    window = BrokerWindow(10_000)
    flow(window, 20, commit_s=0.004, refill_s=0.0001)
    window.changed(20, 20.0)
    assert window.limit == 20
    window.changed(21, 20.1)
    assert window.limit is None


def test_one_at_a_time_may_be_a_quiet_load() -> None:
    window = BrokerWindow(10_000)
    flow(window, 1, commit_s=0.004, refill_s=0.0001)
    assert window.limit is None


def test_our_own_window_is_no_complaint() -> None:
    window = BrokerWindow(20)
    flow(window, 20, commit_s=0.004, refill_s=0.0001)
    assert window.limit is None


def test_a_store_that_takes_nothing_is_none_either() -> None:
    window = BrokerWindow(10_000)
    window.changed(500, 0.0)
    for second in range(60):
        window.changed(500, float(second))
    assert window.limit is None


def test_messages_that_come_as_they_come_are_no_limit() -> None:
    """Two hundred a second by chance, each committed with what came meanwhile."""
    chance, window = Random(1), BrokerWindow(10_000)
    now_s, in_flight, committed_s = 0.0, 0, 0.0
    while now_s < 100:
        now_s += chance.expovariate(200)
        if in_flight and committed_s <= now_s:
            window.changed(0, committed_s)
            in_flight = 0
        if not in_flight:
            committed_s = now_s + 0.004
        in_flight += 1
        window.changed(in_flight, now_s)
    assert window.limit is None
