"""A worker's heartbeat in the register, what the register asks of it, and who has fallen silent.

It keeps a connection of its own. Otherwise a busy worker would look silent while a batch takes long
or the database accepts no new connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from ingest.broker import Broker
from ingest.database import Database
from ingest.errors import Unavailable
from ingest.metrics import Metrics
from ingest.store import register

EVERY_S = 5.0
GRACE_S = 20.0
"""Seconds from finding the register until silence counts; by then others have found it too."""
_TIMEOUT_S = 10.0

log = structlog.get_logger(__name__)


class Heartbeat:
    """Sender of the heartbeat of this worker."""

    def __init__(
        self,
        database: Database,
        broker: Broker,
        metrics: Metrics,
        asked_to_leave: Callable[[], None],
    ) -> None:
        """Prepare; each heartbeat calls `asked_to_leave` while this worker is asked to leave."""
        self._asked_to_leave = asked_to_leave
        self.workers: list[register.AtWork] | None = None
        """Workers at work on the same subscription; None while the register is away."""
        self.page_address: str | None = None
        """`host:port` of our page for others; set before `run`."""
        self.silent: list[str] = []
        """Client ids on the same subscription that were not heard of for a while."""
        self.known: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Future that is true if the register had this worker before its first heartbeat."""
        self._database, self._broker = database, broker
        self._metrics = metrics
        self._found_s: float | None = None
        """Monotonic time since which the register has always been there; None while it is away."""

    async def run(self) -> None:
        """Send heartbeats until cancelled; `workers` is None while the register is away."""
        refused = ""
        while True:
            try:
                async with register.opened(self._database, self._broker) as opened:
                    while True:
                        async with asyncio.timeout(_TIMEOUT_S):
                            heard = await opened.heartbeat(
                                first=not self.known.done(), page_address=self.page_address
                            )
                            workers = await opened.at_work()
                            silent = await opened.silent(register.SILENT_S)
                        self._hear(heard)
                        self.workers = workers
                        refused = ""
                        self._note([worker.client_id for worker in silent])
                        await asyncio.sleep(EVERY_S)
            except Unavailable as exc:
                self.workers = self._found_s = None
                # Others report a database that is away; a refused heartbeat is reported only here.
                if type(exc) is Unavailable or str(exc) == refused:
                    log.debug("heartbeat failed", why=str(exc))
                else:
                    refused = str(exc)
                    log.warning(
                        "the register does not take the heartbeat",
                        why=refused,
                        hint="others will take this worker for silent and take its session over",
                    )
            await asyncio.sleep(EVERY_S)

    def _hear(self, heard: register.Heard) -> None:
        if not self.known.done():
            self.known.set_result(heard.known)
        if heard.leave_requested:
            self._asked_to_leave()

    def _note(self, silent: list[str]) -> None:
        """Log who has become silent and who no longer is, once `GRACE_S` has passed."""
        now_s = time.monotonic()
        if self._found_s is None:
            self._found_s = now_s
        if now_s - self._found_s < GRACE_S:
            return
        for client_id in sorted(set(silent) - set(self.silent)):
            log.warning("worker silent", client_id=client_id, hint=mend(client_id))
        for client_id in sorted(set(self.silent) - set(silent)):
            log.info("worker not silent any more", client_id=client_id)
        self.silent = silent
        self._metrics.workers_silent.set(len(silent))


def mend(client_id: str) -> str:
    """Say what to do about a worker that is silent."""
    return (
        "its session goes on taking its share of what is published: start it again, or, with the "
        f"settings of a worker (--config FILE), iov-ingest leave --client-id {client_id}"
    )
