from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.batch import Batch, Batcher, BatchLimits, DeadLetter, dead_letter
from ingest.budget import Budget
from ingest.config import Settings
from ingest.model import Checked, Delivery, Reason, Rejected, Row
from tests.support import delivery, plenty

LIMITS = BatchLimits.of(Settings())
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def checked(rows: int, bad: int = 0, size_bytes: int = 10) -> Checked:
    good = [
        Row("nev", "V1", NOW, resend=False, record=[n], present=0, delivery=delivery({}),
            position=n, unknown_fields=1)
        for n in range(rows)
    ]  # fmt: skip
    wrong = [Rejected("nev", "nev", "V1", Reason.SCHEMA, "/x", b"{}") for _ in range(bad)]
    return Checked("nev", [*good, *wrong], size_bytes)


def is_full(batcher: Batcher) -> bool:
    return batcher.full  # a call, or mypy takes the attribute for constant


def test_an_empty_batcher_has_nothing_to_take_and_nothing_due() -> None:
    batcher = Batcher(LIMITS, plenty())
    assert batcher.take() is None
    assert batcher.due_in(0.0) is None


def test_an_idle_writer_takes_what_is_there_at_once() -> None:
    batcher = Batcher(LIMITS._replace(wait_s=0), plenty())
    batcher.add(delivery({}), checked(1), now=5.0)
    assert batcher.due_in(5.0) == 0.0


def test_the_wait_runs_from_the_first_message_of_the_batch() -> None:
    batcher = Batcher(LIMITS._replace(wait_s=2.0), plenty())
    batcher.add(delivery({}), checked(1), now=5.0)
    batcher.add(delivery({}), checked(1), now=6.5)
    assert batcher.due_in(6.5) == 0.5
    assert batcher.due_in(9.0) == 0.0
    batcher.take()
    batcher.add(delivery({}), checked(1), now=20.0)
    assert batcher.due_in(20.0) == 2.0


def test_it_is_full_by_samples_or_by_size_and_then_due_at_once() -> None:
    batcher = Batcher(LIMITS._replace(rows=3, size_bytes=100, wait_s=9.0), plenty())
    batcher.add(delivery({}), checked(1, bad=1), now=0.0)
    assert not is_full(batcher)
    batcher.add(delivery({}), checked(1), now=0.0)
    assert is_full(batcher)
    assert batcher.due_in(0.0) == 0.0
    batcher.take()
    assert not is_full(batcher)
    batcher.add(delivery({}), checked(1, size_bytes=100), now=0.0)
    assert is_full(batcher)


def test_a_batch_holds_rows_by_stream_and_counts_what_was_rejected() -> None:
    batch = Batch(0.0)
    first, second = delivery({}), delivery({})
    batch.add(first, checked(2), plenty(), 0.0)
    batch.add(second, checked(1, bad=2), plenty(), 0.0)
    assert batch.deliveries == [first, second]
    assert [row.record for row in batch.rows["nev"]] == [[0], [1], [0]]
    assert batch.rejected == {("nev", Reason.SCHEMA): 2}
    assert batch.unknown_fields == {"nev": 3}
    assert (batch.samples, batch.size_bytes, len(batch.dead_letters)) == (5, 20, 2)


def test_a_dead_letter_can_always_be_stored() -> None:
    rejected = Rejected("other", "a\0b", "V1", Reason.SCHEMA, "/\0" + "x" * 1_000, b"\0")
    letter = dead_letter(delivery({}, "t\0", at=NOW), rejected)
    assert letter == DeadLetter(NOW, "t\ufffd", "V1", "a\ufffdb", "schema", letter.detail, b"\0")
    assert letter.detail == "/\ufffd" + "x" * 298


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(1, 60)), max_size=40),
    st.integers(1, 12),
)
def test_every_delivery_is_in_exactly_one_batch_in_order(
    messages: list[tuple[int, int, int]], rows: int
) -> None:
    batcher = Batcher(LIMITS._replace(rows=rows, size_bytes=100), plenty())
    added: list[Delivery] = []
    taken: list[Batch] = []
    for good, bad, size_bytes in messages:
        if batcher.full and (batch := batcher.take()):
            taken.append(batch)
        added.append(delivery({}))
        batcher.add(added[-1], checked(good, bad, size_bytes), now=0.0)
    if batch := batcher.take():
        taken.append(batch)
    assert [id(d) for batch in taken for d in batch.deliveries] == [id(d) for d in added]
    for batch in taken:
        accepted = sum(map(len, batch.rows.values()))
        assert batch.samples == accepted + len(batch.dead_letters)
        # The last message may go over a limit; without it none was reached.
        assert batch.samples - 6 < rows
        assert batch.size_bytes - 60 < 100


@pytest.mark.parametrize("long", ["topic", "stream", "payload"])
def test_a_budget_is_charged_for_all_that_a_device_can_make_long(long: str) -> None:
    """Names of 63 kB were free: 80 MB a minute from one device."""
    one = delivery({}, topic="iov/v1/V1/" + "x" * 60_000 if long == "topic" else "iov/v1/V1/nev")
    stream = "x" * 60_000 if long == "stream" else "nev"
    payload = b"x" * 60_000 if long == "payload" else b""
    bad = Rejected("other", stream, "V1", Reason.UNKNOWN_STREAM, "no such schema", payload)
    batch = Batch(0.0)
    budget = Budget(600, 100_000)
    for _ in range(10):
        batch.add(one, Checked("other", [bad], 1), budget, now_s=0.0)
    assert (len(batch.dead_letters), batch.suppressed["other"]) == (1, 9)


def test_a_batch_that_absorbs_another_holds_and_counts_both() -> None:
    first, second = Batch(0.0), Batch(1.0)
    for batch, bad in ((first, 1), (second, 2)):
        batch.add(delivery({}), checked(3, bad, 7), plenty(), 0.0)
    first.absorb(second)
    assert len(first.deliveries) == 2
    assert (len(first.rows["nev"]), len(first.dead_letters)) == (6, 3)
    assert (first.samples, first.size_bytes, first.rejected.total()) == (9, 14, 3)
