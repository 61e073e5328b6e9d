"""Days that a batch lacks: made on demand, or closed for a while if they cannot be had.

A day is a partition of a stream's table. What is sent for a closed day becomes dead letters at
once, so that one day that cannot be written does not hold up all others.
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
"""Made on demand for one device: as many days of four streams as are accepted by default."""
_WAITS = 3
"""Times a day's partition is waited for, 2 s each, before the day is closed."""
_DETACHING = "55006"
"""SQLSTATE that our function raises if a detach is pending."""

log = structlog.get_logger(__name__)


class Closed(NamedTuple):
    """A day of a stream that cannot be written, by anybody or by one device."""

    until_s: float
    """Monotonic time when it is tried again."""
    why: str


class Days:
    """Knows the days that one worker could not have, and makes those that it can."""

    def __init__(self) -> None:
        self._closed: dict[tuple[str, date, str | None], Closed] = {}
        """By table, day, and the one device that it is closed to, or None."""
        self._waited: Counter[tuple[str, date]] = Counter()
        self._made = Budget(PARTITIONS_PER_MINUTE, 0)
        self._seldom = Seldom()

    @property
    def any_closed(self) -> bool:
        """Whether rows have to be looked at one by one."""
        return bool(self._closed)

    @property
    def closed(self) -> str | None:
        """Which day nobody can write for now, and why; None if all can be written."""
        now_s = time.monotonic()
        self._closed = {d: closed for d, closed in self._closed.items() if closed.until_s > now_s}
        return next((closed.why for of, closed in self._closed.items() if of[2] is None), None)

    def refusal(self, table: str, row: Row, now_s: float) -> Refusal | None:
        """Say why a row's day cannot be written for now; None if it can."""
        day = row.ts.date()
        for whose in (None, row.device):
            closed = self._closed.get((table, day, whose))
            if closed is not None and closed.until_s > now_s:
                # That a day cannot be had is not the device's fault, and is kept for certain.
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
        """Make a day's partition; return false if it cannot be had, and is closed.

        It is charged to the first of the `devices` that has not used up what one may have made.
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
        """Decide if it is that day that cannot be had, rather than the server that is in trouble.

        A lock blames it only after several times.
        """
        failure = meaning(exc)
        if isinstance(failure, Locked):
            self._waited[table, day] += 1
            return self._waited[table, day] % _WAITS == 0
        return exc.sqlstate == _DETACHING or type(failure) not in {Unavailable, TooMuch}
