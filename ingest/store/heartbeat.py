"""A worker's heartbeat in the register, what the register asks of it, and who has fallen silent.

It has a connection of its own and keeps it, so that neither a batch that takes long nor a
database that takes no new connections makes a worker look silent that is at work.
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
"""After a time without the register: by then others that work have found it again."""
_TIMEOUT_S = 10.0

log = structlog.get_logger(__name__)


class Heartbeat:
    """Says that this worker is at work."""

    def __init__(
        self,
        database: Database,
        broker: Broker,
        metrics: Metrics,
        asked_to_leave: Callable[[], None],
    ) -> None:
        """`asked_to_leave` is called at each heartbeat while the register asks it."""
        self._asked_to_leave = asked_to_leave
        self.workers: list[register.AtWork] | None = None
        """At work on the same subscription; None while the register is away."""
        self.page_address: str | None = None
        """`host:port` of our page for others; set before `run`."""
        self.silent: list[str] = []
        """Client ids on the same subscription that were not heard of for a while."""
        self.known: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether the register knew this worker before it began."""
        self._database, self._broker = database, broker
        self._metrics = metrics
        self._found_s: float | None = None
        """Monotonic time since when the register has been there without a break."""

    async def run(self) -> None:
        """Beat until cancelled; while the register is away nobody is heard of."""
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
                # That the database is away others say; that it does not take the heartbeat nobody.
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
        """Say who is silent now and who is not any more; not before others could be heard of."""
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
