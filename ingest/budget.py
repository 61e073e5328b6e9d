"""How many dead letters one device may have kept per minute. Pure: the clock is an argument.

A device that sends nothing but garbage must not fill the database. What is beyond its budget is
counted and acknowledged like any rejected sample, and not kept.
"""

from __future__ import annotations

_MINUTE_S = 60.0
_MOST_DEVICES = 50_000
"""With a budget of their own in one minute; what else comes in it shares one."""


class Budget:
    """Dead letters and their bytes, per device, in the current minute."""

    def __init__(self, letters: int, size_bytes: int) -> None:
        self._letters, self._size_bytes = letters, size_bytes
        self._spent: dict[str | None, tuple[int, int]] = {}
        self._ends_s = 0.0

    def exhausted(self, device: str | None, now_s: float) -> bool:
        """Whether nothing more is allowed in this minute, however small."""
        return now_s < self._ends_s and self._spent.get(device, (0, 0))[0] >= self._letters

    def allows(self, device: str | None, size_bytes: int, now_s: float) -> bool:
        """Whether one more letter of that size is kept; it is counted then.

        The first of a minute is, however large, unless the budget is 0 letters. Messages that name
        no device share a budget.
        """
        if now_s >= self._ends_s:
            self._spent.clear()
            self._ends_s = now_s + _MINUTE_S
        if device not in self._spent and len(self._spent) >= _MOST_DEVICES:
            device = None
        letters, spent_bytes = self._spent.get(device, (0, 0))
        if letters >= self._letters or (letters and spent_bytes + size_bytes > self._size_bytes):
            return False
        self._spent[device] = letters + 1, spent_bytes + size_bytes
        return True
