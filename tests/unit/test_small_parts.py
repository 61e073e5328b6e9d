"""Backoff, metrics, the meaning of database errors, and the shape of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import asyncpg
import pytest
from asyncpg import exceptions
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from ingest.backoff import Backoff
from ingest.errors import NotReady, Refused, TooMuch, Unavailable, Unforeseen
from ingest.metrics import Histogram, Metrics
from ingest.model import Reason
from ingest.store.failures import DuplicateKey, Locked, NoPartition, meaning
from ingest.tools.embedded import free_port, neighbouring_ports


def test_delays_grow_to_their_most_and_begin_again() -> None:
    backoff = Backoff(1.0, 8.0, Random(1))
    delays = [backoff.delay_s() for _ in range(6)]
    assert all(most / 2 <= d <= most for d, most in zip(delays, [1, 2, 4, 8, 8, 8], strict=True))
    backoff.reset()
    assert backoff.delay_s() <= 1.0


@given(st.lists(st.floats(-10, 400, allow_nan=False), max_size=50))
def test_a_histogram_counts_like_prometheus_does(values: list[float]) -> None:
    registry = CollectorRegistry()
    bounds = (0.0, 1.0, 60.0)
    histogram = Histogram("h", "test", bounds, "stream", registry=registry)
    histogram.observe_all(values, "nev")
    for value in values:
        histogram.observe(value, 2, "twice")
    for bound in bounds:
        wanted = sum(value <= bound for value in values)
        labels = {"stream": "nev", "le": str(bound)}
        assert registry.get_sample_value("h_bucket", labels) == wanted
        if values:
            found = registry.get_sample_value("h_bucket", labels | {"stream": "twice"})
            assert found == 2 * wanted
    assert registry.get_sample_value("h_count", {"stream": "nev"}) == len(values)
    assert registry.get_sample_value("h_sum", {"stream": "nev"}) == pytest.approx(sum(values))


def test_an_observed_value_shows_in_the_text_prometheus_reads() -> None:
    metrics = Metrics({"nev": ["clock_off"]})
    metrics.commit_seconds.observe(0.02)
    text = generate_latest(metrics.registry).decode()
    assert 'iov_commit_seconds_bucket{le="0.025"} 1.0' in text
    assert "iov_commit_seconds_sum 0.02" in text
    for reason in Reason:
        assert f'iov_samples_rejected_total{{reason="{reason}",stream="other"}} 0.0' in text


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


def test_a_free_port_is_none_that_a_connection_may_take_before_its_server_starts() -> None:
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:
        pytest.skip("no Linux, so its range is not told here")
    if lowest <= 20_000:
        pytest.skip(f"here connections take ports from {lowest} on")
    assert max(neighbouring_ports(3) + 2 for _ in range(50)) < lowest
    assert max(free_port() for _ in range(50)) < lowest


@pytest.mark.parametrize("module", ["ingest.service", "ingest.cli.run"])
def test_a_worker_does_not_import_the_tools(module: str) -> None:
    code = f"import sys, {module}; print([m for m in sys.modules if 'ingest.tools' in m])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_reasons_are_the_contracts() -> None:
    listed = (
        "too_large bad_topic unknown_stream bad_encoding bad_json bad_envelope bad_timestamp "
        "too_old clock_ahead schema refused_by_store internal_error"
    )
    assert [reason.value for reason in Reason] == listed.split()
