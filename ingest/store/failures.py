"""Meaning of a database error for the holder of a batch, by SQLSTATE and never by text.

Source: PostgreSQL documentation, appendix A, and what asyncpg raises without an SQLSTATE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import asyncpg
from asyncpg.exceptions import InternalClientError

from ingest.cancelled import unless_cancelled
from ingest.database import Database
from ingest.errors import IngestError, NotReady, Refused, TooMuch, Unavailable, Unforeseen


class DuplicateKey(IngestError):
    """Error because a key exists already (23505): merge through staging."""


class NoPartition(IngestError):
    """Error because no partition takes a row (23514 without a constraint's name): make one."""


class Locked(Unavailable):
    """Error because a lock was not had in time (55P03): write the rows of past days separately."""


_AWAY_CLASSES = {"08", "40", "53", "55", "58"}
_AWAY = {"25006", "25P03"}
"""Further SQLSTATEs: read-only transaction, idle in transaction for too long."""
_TOO_MUCH = {"53200", "57014"}
"""Out of memory, also of shared memory if the table of locks is full; statement timeout."""
_LOCKED = "55P03"
POLICY = "42501"
"""SQLSTATE of a missing right, and of a single row that row-level security keeps out."""
_MEND = {POLICY: "grant the right that is missing"}
_REFUSED_CLASSES = {"22", "23", "54"}
_TROUBLE = {"08", "53", "57", "58"}
"""Trouble of the server itself, also while it runs code of the operator's."""
_OUR_CODE = "(inline_code_block|make_partition|describe_devices|is_news|device_gone)"
_OURS = re.compile(rf"^PL/.*\b{_OUR_CODE}")


def _listed(items: set[str]) -> str:
    return ", ".join(f"'{item}'" for item in sorted(items))


def of_others(context: str) -> str:
    """Return a PL/pgSQL condition: true if a context has a frame of the operator's code."""
    return rf"({_without_ours(context)} ~ '(^|\n)PL/')"


def _without_ours(context: str) -> str:
    return rf"regexp_replace({context}, '(^|\n)PL/[^\n]*\m{_OUR_CODE}[^\n]*', '', 'g')"


def single(state: str, context: str) -> str:
    """Return a PL/pgSQL condition: true if an error may be about a single row, not the server.

    `state` and `context` are expressions. The operator's code is told apart as in `of_operator`.
    """
    return f"""
({state} = '{POLICY}' OR left({state}, 2) NOT IN ({_listed(_AWAY_CLASSES | {"28", "3D", "42"})})
AND left({state}, 3) <> '57P' AND {state} NOT IN ({_listed(_AWAY | _TOO_MUCH)})
OR left({state}, 2) <> '40' AND {state} NOT IN ({_listed(_TOO_MUCH)}) AND CASE
    WHEN left({state}, 2) IN ({_listed(_TROUBLE)}) OR {state} = '{_LOCKED}'
    THEN {_without_ours(context)} ~ '^\\n?PL/[^\\n]*RAISE(\\n|$)' ELSE {of_others(context)} END)
"""


def of_operator(context: str | None, state: str) -> bool:
    """Return true if an error comes from the operator's code: a trigger, a function of a policy.

    Such code may raise any SQLSTATE for a row that it does not like, or use a column that is not
    there. If the SQLSTATE is one of the server's own trouble or of a lock, the error counts as the
    operator's only if a RAISE in such code raised it. An error that a retry mends (class 40) never
    counts. Source: PostgreSQL, PL/pgSQL, 41.6.8.1: the words of the context are translated, its
    beginning and the name of a statement are not.
    """
    frames = [frame for frame in (context or "").split("\n") if not _OURS.search(frame)]
    if state[:2] in _TROUBLE or state == _LOCKED:
        return bool(frames) and frames[0].startswith("PL/") and frames[0].endswith("RAISE")
    return state[:2] != "40" and any(frame.startswith("PL/") for frame in frames)


def meaning(exc: Exception) -> IngestError | None:
    """Return what to do about `exc`; None if it is a bug of ours, not a database failure."""
    if isinstance(exc, IngestError):
        return exc
    if isinstance(exc, asyncpg.PostgresError):
        return _by_sqlstate(exc)
    # InternalClientError: asyncpg lost track of the protocol, for example because the server ended
    # the connection in mid-COPY.
    if isinstance(exc, OSError | TimeoutError | asyncpg.InterfaceError | InternalClientError):
        return Unavailable(f"{type(exc).__name__}: {exc}")
    return None


def away(exc: Exception) -> Unavailable | None:
    """Return `meaning`, but always as Unavailable: for calls in which no row is at stake."""
    failure = meaning(exc)
    if failure is None or isinstance(failure, Unavailable):
        return failure
    return Unforeseen(f"{failure}: {exc}")


@contextmanager
def translated(
    means: Callable[[Exception], IngestError | None] = meaning, database: Database | None = None
) -> Iterator[None]:
    """Replace a database error by the IngestError that it `means`; let bugs of ours pass.

    If `database` is given, the new error begins with its name. An error that `means` returns as it
    is passes unchanged. Raises CancelledError if the task was cancelled, because asyncpg's
    roll-back may have put another error in its place.
    """
    try:
        yield
    except Exception as exc:
        unless_cancelled(exc)
        failure = means(exc)
        if failure is None or failure is exc:
            raise
        raise (named(failure, database) if database else failure) from exc


@contextmanager
def naming(database: Database) -> Iterator[None]:
    """Put the name of the database before the text of every error of the block."""
    try:
        with translated():
            yield
    except IngestError as failure:
        raise named(failure, database) from failure


def named(failure: IngestError, database: Database) -> IngestError:
    """Return a failure of the same kind with the database's name before its text."""
    return type(failure)(f"database {database.address}: {failure}")


def _by_sqlstate(exc: asyncpg.PostgresError) -> IngestError:
    state: str = exc.sqlstate or ""
    told = f"{state} {type(exc).__name__}"
    if state == "23505":
        return DuplicateKey(told)
    if state in _TOO_MUCH:
        return TooMuch(f"{told}: {exc}")
    if of_operator(exc.context, state) and state[:2] not in _REFUSED_CLASSES - {"23"}:
        return Unforeseen(f"{told}: {exc}")
    if state == "23514" and not exc.constraint_name:
        return NoPartition(told)
    if state == _LOCKED:
        return Locked(f"{told}: {exc}")
    if state[:2] in _AWAY_CLASSES or state[:3] == "57P" or state in _AWAY:
        return Unavailable(f"{told}: {exc}")
    if state[:2] == "42":
        return NotReady(f"{told}: {exc}; {_MEND.get(state, 'run iov-ingest migrate')}")
    if state[:2] in {"28", "3D"}:
        return NotReady(f"{told}: {exc}")
    if state[:2] in _REFUSED_CLASSES:
        return Refused(told)
    return Unforeseen(f"{told}: {exc}")
