"""Whether the broker lets us have fewer messages at a time than we asked for. Pure.

MQTT 5 has no packet that tells. But a broker that keeps to a limit of its own refills it at once
while more is waiting: then the number in flight is at one figure, never above it, most of the time
and whenever something is settled. At another load it touches its highest figure now and then only.
"""

from __future__ import annotations

SPAN_S = 10.0
"""One look at the matter."""
_SETTLES = 100
"""With fewer in a span it is the store that is slow."""
_TIME_SHARE, _SETTLE_SHARE = 0.5, 0.9
_LEAST = 2
"""A window of one cannot be told from messages that come one at a time."""


class BrokerWindow:
    """Follows the number in flight over time."""

    def __init__(self, asked: int) -> None:
        """`asked` is the Receive Maximum that the broker was given."""
        self._asked = asked
        self._level = 0
        self._changed_s: float | None = None
        self.limit: int | None = None
        """What the broker seems to keep to; None while it seems to keep to nothing."""
        self._begin(None)

    def _begin(self, now_s: float | None) -> None:
        self._began_s = now_s
        self._peak = self._settles = self._settles_at_peak = 0
        self._at_peak_s = 0.0

    def changed(self, in_flight: int, now_s: float) -> None:
        """There are so many in flight from now on."""
        if self._began_s is None or self._changed_s is None:
            self._begin(now_s)
        elif self._level == self._peak:
            self._at_peak_s += now_s - self._changed_s
        if in_flight < self._level:
            self._settles += 1
            self._settles_at_peak += self._level == self._peak
        if in_flight > self._peak:
            self._peak, self._settles_at_peak, self._at_peak_s = in_flight, 0, 0.0
        if self.limit is not None and in_flight > self.limit:
            self.limit = None  # it was raised, or was none
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
