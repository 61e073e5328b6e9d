from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest

from ingest.lab.embedded import free_port, neighbouring_ports, patiently


def next_of(answers: list[BaseException | str]) -> str:
    """Return the next answer, or raise it if it is an error."""
    answer = answers.pop(0)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def test_a_free_port_is_none_that_a_connection_may_take_before_its_server_starts() -> None:
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:
        # The range that is looked at is Linux's (ip(7)); other systems do not say theirs.
        pytest.skip("no Linux, so its range is not told here")
    if lowest <= 20_000:
        # Somebody has set the range so low that no port is left below it for servers.
        pytest.skip(f"here connections take ports from {lowest} on")
    assert max(neighbouring_ports(3) + 2 for _ in range(50)) < lowest
    assert max(free_port() for _ in range(50)) < lowest


def test_a_database_server_that_recovers_for_long_is_waited_for() -> None:
    answers: list[BaseException | str] = [
        subprocess.TimeoutExpired("pg_ctl", 10),
        AssertionError(),
        "ready",
    ]
    assert patiently(partial(next_of, answers)) == "ready"


def test_two_that_start_at_once_on_a_new_machine_make_one_user_of_the_system() -> None:
    answers: list[BaseException | str] = [
        subprocess.CalledProcessError(9, ["useradd", "-s", "/bin/bash", "name"]),
        "ready",
    ]
    assert patiently(partial(next_of, answers)) == "ready"


@pytest.mark.parametrize(
    "failure",
    [
        subprocess.CalledProcessError(6, ["useradd", "-s", "/bin/bash", "name"]),
        subprocess.CalledProcessError(9, ["initdb"]),
    ],
)
def test_a_failure_that_will_not_pass_is_reported_at_once(
    failure: subprocess.CalledProcessError,
) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        patiently(partial(next_of, [failure]))
