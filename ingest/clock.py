"""Whether this machine's clock can be trusted, for it decides what is too old.

The database's clock is the measure. Between two looks at it, wall clock and monotonic clock go on
together; where they come apart the wall clock was set, and nothing is judged by it before the next
look. A clock 31 days ahead once had every good sample of a fleet rejected as too old.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from ingest.model import Arrival

MOST_OFF_S = 60.0


class Clock:
    """What is known of this machine's clock."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """That the clock is wrong; None while it is not, or not known to be."""
        self._apart_s: float | None = None
        self._looked = asyncio.Event()

    def look(self, here: datetime, monotonic_s: float, there: datetime) -> None:
        """Compare: `here` and `monotonic_s` are ours, `there` is the database's, all of one moment.

        Called again and again; what waits goes on if the clock is right.
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
        """Whether an arrival was stamped by a clock that is wrong, or that nobody has looked at."""
        if self._apart_s is None:
            return True
        apart_s = arrival.at.timestamp() - arrival.monotonic_s
        return abs(apart_s - self._apart_s) > MOST_OFF_S

    async def looked(self) -> None:
        """Wait for the next look."""
        self._looked.clear()
        await self._looked.wait()
