"""Detects a broker that sends fewer messages at a time than Receive Maximum allows. Pure.

MQTT 5 has no packet that reports such a limit. But while messages wait, a broker with a limit of
its own fills each free place at once. Then the number in flight never exceeds the limit, and equals
it most of the time and whenever a message is settled. Under any other load, the number in flight
reaches its highest value only now and then.
"""

from __future__ import annotations

SPAN_S = 10.0
"""Seconds of one observation."""
_SETTLES = 100
"""Number of settlings that a span must have; with fewer, the slow part is the store."""
_TIME_SHARE, _SETTLE_SHARE = 0.5, 0.9
_LEAST = 2
"""Smallest limit to report: a limit of 1 looks the same as messages that come one at a time."""


class BrokerWindow:
    """The number in flight over time, and the limit seen in it."""

    def __init__(self, asked: int) -> None:
        """`asked` is the Receive Maximum that the broker was given."""
        self._asked = asked
        self._level = 0
        self._changed_s: float | None = None
        self.limit: int | None = None
        """Limit that the broker seems to apply; None while it seems to have no limit of its own."""
        self._begin(None)

    def _begin(self, now_s: float | None) -> None:
        self._began_s = now_s
        self._peak = self._settles = self._settles_at_peak = 0
        self._at_peak_s = 0.0

    def changed(self, in_flight: int, now_s: float) -> None:
        """Record that `in_flight` messages are in flight from `now_s` on."""
        # Phase 1: account for the time since the last change, at the level that it had.
        if self._began_s is None or self._changed_s is None:
            self._begin(now_s)
        elif self._level == self._peak:
            self._at_peak_s += now_s - self._changed_s
        # Phase 2: a settling counts for the peak if the number was at its peak until now.
        if in_flight < self._level:
            self._settles += 1
            self._settles_at_peak += self._level == self._peak
        # Phase 3: a new peak begins with no time and no settlings.
        if in_flight > self._peak:
            self._peak, self._settles_at_peak, self._at_peak_s = in_flight, 0, 0.0
        if self.limit is not None and in_flight > self.limit:
            self.limit = None  # it was raised, or there was no limit
        # Phase 4: at the end of a span, judge it and begin the next one.
        self._level, self._changed_s = in_flight, now_s
        assert self._began_s is not None
        if now_s - self._began_s >= SPAN_S:
            if self._stands(now_s - self._began_s) and _LEAST <= self._peak < self._asked:
                self.limit = self._peak
            self._begin(now_s)

    def _stands(self, span_s: float) -> bool:
        return (
            self._settles >= _SETTLES
            and self._settles_at_peak >= _SETTLE_SHARE * self._settles
            and self._at_peak_s >= _TIME_SHARE * span_s
        )
