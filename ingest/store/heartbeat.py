"""A worker's heartbeat in the register, and what the register asks of it in return.

It has a connection of its own and keeps it, so that neither a batch that takes long nor a
database that takes no new connections makes a worker look silent that is at work.
"""

from __future__ import annotations

import asyncio

import structlog

from ingest.config import Settings
from ingest.errors import Unavailable
from ingest.store import registry

EVERY_S = 5.0
_TIMEOUT_S = 10.0

log = structlog.get_logger("store")


class Heartbeat:
    """Says that this worker is at work."""

    def __init__(self, settings: Settings) -> None:
        self.leave_wanted = asyncio.Event()
        """Somebody wants this worker to leave for good: its register, or who sets it."""
        self.asked_to_leave = False
        """The register asks it, so somebody has looked whether others stay."""
        self.workers: int | None = None
        """At work on the same subscription; None while the register is away."""
        self._settings = settings
        self._heard_of = False

    async def run(self) -> None:
        """Beat until cancelled; while the register is away nobody is heard of."""
        while True:
            try:
                async with registry.reading(self._settings) as connection:
                    while True:
                        async with asyncio.timeout(_TIMEOUT_S):
                            asked, self.workers = await registry.heartbeat(
                                connection, self._settings, first=not self._heard_of
                            )
                        self._heard_of = True
                        if asked and not self.asked_to_leave:
                            self.asked_to_leave = True
                            self.leave_wanted.set()
                        await asyncio.sleep(EVERY_S)
            except Unavailable as exc:
                self.workers = None
                log.debug("not heard of", why=str(exc))
            await asyncio.sleep(EVERY_S)
