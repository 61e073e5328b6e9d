"""The workers' register: who is at work, who asks whom to leave, who has fallen silent.

A heartbeat says that a worker lives and reaches the database. All times are the database's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from ingest.broker import Broker
from ingest.database import Database
from ingest.store.connect import connected

NAME = "iov-ingest register"
"""Name of a connection to it in `pg_stat_activity`."""
ALIVE_S = 30.0
"""Seconds after its last heartbeat that a worker counts as being at work: six heartbeats."""
SILENT_S = 45.0
"""Seconds after its last heartbeat that a worker is reported as silent; a restart takes less."""

_HEARTBEAT = """
INSERT INTO iov.worker AS w (client_id, broker, subscription, heartbeat_at, page_address)
VALUES ($1, $2, $3, clock_timestamp(), $5)
ON CONFLICT (broker, client_id) DO UPDATE SET
    subscription = excluded.subscription, heartbeat_at = excluded.heartbeat_at,
    leave_requested = w.leave_requested AND NOT $4, login = session_user,
    page_address = excluded.page_address
RETURNING leave_requested, xmax <> 0
"""
_AT_WORK = """
SELECT client_id, page_address FROM iov.worker
WHERE broker = $1 AND subscription = $2
  AND clock_timestamp() - heartbeat_at < make_interval(secs => $3)
ORDER BY client_id LIMIT 1000
"""
_RENAME = """
UPDATE iov.worker SET broker = $2 WHERE broker = $3 AND client_id = $1 AND NOT EXISTS (
    SELECT FROM iov.worker o WHERE o.broker = $2 AND o.client_id = $1)
"""
_FIND = """
SELECT client_id, subscription,
    clock_timestamp() - heartbeat_at < make_interval(secs => $3) AS alive, leave_requested
FROM iov.worker WHERE broker = $1 AND client_id = $2
"""
_ELSEWHERE = "SELECT broker FROM iov.worker WHERE client_id = $1 AND broker <> $2"
_OTHERS = """
SELECT count(*) FROM iov.worker
WHERE broker = $1 AND client_id <> $2 AND subscription = $3 AND NOT leave_requested
  AND clock_timestamp() - heartbeat_at < make_interval(secs => $4)
"""
_ASK = "SELECT iov.ask_to_leave($1, $2)"
_FORGET = "SELECT iov.strike_off($1, $2, $3)"
_END_BACKENDS = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE application_name = $1 AND usename = current_user AND datname = current_database()
"""
_SILENT = """
SELECT client_id, subscription, false AS alive, leave_requested FROM iov.worker
WHERE broker = $1 AND subscription = $2 AND client_id <> $3
  AND clock_timestamp() - heartbeat_at >= make_interval(secs => $4)
ORDER BY heartbeat_at
"""
_LOCK_LEAVING = "SELECT FROM iov.mutex WHERE name = 'leave' FOR UPDATE"
_HOLD_ADOPTION = """
UPDATE iov.mutex SET holder = $1, held_until = clock_timestamp() + make_interval(secs => $2)
WHERE name = 'adopt' AND (holder = $1 OR held_until IS NULL OR held_until < clock_timestamp())
"""
ADOPTION_HELD_S = 600.0
"""Seconds after the adopter's last `become_adopter` before another worker may adopt."""


class Registered(NamedTuple):
    """A worker as the register knows it."""

    client_id: str
    subscription: str
    alive: bool
    leaving: bool = False
    """True if it is asked to leave."""


class Heard(NamedTuple):
    """Answer of the register to a heartbeat."""

    leave_requested: bool
    known: bool
    """True if there was a row of this worker already."""


class AtWork(NamedTuple):
    """A worker at work, and where its page is."""

    client_id: str
    page_address: str | None
    """`host:port`; None if the worker says nothing of it."""


class Register:
    """The register over one connection, as the worker of `broker` sees it.

    A session belongs to its broker, so workers of other brokers are left out.
    """

    def __init__(self, connection: asyncpg.Connection, broker: Broker) -> None:
        self._connection = connection
        self._broker = broker

    async def heartbeat(self, *, first: bool, page_address: str | None = None) -> Heard:
        """Say that this worker is at work, and where its page is.

        The `first` heartbeat of a process withdraws a request to leave that its predecessor got. It
        also takes over a row under the broker's host name without the port.
        """
        us = self._broker
        if first:
            await self._connection.execute(_RENAME, us.client_id, us.id, us.host)
        heard = await self._connection.fetchrow(
            _HEARTBEAT, us.client_id, us.id, us.subscription, first, page_address
        )
        return Heard(*heard)

    async def at_work(self) -> list[AtWork]:
        """List the workers at work on our subscription, this one included, by name."""
        us = self._broker
        rows = await self._connection.fetch(_AT_WORK, us.id, us.subscription, ALIVE_S)
        return [AtWork(*row) for row in rows]

    async def find(self, client_id: str) -> Registered | None:
        """Return a worker of this broker by its client id; None if there is no such worker."""
        row = await self._connection.fetchrow(_FIND, self._broker.id, client_id, ALIVE_S)
        return Registered(*row) if row else None

    async def elsewhere(self, client_id: str) -> str | None:
        """Return another broker under which a client id is registered; None if there is none."""
        name: str | None = await self._connection.fetchval(_ELSEWHERE, client_id, self._broker.id)
        return name

    async def silent(self, after_s: float) -> list[Registered]:
        """List other workers on our subscription that were silent for `after_s`, longest first."""
        us = self._broker
        rows = await self._connection.fetch(_SILENT, us.id, us.subscription, us.client_id, after_s)
        return [Registered(*row) for row in rows]

    async def ask_to_leave(self, worker: Registered, *, last: bool = False) -> bool:
        """Ask a worker to leave at its next heartbeat; return false if it has to stay.

        It has to stay, and is not asked, if no other worker at work on the same subscription will
        stay, unless `last` is true. Workers are asked one at a time; otherwise the last two might
        both leave.
        """
        async with self._connection.transaction():
            await self._connection.execute(_LOCK_LEAVING)
            staying = await self._connection.fetchval(
                _OTHERS, self._broker.id, worker.client_id, worker.subscription, ALIVE_S
            )
            if not staying and not last:
                return False
            await self._connection.execute(_ASK, self._broker.id, worker.client_id)
        return True

    async def become_adopter(self) -> bool:
        """Become or stay the one worker that adopts sessions; return false if it is another one.

        This holds for `ADOPTION_HELD_S`, so call it again before each session.
        """
        status: str = await self._connection.execute(
            _HOLD_ADOPTION, self._broker.application_name, ADOPTION_HELD_S
        )
        return status == "UPDATE 1"

    async def forget(self, client_id: str, *, silent_s: float = 0) -> None:
        """Strike off a worker whose session has ended, unless it was heard of since."""
        await self._connection.execute(_FORGET, self._broker.id, client_id, silent_s)

    async def end_backends(self, application_name: str) -> None:
        """End the database sessions of a worker that is gone, because they may hold keys locked.

        A session whose client fell silent in mid-COPY holds them past every timeout. If the worker
        is alive after all, it connects again and repeats its batch.
        """
        await self._connection.execute(_END_BACKENDS, application_name)


@asynccontextmanager
async def opened(database: Database, broker: Broker) -> AsyncIterator[Register]:
    """Open the register; every database error is raised as Unavailable."""
    async with connected(database, NAME) as connection:
        yield Register(connection, broker)
