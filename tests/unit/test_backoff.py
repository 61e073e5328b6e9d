from __future__ import annotations

from random import Random

from ingest.backoff import Backoff


def test_delays_grow_to_their_most_and_begin_again() -> None:
    backoff = Backoff(1.0, 8.0, Random(1))
    delays = [backoff.delay_s() for _ in range(6)]
    assert all(most / 2 <= d <= most for d, most in zip(delays, [1, 2, 4, 8, 8, 8], strict=True))
    backoff.reset()
    assert backoff.delay_s() <= 1.0
