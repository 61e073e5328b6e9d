"""Takes over the session of a worker that does not return: stores its messages and ends it.

A broker goes on giving such a session its share of a shared subscription, and these messages wait
for a worker that never comes. There are two kinds of takeover:

- An operator starts it with `leave --client-id`.
- A running worker starts it by itself, which is called adoption. One worker at a time may adopt.

An owner that comes back takes its session from the adopter by connecting. The adopter then leaves
the session alone for `RETRY_S`. If the broker was not reached at all, it is asked again with the
next look.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import structlog

from ingest.config import Settings
from ingest.errors import Unavailable
from ingest.schema import Catalogue
from ingest.source import NoSession, Stage
from ingest.store import Watch, register
from ingest.store.register import Register, Registered
from ingest.worker.leave import quiet
from ingest.worker.service import Service

RETRY_S = 60.0
"""Seconds that a session is left alone after an adoption of it that did not come to its end.

Emptying a session takes seconds, so an owner that is back is not disturbed for long; and what waits
in a session does not wait long if the broker closed the connection for another reason.
"""

log = structlog.get_logger(__name__)


class NotReached(Unavailable):
    """The broker was away before the session could be taken over."""


async def take_over(
    settings: Settings, catalogue: Catalogue, opened: Register, gone: Registered
) -> int | None:
    """Commit and acknowledge what the broker keeps for a worker that is gone; end its session.

    Return the number of messages, or None if the broker keeps no session. Raises Unavailable if
    the connection ended before all was taken out: the owner may be back.
    """
    session = replace(settings.broker, client_id=gone.client_id)
    await opened.end_backends(session.application_name)
    # A name of its own at the database: should the owner return, neither ends the other's backend.
    own = replace(session, client_id=f"{gone.client_id} taken over")
    service = Service(settings, catalogue, session=session, database_name=own.application_name)
    try:
        return await _emptied(service, gone.subscription)
    except NoSession:
        return None


async def _emptied(service: Service, subscription: str) -> int:
    """Take out what is in a session, over one connection; return the number of messages."""
    source = service.source
    try:
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(service.watch.run(), name="watch")
            pipeline = tasks.create_task(service.pipeline.run(), name="pipeline")
            session = tasks.create_task(_session(service, subscription), name="session")
            empty = tasks.create_task(quiet(source), name="quiet")
            await asyncio.wait([session, empty], return_when=asyncio.FIRST_COMPLETED)
            # If the broker keeps no session, the stage is past LEAVING before the connection ends.
            done = source.stage is Stage.LEAVING and not session.done()
            if done:
                source.end_session()
            else:
                await asyncio.wait([session])
            empty.cancel()
            source.inbox.close()
            await service.finish(pipeline)
            session.cancel()
            watch.cancel()
    finally:
        await service.connection.close()
    if not done:
        why = session.result()
        # An owner that is back takes the session away; who never had it has not met one.
        if source.found_session.done() or isinstance(why, NoSession):
            raise why
        raise NotReached(str(why)) from why
    if source.stage < Stage.LEFT:
        log.warning("session not ended", hint="it is empty, and expires by itself")
    return source.inbox.taken


async def _session(service: Service, subscription: str) -> Unavailable:
    """Hold the one connection; return what ended it."""
    try:
        await service.source.take_over(subscription)
    except Unavailable as exc:
        return exc
    raise AssertionError("a session ends with an exception")


class Adoption:
    """Takeover of the sessions of workers that have fallen silent, one after the other."""

    def __init__(self, settings: Settings, catalogue: Catalogue, watch: Watch) -> None:
        self._settings, self._catalogue, self._watch = settings, catalogue, watch
        self._after_s = settings.adopt_after_s
        self._left_alone: dict[str, float] = {}

    async def run(self) -> None:
        """Look again and again until cancelled."""
        settings = self._settings
        while True:
            await asyncio.sleep(self._after_s / 4)
            # While the database was away, no worker could send a heartbeat.
            up_since_s = self._watch.up_since_s
            if up_since_s is not None and time.monotonic() - up_since_s >= self._after_s:
                try:
                    async with register.opened(settings.database, settings.broker) as opened:
                        await self._adopt_all(opened)
                except Unavailable as exc:
                    log.warning("adoption ended early", why=str(exc))

    async def _adopt_all(self, opened: Register) -> None:
        for gone in await opened.silent(self._after_s):
            if not await opened.become_adopter():
                return
            still = await opened.silent(self._after_s)
            if gone.client_id not in {worker.client_id for worker in still}:
                continue  # it came back, or was struck off, while another session was taken over
            now_s = time.monotonic()
            if self._left_alone.get(gone.client_id, 0.0) > now_s:
                continue
            self._left_alone[gone.client_id] = now_s + RETRY_S
            log.warning("adopting", client_id=gone.client_id, silent_s=self._after_s)
            try:
                messages = await take_over(self._settings, self._catalogue, opened, gone)
            except NotReached as exc:
                del self._left_alone[gone.client_id]
                log.warning("not adopted yet", client_id=gone.client_id, why=str(exc))
            except Unavailable as exc:
                log.warning("not adopted", client_id=gone.client_id, why=str(exc))
            except Exception:  # otherwise one session would end all its adopters, one by one
                log.exception("not adopted", client_id=gone.client_id)
            else:
                await opened.forget(gone.client_id, silent_s=self._after_s)
                del self._left_alone[gone.client_id]
                log.info("adopted", client_id=gone.client_id, messages=messages)
