"""Leaving of a running worker for good, so that no message waits for it in its session.

The worker unsubscribes, commits and acknowledges what the broker still has for it, and ends the
session. If a worker does not return, its session is taken over instead (`takeover`).
"""

from __future__ import annotations

import asyncio
import time

import structlog

from ingest.broker import Broker
from ingest.database import Database
from ingest.errors import Unavailable
from ingest.source import Source, Stage
from ingest.store import register
from ingest.store.register import Registered

QUIET_S = 2.0
"""Seconds of being connected with nothing in flight and nothing new, before asking the broker."""
_LOOK_EVERY_S = 0.1
_STRIKE_OFF_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


class Leave:
    """The leaving of one worker: `ask` starts it, `run` does it beside the other tasks."""

    def __init__(self, database: Database, broker: Broker, source: Source) -> None:
        self._database, self._broker, self._source = database, broker, source
        self.asked = asyncio.Event()
        """Set while this worker is asked to leave; cleared if it refuses."""
        self._granted = False

    def ask(self, *, granted: bool = False) -> None:
        """Ask this worker to leave.

        If no other worker is there to take new messages, it logs the reason and refuses, unless
        leaving is already `granted`.
        """
        self._granted |= granted
        self.asked.set()

    async def run(self) -> None:
        """Wait until asked, and leave; return once nothing is left in the session."""
        await self.asked.wait()
        # It may be granted while the register is asked, which may take long.
        while not (self._granted or await self._another_stays() or self._granted):
            self.asked.clear()
            log.error(
                "not leaving",
                why="no other worker at work on this subscription, or the register is away",
                hint="what is published would be kept for nobody: start another one first, or "
                "iov-ingest leave --last",
            )
            await self.asked.wait()
        log.info("leaving for good", in_flight=self._source.inbox.in_flight)
        await self._source.leave()
        await quiet(self._source)
        self._source.end_session()

    async def _another_stays(self) -> bool:
        """Have the register ask us to leave, if another worker stays; return whether it does."""
        us = Registered(self._broker.client_id, self._broker.subscription, alive=True)
        try:
            async with register.opened(self._database, self._broker) as opened:
                return await opened.ask_to_leave(us)
        except Unavailable:
            return False

    async def strike_off(self) -> None:
        """Strike this worker off the register, after its session has ended."""
        try:
            async with (
                asyncio.timeout(_STRIKE_OFF_TIMEOUT_S),
                register.opened(self._database, self._broker) as opened,
            ):
                await opened.forget(self._broker.client_id)
        except (Unavailable, TimeoutError) as exc:
            log.warning("left, but still in the register", why=str(exc), hint="iov-ingest leave")


async def quiet(source: Source) -> None:
    """Wait until the broker has no more messages for a session that has unsubscribed.

    MQTT has no packet that says "that was all", so two conditions are checked until both hold:

    1. Nothing is in flight, and nothing has come for a while. A stalled network would look the
       same, so this alone is not enough.
    2. The broker answers another UNSUBSCRIBE, and nothing has come before its answer. Answers come
       in order, so it had nothing more to send.

    If the broker keeps no session of ours, neither is needed.
    """
    since_s = time.monotonic()
    while source.stage < Stage.EMPTY or source.inbox.in_flight:
        await asyncio.sleep(_LOOK_EVERY_S)
        if source.problem is not None or source.inbox.in_flight:
            since_s = time.monotonic()
        since_s = max(since_s, source.inbox.put_s)
        if time.monotonic() - since_s < QUIET_S:
            continue
        answered = await source.leave()
        if answered and not source.inbox.in_flight and source.inbox.put_s <= since_s:
            return
        since_s = time.monotonic()
