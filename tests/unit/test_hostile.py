"""What a message costs is bounded by what it becomes, whatever its bytes are."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import pytest
import zstandard

from ingest.check import Checker
from ingest.config import Settings
from ingest.decode import MessageLimits, values
from ingest.lab.hostile import shapes, vary
from ingest.model import Reason, Rejected, Row
from tests.support import (
    CATALOGUE,
    column,
    delivery,
)

pytestmark = pytest.mark.slow

CHECKER = Checker.of(CATALOGUE, Settings())
LIMITS = MessageLimits.of(Settings())
AT = datetime(2026, 11, 1, 8, tzinfo=UTC)
HEAD = f'{{"ts":"{AT.isoformat()}","seq":1'

MEMORY_BYTES, CPU_S = 768 * 1024 * 1024, 10
"""Of a whole Python process with all schemas loaded, which takes 350 MB of addresses and a second.
One message that was made to be dear took 3 GB and 17 s."""
_CHECK = """
import sys
from tests.support import column, delivery
from tests.unit.test_hostile import AT, CHECKER
topic, encoding = sys.argv[1:3]
checked = CHECKER.check(delivery(sys.stdin.buffer.read(), topic, encoding=encoding, at=AT))
for outcome in checked.outcomes[:1]:
    print(getattr(outcome, "reason", "stored"), getattr(outcome, "detail", ""))
"""


def packed(begin: str, element: str, end: str, count: int) -> bytes:
    """A `zstd` message: a hundred bytes or two that become megabytes."""
    return zstandard.compress(f"{HEAD},{begin}{','.join([element] * count)}{end}".encode())


DEAR: dict[str, tuple[str, bytes, str]] = {
    "numbers below their minimum": (
        "battery",
        packed('"packs":[{"no":1,"cell_v":[', "-9", "]}]}", 1_390_000),
        "too_large more than 300000 values: about ",
    ),
    "as many as are let in": (
        "battery",
        packed('"packs":[{"no":1,"cell_v":[', "-9", "]}]}", 90_000),
        "stored ",
    ),
    "objects without members": (
        "nev",
        packed('"x":[', "{}", "]}", 1_390_000),
        "too_large more than 300000 values: about ",
    ),
    "objects that are wrong": (
        "nev",
        packed('"motors":[', '{"no":-1}', "]}", 16_000),
        "schema /motors is refused (items), and nothing else is left",
    ),
    "objects in one sample": (
        "nev",
        packed('"motors":[', '{"no":-1}', "]}", 45_000),
        "too_large more than 100000 values in one sample: about ",
    ),
}


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


@pytest.mark.parametrize("kind", DEAR)
def test_a_dear_message_is_rejected_within_the_memory_of_a_small_container(kind: str) -> None:
    stream, payload, told = DEAR[kind]
    ended = subprocess.run(
        [sys.executable, "-c", _CHECK, f"iov/v1/V1/{stream}", "zstd"],
        input=payload, capture_output=True, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()[-500:]
    assert ended.stdout.decode().startswith(told)


def test_every_shape_stays_within_the_limits_and_fills_them() -> None:
    """The search is worth nothing if its messages are refused at the door."""
    for shape in shapes(CATALOGUE):
        if shape.stream != "battery":
            continue
        text = shape.text(AT, LIMITS)
        assert len(text) <= LIMITS.inflated_bytes
        assert values(text, LIMITS.values) == 0, shape
        fills = values(text, 0) > 0.5 * LIMITS.values
        assert fills or len(text) > 0.4 * LIMITS.inflated_bytes, shape.what


def test_a_shape_varies_by_chance() -> None:
    from random import Random

    chance, shape = Random(1), next(shapes(CATALOGUE))
    assert len({vary(shape, chance) for _ in range(40)}) > 10


def test_findings_of_one_rule_in_one_sample_are_bounded() -> None:
    cells = {"packs": [{"no": 1, "cell_v": [7.0] * 5_000}]}
    (row,) = CHECKER.check(
        delivery({"ts": AT.isoformat(), "seq": 1, **cells}, "iov/v1/V1/battery", at=AT)
    ).outcomes
    assert isinstance(row, Row)
    assert len(orjson.loads(column(row, CATALOGUE, "quality"))) == 250


def test_a_letter_of_a_packed_message_weighs_what_is_kept() -> None:
    """Or a batch of them would never close."""
    text = b'{"heart_rate":1,' + b" " * 1_000_000 + b'"x":"' + b"y" * 500_000 + b'"}'
    payload = zstandard.compress(text)
    checked = CHECKER.check(delivery(payload, "iov/v1/V1/none", encoding="zstd", at=AT))
    (rejected,) = checked.outcomes
    assert isinstance(rejected, Rejected)
    assert rejected.reason is Reason.UNKNOWN_STREAM
    assert len(payload) < 1_000
    assert 500_000 < len(rejected.payload) <= checked.size_bytes


@pytest.mark.parametrize("count", [5, 300])
def test_what_must_never_be_stored_is_found_among_few_names_and_many(count: int) -> None:
    banned: list[Callable[[int], str]] = [
        lambda _: "heart_rate", lambda n: f"h{'-' * n}eartRATE", lambda n: f"heart\n{'_' * n}rate",
    ]  # fmt: skip
    sample = {f"k{n}": n for n in range(count)} | {make(3): 1 for make in banned}
    kept = CATALOGUE["cockpit"].never_stored.without({"x": [sample]})
    assert kept == {"x": [{f"k{n}": n for n in range(count)}]}
