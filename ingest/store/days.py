"""Days that a batch needs and the database lacks: made on demand, or closed for a while.

A day is a partition of a stream's table. A day that cannot be written is closed: its samples become
dead letters at once, so that they do not hold up the samples of all other days.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

import asyncpg
import structlog

from ingest.budget import Budget
from ingest.errors import TooMuch, Unavailable
from ingest.log import Seldom
from ingest.model import Row
from ingest.store.failures import Locked, meaning
from ingest.store.partitions import make_partitions
from ingest.store.staging import Refusal

CLOSED_S = 60.0
"""Seconds that a day that cannot be written is left alone: each attempt may hold up the rest."""
PARTITIONS_PER_MINUTE = 120
"""Number made on demand for one device: all days accepted by default, of four streams."""
_WAITS = 3
"""Number of waits for the lock that a partition needs, 2 s each, before the day is closed."""
_DETACHING = "55006"
"""SQLSTATE that our function raises if a detach is pending."""

log = structlog.get_logger(__name__)


class Closed(NamedTuple):
    """A day of a stream that cannot be written, by anybody or by one device."""

    until_s: float
    """Monotonic time when it is tried again."""
    why: str


class Days:
    """Maker of one worker's missing days, and list of the days that are closed."""

    def __init__(self) -> None:
        self._closed: dict[tuple[str, date, str | None], Closed] = {}
        """Closed days, by table, day and device; the device None stands for every device."""
        self._waited: Counter[tuple[str, date]] = Counter()
        self._made = Budget(PARTITIONS_PER_MINUTE, 0)
        self._seldom = Seldom()

    @property
    def any_closed(self) -> bool:
        """True if a day is closed, so that rows have to be checked one by one."""
        return bool(self._closed)

    @property
    def closed(self) -> str | None:
        """Sentence about a day that is closed to every device, with the reason; otherwise None."""
        now_s = time.monotonic()
        self._closed = {d: closed for d, closed in self._closed.items() if closed.until_s > now_s}
        return next((closed.why for of, closed in self._closed.items() if of[2] is None), None)

    def refusal(self, table: str, row: Row, now_s: float) -> Refusal | None:
        """Say why a row's day cannot be written for now; None if it can."""
        day = row.ts.date()
        for whose in (None, row.device):
            closed = self._closed.get((table, day, whose))
            if closed is not None and closed.until_s > now_s:
                # A day closed to all is not the device's fault: the dead letter is always kept.
                why = closed.why if whose is None else None
                return Refusal("its day cannot be written", why, closed=True)
        return None

    def close(self, table: str, day: date, why: str) -> None:
        """Leave a day alone for a while."""
        told = f"iov.{table} of {day} cannot be written: {why}"
        if self._seldom.allows(f"day {table}"):
            hint = "its samples are kept in iov.dead_letter; FINALIZE ends a detach that is pending"
            log.error("day cannot be written", why=told, for_s=CLOSED_S, hint=hint)
        self._closed[table, day, None] = Closed(time.monotonic() + CLOSED_S, told)

    async def make(
        self, connection: asyncpg.Connection, table: str, day: date, devices: Mapping[str, None]
    ) -> bool:
        """Make a day's partition; if that cannot be done, close the day and return false.

        The partition is charged to the first of the `devices` that has budget left. Database
        errors for which the day is not to blame are raised.
        """
        now_s = time.monotonic()
        payer = next((d for d in devices if not self._made.exhausted(d, now_s)), None)
        if payer is None:
            why = f"{PARTITIONS_PER_MINUTE} days were made for the device in this minute"
            if self._seldom.allows("days used up"):
                log.warning("days used up", device=next(iter(devices)), table=table, why=why)
            for device in devices:
                self._closed[table, day, device] = Closed(now_s + CLOSED_S, why)
            return False
        try:
            await make_partitions(connection, [(table, day)])
        except asyncpg.PostgresError as exc:
            if connection.is_closed() or not self._blames_the_day(table, day, exc):
                raise
            self.close(table, day, f"{exc.sqlstate}: {exc}")
            return False
        self._made.allows(payer, 0, now_s)
        self._waited.pop((table, day), None)
        return True

    def _blames_the_day(self, table: str, day: date, exc: asyncpg.PostgresError) -> bool:
        """Return true if the day itself cannot be made, false if the server is in trouble.

        A lock that cannot be had blames the day only at every third time (`_WAITS`).
        """
        failure = meaning(exc)
        if isinstance(failure, Locked):
            self._waited[table, day] += 1
            return self._waited[table, day] % _WAITS == 0
        return exc.sqlstate == _DETACHING or type(failure) not in {Unavailable, TooMuch}
