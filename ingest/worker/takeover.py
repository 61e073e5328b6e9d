"""A session whose worker does not return: its messages are taken out of it, and it ends.

A broker goes on giving a kept session its share of a shared subscription, and what is in it waits
for a worker that never comes. One worker at a time may adopt such a session; an owner that comes
back takes it from the adopter by connecting, and the adopter does not try again soon.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg
import structlog

from ingest.config import Settings
from ingest.errors import Unavailable
from ingest.schema import Catalogue
from ingest.source import NoSession
from ingest.store import Watch, registry
from ingest.store.registry import Registered
from ingest.worker.service import Service

RETRY_S = 600.0
"""So long a session is left alone after an adoption of it that did not come to its end."""

log = structlog.get_logger(__name__)


async def drain(
    settings: Settings, catalogue: Catalogue, connection: asyncpg.Connection, gone: Registered
) -> int | None:
    """Commit and acknowledge what the broker keeps for a worker that is gone; end its session.

    How many messages it was, or None where the broker keeps no session. Raises Unavailable where
    the connection ended before it was done. `connection` is to the register.
    """
    as_gone = settings.model_copy(update={"mqtt_client_id": gone.client_id})
    await registry.end_backends(connection, as_gone.application_name)
    # A name of its own at the database: should the owner return, neither ends the other's backend.
    name = as_gone.model_copy(update={"mqtt_client_id": f"{gone.client_id} drained"})
    service = Service(as_gone, catalogue, database_name=name.application_name)
    try:
        return await service.take_over(gone.subscription)
    except NoSession:
        return None


class Adoption:
    """Drains the sessions of workers that have fallen silent, one after the other."""

    def __init__(self, settings: Settings, catalogue: Catalogue, watch: Watch) -> None:
        self._settings, self._catalogue, self._watch = settings, catalogue, watch
        self._after_s = settings.adopt_after_s
        self._left_alone: dict[str, float] = {}

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(self._after_s / 4)
            # While the database was away nobody could be heard of.
            up_since_s = self._watch.up_since_s
            if up_since_s is not None and time.monotonic() - up_since_s >= self._after_s:
                try:
                    async with registry.reading(self._settings) as connection:
                        await self._adopt_all(connection)
                except Unavailable as exc:
                    log.warning("adoption ended early", why=str(exc))

    async def _adopt_all(self, connection: asyncpg.Connection) -> None:
        for gone in await registry.silent(connection, self._settings, self._after_s):
            if not await registry.may_adopt(connection, self._settings):
                return
            still = await registry.silent(connection, self._settings, self._after_s)
            if gone.client_id not in {worker.client_id for worker in still}:
                continue  # it came back, or was struck off, while another session was drained
            now_s = time.monotonic()
            if self._left_alone.get(gone.client_id, 0.0) > now_s:
                continue
            self._left_alone[gone.client_id] = now_s + RETRY_S
            log.warning("adopting", client_id=gone.client_id, silent_s=self._after_s)
            try:
                messages = await drain(self._settings, self._catalogue, connection, gone)
            except Unavailable as exc:
                log.warning("not adopted", client_id=gone.client_id, why=str(exc))
            except Exception:  # what ends us here would end whoever adopts it next, one by one
                log.exception("not adopted", client_id=gone.client_id)
            else:
                await registry.forget(
                    connection, self._settings, gone.client_id, silent_s=self._after_s
                )
                del self._left_alone[gone.client_id]
                log.info("adopted", client_id=gone.client_id, messages=messages)
