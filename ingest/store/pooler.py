"""A pooler before the database: it may keep a session for us, or give us another each time.

PgBouncer is recognised by the process id that it gives a connection, which is not the server's.
With `pool_mode` `session` all is as without it, except that it passes no time limits on: they are
set again here. With `transaction`, our session and its settings may be another client's a moment
later. This includes `synchronous_commit`, so that a commit might be acknowledged that is not
durable: this mode is refused. Source: PgBouncer, Features and config.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import uniform

import asyncpg

from ingest.errors import NotReady

NAME = "iov-ingest pooler"
LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
"""Settings that PgBouncer has to be told to ignore when a connection begins."""
_PROCESS = "SELECT pg_backend_pid()"
_SET = "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) s (name, value)"
_SHARED = (
    "a pooler gives each transaction another session, so nothing that is set for one holds, "
    "synchronous_commit neither: pool_mode = session, or go past it"
)
_LOOKS, _APART_S = 10, 0.01
"""Number of looks, and most seconds between them. Three looks without a pause missed a shared
session once in twenty times when other connections were busy."""


def hint(exc: asyncpg.PostgresError) -> str | None:
    """Return advice about a pooler that refuses our settings; None if `exc` is not about that."""
    if "unsupported startup parameter" not in str(exc):
        return None
    return f"a pooler says so: tell it ignore_startup_parameters = {', '.join(LIMITS)}"


async def set_limits(connection: asyncpg.Connection, settings: Mapping[str, str]) -> None:
    """Set the time limits that a pooler has not passed on; without a pooler do nothing."""
    if await connection.fetchval(_PROCESS) != connection.get_server_pid():
        limits = {name: settings[name] for name in LIMITS}
        await connection.execute(_SET, list(limits), list(limits.values()))


async def expect_own_session(
    connection: asyncpg.Connection, another: Callable[[], Awaitable[asyncpg.Connection]]
) -> None:
    """Raise NotReady if a pooler gives the session of an idle connection to another one."""
    own = await connection.fetchval(_PROCESS)
    if own == connection.get_server_pid():
        return
    other = await another()
    try:
        for _ in range(_LOOKS):
            # The pooler gives an idle session to whoever asks first. The pause is random: two
            # workers that look in step might each get their own sessions again and again.
            await asyncio.sleep(uniform(0, _APART_S))  # noqa: S311  no secret
            others = await other.fetchval(_PROCESS)
            now = await connection.fetchval(_PROCESS)
            if now == others or now != own:
                raise NotReady(_SHARED)
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as exc:
        raise NotReady(_SHARED) from exc  # prepared in another session
    finally:
        other.terminate()
