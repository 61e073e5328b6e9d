"""What a database error means to the one who holds a batch, by SQLSTATE and never by text.

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
    """A key is there already (23505): merge through staging."""


class NoPartition(IngestError):
    """No partition takes the row (23514 without a constraint's name): make it."""


class Locked(Unavailable):
    """A lock was not to be had in time (55P03): the rows of a day that is past may be apart."""


_AWAY_CLASSES = {"08", "40", "53", "55", "58"}
_AWAY = {"25006", "25P03"}
"""Read-only, idle in transaction for too long."""
_TOO_MUCH = {"53200", "57014"}
"""Out of memory, also shared: the table of locks is full. Statement timeout."""
_LOCKED = "55P03"
POLICY = "42501"
"""A right that is missing, or one row that a policy (row-level security) does not let in."""
_MEND = {POLICY: "grant the right that is missing"}
_REFUSED_CLASSES = {"22", "23", "54"}
_TROUBLE = {"08", "53", "57", "58"}
"""Trouble of the server itself, also while it runs code of the operator's."""
_OUR_CODE = "(inline_code_block|make_partition|describe_devices|is_news|device_gone)"
_OURS = re.compile(rf"^PL/.*\b{_OUR_CODE}")


def _listed(items: set[str]) -> str:
    return ", ".join(f"'{item}'" for item in sorted(items))


def of_others(context: str) -> str:
    """Say in PL/pgSQL if a context has a frame of the operator's code."""
    return rf"({_without_ours(context)} ~ '(^|\n)PL/')"


def _without_ours(context: str) -> str:
    return rf"regexp_replace({context}, '(^|\n)PL/[^\n]*\m{_OUR_CODE}[^\n]*', '', 'g')"


def single(state: str, context: str) -> str:
    """Say in PL/pgSQL if an error may be about a single row, rather than about the server.

    `state` and `context` are expressions. What `meaning` says of code of the operator's, in SQL.
    """
    return f"""
({state} = '{POLICY}' OR left({state}, 2) NOT IN ({_listed(_AWAY_CLASSES | {"28", "3D", "42"})})
AND left({state}, 3) <> '57P' AND {state} NOT IN ({_listed(_AWAY | _TOO_MUCH)})
OR left({state}, 2) <> '40' AND {state} NOT IN ({_listed(_TOO_MUCH)}) AND CASE
    WHEN left({state}, 2) IN ({_listed(_TROUBLE)}) OR {state} = '{_LOCKED}'
    THEN {_without_ours(context)} ~ '^\\n?PL/[^\\n]*RAISE(\\n|$)' ELSE {of_others(context)} END)
"""


def of_operator(context: str | None, state: str) -> bool:
    """Tell if an error comes from code of the operator's: a trigger, a function of a policy.

    Such code may raise any SQLSTATE for a row that it does not like, or use a column that is not
    there. Trouble of the server's own while it runs such code is told by who raised it, and what a
    retry mends (class 40) stays that. Source: PostgreSQL, PL/pgSQL, 41.6.8.1: the words of the
    context are translated, its beginning and the name of a statement are not.
    """
    frames = [frame for frame in (context or "").split("\n") if not _OURS.search(frame)]
    if state[:2] in _TROUBLE or state == _LOCKED:
        return bool(frames) and frames[0].startswith("PL/") and frames[0].endswith("RAISE")
    return state[:2] != "40" and any(frame.startswith("PL/") for frame in frames)


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


@contextmanager
def translated(
    means: Callable[[Exception], IngestError | None] = meaning, database: Database | None = None
) -> Iterator[None]:
    """Raise what an error of the database `means` in its place; let bugs of ours pass.

    With the name of the `database` if it is given; what has a meaning already has its name.
    Raises CancelledError if the task was cancelled: asyncpg's roll-back may have put another error
    in its place.
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
    """Put the name of the database before everything that it fails in."""
    try:
        with translated():
            yield
    except IngestError as failure:
        raise named(failure, database) from failure


def named(failure: IngestError, database: Database) -> IngestError:
    """Put the name of the database before what is told of it."""
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
