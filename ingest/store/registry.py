"""The workers' register: who is at work, who asks whom to leave, who has fallen silent.

A heartbeat says that a worker lives and reaches the database. All times are the database's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg

from ingest.config import Settings
from ingest.store.connect import connect
from ingest.store.failures import away, naming, translated

NAME = "iov-ingest register"
"""Name of a connection to it in `pg_stat_activity`."""
ALIVE_S = 30.0
"""A worker heard of within so long is at work: six heartbeats."""
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
_LEAVE = "SELECT iov.ask_to_leave($1, $2)"
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
"""How long nobody else adopts after the last word of who does."""


class Registered(NamedTuple):
    """A worker as the register knows it."""

    client_id: str
    subscription: str
    alive: bool
    leaving: bool = False
    """It is asked to leave."""


@asynccontextmanager
async def reading(
    settings: Settings, name: str = NAME, **how: Any
) -> AsyncIterator[asyncpg.Connection]:
    """A connection for the register; Unavailable is raised for whatever the database fails in.

    Or for something else under another `name`; `how` is what `connect` takes.
    """
    with translated(away, settings):
        with naming(settings):
            connection = await connect(settings, name, **how)
        try:
            yield connection
        finally:
            connection.terminate()


def broker_of(settings: Settings) -> str:
    """The broker as the register names it, for a session belongs to one."""
    return settings.broker_id


class Heard(NamedTuple):
    """What a heartbeat hears in return."""

    leave_requested: bool
    known: bool
    """There was a row of this worker already."""


class AtWork(NamedTuple):
    """A worker at work, and where its page is."""

    client_id: str
    page_address: str | None
    """`host:port`; None of one that says none."""


async def heartbeat(
    connection: asyncpg.Connection,
    settings: Settings,
    *,
    first: bool,
    page_address: str | None = None,
) -> Heard:
    """Say that this worker is at work, and where its page is.

    The `first` heartbeat of a process withdraws what its predecessor was asked, and takes over the
    row it may have under the name that brokers had before they had a port.
    """
    if first:
        host = settings.broker.hostname or ""
        await connection.execute(_RENAME, settings.mqtt_client_id, broker_of(settings), host)
    heard = await connection.fetchrow(
        _HEARTBEAT,
        settings.mqtt_client_id,
        broker_of(settings),
        settings.subscription,
        first,
        page_address,
    )
    return Heard(*heard)


async def at_work(connection: asyncpg.Connection, settings: Settings) -> list[AtWork]:
    """List the workers at work on our subscription, this one included, by name."""
    rows = await connection.fetch(_AT_WORK, broker_of(settings), settings.subscription, ALIVE_S)
    return [AtWork(*row) for row in rows]


async def find(
    connection: asyncpg.Connection, settings: Settings, client_id: str
) -> Registered | None:
    """A worker of this broker by its client id."""
    row = await connection.fetchrow(_FIND, broker_of(settings), client_id, ALIVE_S)
    return Registered(*row) if row else None


async def may_leave(
    connection: asyncpg.Connection, settings: Settings, worker: Registered, *, last: bool = False
) -> bool:
    """Note that a worker is to leave for good, which it hears with its next heartbeat.

    False, and nothing noted, where no other worker at work on the same subscription means to
    stay, unless it may be the `last`. One at a time, or the last two would let each other go.
    """
    async with connection.transaction():
        await connection.execute(_LOCK_LEAVING)
        staying = await connection.fetchval(
            _OTHERS, broker_of(settings), worker.client_id, worker.subscription, ALIVE_S
        )
        if not staying and not last:
            return False
        await connection.execute(_LEAVE, broker_of(settings), worker.client_id)
    return True


async def elsewhere(
    connection: asyncpg.Connection, settings: Settings, client_id: str
) -> str | None:
    """Another broker under which a client id is registered; None where there is none."""
    name: str | None = await connection.fetchval(_ELSEWHERE, client_id, broker_of(settings))
    return name


async def forget(
    connection: asyncpg.Connection, settings: Settings, client_id: str, *, silent_s: float = 0
) -> None:
    """Strike off a worker whose session has ended, unless it was heard of since."""
    await connection.execute(_FORGET, broker_of(settings), client_id, silent_s)


async def silent(
    connection: asyncpg.Connection, settings: Settings, after_s: float
) -> list[Registered]:
    """Other workers on our subscription that were not heard of for so long, longest first."""
    rows = await connection.fetch(
        _SILENT, broker_of(settings), settings.subscription, settings.mqtt_client_id, after_s
    )
    return [Registered(*row) for row in rows]


async def end_backends(connection: asyncpg.Connection, name: str) -> None:
    """End what a worker that is gone has left at the database: it may hold keys locked.

    A client that fell silent in mid-COPY holds them past every timeout. Were the worker alive, it
    would connect again and repeat its batch.
    """
    await connection.execute(_END_BACKENDS, name)


async def may_adopt(connection: asyncpg.Connection, settings: Settings) -> bool:
    """Become the one worker that adopts, or stay it; false if another one is.

    It holds for `ADOPTION_HELD_S`, so ask again before each session.
    """
    status: str = await connection.execute(
        _HOLD_ADOPTION, settings.application_name, ADOPTION_HELD_S
    )
    return status == "UPDATE 1"
