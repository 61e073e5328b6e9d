"""Check of this machine's clock, because that clock decides which samples are too old.

The database's clock is the reference. Between two comparisons with it, our wall clock must advance
like our monotonic clock. If they diverge, somebody has set the wall clock, and no sample is judged
by it until the next comparison. A clock that was 31 days ahead had every good sample of a fleet
rejected as too old.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from ingest.model import Arrival

MOST_OFF_S = 60.0


class Clock:
    """State of this machine's clock, as far as it is known."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """Message that the clock is wrong; None if it is right or not compared yet."""
        self._apart_s: float | None = None
        self._looked = asyncio.Event()

    def look(self, here: datetime, monotonic_s: float, there: datetime) -> None:
        """Compare our `here` and `monotonic_s` with the database's `there`, all read at one moment.

        This is called again and again. Each call wakes `looked`; its caller then asks `doubts`
        again.
        """
        ahead_s = (here - there).total_seconds()
        self._apart_s = there.timestamp() - monotonic_s
        self.problem = None
        if abs(ahead_s) > MOST_OFF_S:
            way = "ahead of" if ahead_s > 0 else "behind"
            self.problem = (
                f"this machine's clock is {abs(ahead_s):.0f} s {way} the database's: mend it; "
                "nothing is judged by its age or acknowledged until then"
            )
        self._looked.set()

    def doubts(self, arrival: Arrival) -> bool:
        """Return whether an arrival was stamped by a clock that is wrong or not compared yet."""
        if self._apart_s is None:
            return True
        apart_s = arrival.at.timestamp() - arrival.monotonic_s
        return abs(apart_s - self._apart_s) > MOST_OFF_S

    async def looked(self) -> None:
        """Wait for the next call of `look`."""
        self._looked.clear()
        await self._looked.wait()
