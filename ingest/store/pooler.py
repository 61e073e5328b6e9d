"""A pooler before the database: it may keep a session for us, or give us another each time.

PgBouncer gives each connection a process id that is not the server's, which is how it is known.
With `pool_mode` `session` all is as without it, but that it lets no time limits through, which are
set anew here. With `transaction` what is set for a session is another's a moment later,
`synchronous_commit` too, so a commit might be acknowledged that is not durable: that is refused.
Source: PgBouncer, Features and config.
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
"""Three, at once, overlooked it once in twenty times when other connections were busy."""


def hint(exc: asyncpg.PostgresError) -> str | None:
    """Tell what to do about a pooler that does not take our settings; None if it is not that."""
    if "unsupported startup parameter" not in str(exc):
        return None
    return f"a pooler says so: tell it ignore_startup_parameters = {', '.join(LIMITS)}"


async def set_limits(connection: asyncpg.Connection, settings: Mapping[str, str]) -> None:
    """Set what a pooler has not passed on; nothing without one."""
    if await connection.fetchval(_PROCESS) != connection.get_server_pid():
        limits = {name: settings[name] for name in LIMITS}
        await connection.execute(_SET, list(limits), list(limits.values()))


async def expect_own_session(
    connection: asyncpg.Connection, another: Callable[[], Awaitable[asyncpg.Connection]]
) -> None:
    """Raise NotReady if an idle connection's session of the database's is not its own."""
    own = await connection.fetchval(_PROCESS)
    if own == connection.get_server_pid():
        return
    other = await another()
    try:
        for _ in range(_LOOKS):
            # What lies idle at the pooler goes to whoever asks first; two pairs in step with each
            # other would each get their own again and again.
            await asyncio.sleep(uniform(0, _APART_S))  # noqa: S311  no secret
            others = await other.fetchval(_PROCESS)
            now = await connection.fetchval(_PROCESS)
            if now == others or now != own:
                raise NotReady(_SHARED)
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as exc:
        raise NotReady(_SHARED) from exc  # prepared in another session
    finally:
        other.terminate()
