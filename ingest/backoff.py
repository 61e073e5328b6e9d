"""Delays before the next attempt. This module computes them; the caller does the waiting."""

from __future__ import annotations

from random import Random


class Backoff:
    """Delays that double from `first_s` to `most_s`, each shortened by up to a half at random."""

    def __init__(self, first_s: float, most_s: float, random: Random) -> None:
        self._first_s, self._most_s, self._random = first_s, most_s, random
        self._next_s = first_s

    def delay_s(self) -> float:
        """Return the seconds to wait now. The next delay is about twice as long, up to `most_s`."""
        delay_s, self._next_s = self._next_s, min(self._next_s * 2, self._most_s)
        return delay_s * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin again with the shortest delay after a success."""
        self._next_s = self._first_s
