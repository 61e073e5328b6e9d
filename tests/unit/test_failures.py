"""Errors of the database have one meaning each, and one place that says it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from asyncpg import exceptions

from ingest.errors import NotReady, Refused, TooMuch, Unavailable, Unforeseen
from ingest.store.failures import DuplicateKey, Locked, NoPartition, away, meaning, translated


def error(sqlstate: str, **fields: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": sqlstate, "M": "the value s3cr3t", **fields})


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (error("23505"), DuplicateKey),
        (error("23514"), NoPartition),
        (error("23514", n="a_check"), Refused),
        (error("22P05"), Refused),
        (error("22021"), Refused),
        (error("23502"), Refused),
        (error("54000"), Refused),
        (error("08006"), Unavailable),
        (error("40001"), Unavailable),
        (error("40P01"), Unavailable),
        (error("53300"), Unavailable),
        (error("53100"), Unavailable),
        (error("57P01"), Unavailable),
        (error("57014"), TooMuch),
        (error("58030"), Unavailable),
        (error("25006"), Unavailable),
        (error("25P03"), Unavailable),
        (error("55P03"), Locked),
        (error("42P01"), NotReady),
        (error("42703"), NotReady),
        (error("42501"), NotReady),
        (error("3D000"), NotReady),
        (error("28P01"), NotReady),
        (ConnectionResetError(), Unavailable),
        (FileNotFoundError(), Unavailable),
        (TimeoutError(), Unavailable),
        (asyncpg.InterfaceError("closed"), Unavailable),
        (exceptions.InternalClientError("lost"), Unavailable),
        (Refused("as it is"), Refused),
    ],
)
def test_every_failure_has_one_meaning(exc: Exception, kind: type[Exception]) -> None:
    assert type(meaning(exc)) is kind


RAISED = "PL/pgSQL function check_row() line 3 at RAISE"
RAISED_IN_GERMAN = "PL/pgSQL-Funktion check_row() Zeile 3 bei RAISE"
ASSIGNED = (
    'PL/pgSQL assignment "x := new.colour"\nPL/pgSQL function check_row() line 3 at assignment'
)
INNER = 'SQL statement "INSERT INTO audit"\nPL/pgSQL function check_row() line 3 at SQL statement'
OURS = "PL/pgSQL function inline_code_block line 12 at SQL statement"


@pytest.mark.parametrize(
    ("state", "context", "kind"),
    [
        *((state, RAISED, Unforeseen) for state in ("23514", "42501", "55000", "53100", "08000")),
        ("25006", RAISED_IN_GERMAN, Unforeseen),
        ("42703", ASSIGNED, Unforeseen),
        ("42501", INNER, Unforeseen),
        # Trouble of the server's own while it runs such code.
        ("53100", INNER, Unavailable),
        ("55P03", INNER, Locked),
        ("57P01", INNER, Unavailable),
        # What a retry mends, and what is of our own code.
        ("40001", RAISED, Unavailable),
        ("42P01", OURS, NotReady),
        ("25006", OURS, Unavailable),
        ("25006", f"{RAISED}\n{OURS}", Unforeseen),
    ],
)
def test_what_code_of_the_operators_raises_may_be_about_one_row(
    state: str, context: str, kind: type[Exception]
) -> None:
    assert type(meaning(error(state, W=context))) is kind


@pytest.mark.parametrize("exc", [ZeroDivisionError(), AssertionError()])
def test_what_is_no_failure_of_the_database_is_a_bug(exc: Exception) -> None:
    assert meaning(exc) is None


def test_what_a_row_is_refused_for_quotes_no_value() -> None:
    assert "s3cr3t" not in str(meaning(error("22P02")))


async def test_an_error_is_replaced_by_what_it_means_and_a_bug_is_not() -> None:
    with pytest.raises(DuplicateKey) as caught, translated():
        raise error("23505")
    assert isinstance(caught.value.__cause__, asyncpg.UniqueViolationError)
    with pytest.raises(Unforeseen), translated(away):
        raise error("23505")
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError


async def test_a_cancellation_stays_one_whatever_the_driver_makes_of_it() -> None:
    """A roll-back on a connection that was cut raises InterfaceError in place of it."""
    begun = asyncio.Event()

    async def work() -> None:
        with translated():
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError as exc:
                raise asyncpg.InterfaceError("cannot roll back") from exc

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
