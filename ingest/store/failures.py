"""What a database error means to the one who holds a batch, by SQLSTATE and never by text.

Source: PostgreSQL documentation, appendix A, and what asyncpg raises without an SQLSTATE.
"""

from __future__ import annotations

import asyncio

import asyncpg
from asyncpg.exceptions import InternalClientError

from ingest.errors import IngestError, NotReady, Refused, TooMuch, Unavailable, Unforeseen


class DuplicateKey(IngestError):
    """A key is there already (23505): merge through staging."""


class NoPartition(IngestError):
    """No partition takes the row (23514 without a constraint's name): make it."""


_AWAY_CLASSES = {"08", "40", "53", "55", "58"}
_AWAY = {"25006", "25P03", "57014"}
"""Read-only, idle in transaction for too long, statement timeout."""
_OUT_OF_MEMORY = "53200"
"""Also of shared memory: the table of locks is full."""
_REFUSED_CLASSES = {"22", "23", "54"}

SINGLE = f"""
left(SQLSTATE, 2) NOT IN ({", ".join(f"'{c}'" for c in sorted(_AWAY_CLASSES | {"28", "3D", "42"}))})
AND left(SQLSTATE, 3) <> '57P' AND SQLSTATE NOT IN ({", ".join(f"'{s}'" for s in sorted(_AWAY))})
"""
"""In PL/pgSQL: whether an error may be about a single row, rather than about the server."""


def meaning(exc: Exception) -> IngestError | None:
    """What to do about `exc`; None for what is no failure of the database but a bug of ours."""
    if isinstance(exc, IngestError):
        return exc
    if isinstance(exc, asyncpg.PostgresError):
        return _by_sqlstate(exc)
    # InternalClientError: asyncpg lost its place, as when the server ends it in mid-COPY.
    if isinstance(exc, OSError | TimeoutError | asyncpg.InterfaceError | InternalClientError):
        return Unavailable(f"{type(exc).__name__}: {exc}")
    return None


def away(exc: Exception) -> Unavailable | None:
    """Like `meaning` where no row is at stake: whatever the database says, it is away for now."""
    failure = meaning(exc)
    if failure is None or isinstance(failure, Unavailable):
        return failure
    return Unforeseen(f"{failure}: {exc}")


def unless_cancelled(exc: Exception) -> None:
    """Raise CancelledError where `exc` came in its place: asyncpg's roll-back may replace it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from exc


def _by_sqlstate(exc: asyncpg.PostgresError) -> IngestError:
    state: str = exc.sqlstate or ""
    told = f"{state} {type(exc).__name__}"
    if state == "23505":
        return DuplicateKey(told)
    if state == "23514" and not exc.constraint_name:
        return NoPartition(told)
    if state == _OUT_OF_MEMORY:
        return TooMuch(f"{told}: {exc}")
    if state[:2] in _AWAY_CLASSES or state[:3] == "57P" or state in _AWAY:
        return Unavailable(f"{told}: {exc}")
    if state[:2] == "42":
        return NotReady(
            f"{told}: {exc}; run iov-ingest migrate, or grant the right that is missing"
        )
    if state[:2] in {"28", "3D"}:
        return NotReady(f"{told}: {exc}")
    if state[:2] in _REFUSED_CLASSES:
        return Refused(told)
    return Unforeseen(f"{told}: {exc}")
