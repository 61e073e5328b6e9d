"""Limit of dead letters kept per device and minute. Pure: the clock is an argument.

A device that sends nothing but garbage must not fill the database. A rejected sample beyond the
budget is counted and acknowledged like any other, but its dead letter is not kept.
"""

from __future__ import annotations

_MINUTE_S = 60.0
_MOST_DEVICES = 50_000
"""Number of devices with a budget of their own per minute; all further devices share one budget."""


class Budget:
    """Dead letters and their bytes, per device, in the current minute."""

    def __init__(self, letters: int, size_bytes: int) -> None:
        self._letters, self._size_bytes = letters, size_bytes
        self._spent: dict[str | None, tuple[int, int]] = {}
        self._ends_s = 0.0

    def exhausted(self, device: str | None, now_s: float) -> bool:
        """Return whether the device has used up its number of letters for this minute."""
        return now_s < self._ends_s and self._spent.get(device, (0, 0))[0] >= self._letters

    def allows(self, device: str | None, size_bytes: int, now_s: float) -> bool:
        """Return whether one more letter of this size is kept; if so, count it.

        The first letter of a minute is kept, however large it is, unless the budget is 0 letters.
        Messages that name no device share a budget.
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
