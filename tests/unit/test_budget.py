from __future__ import annotations

import pytest

from ingest import budget as budget_module
from ingest.budget import Budget


def test_a_device_may_have_so_many_letters_in_a_minute() -> None:
    budget = Budget(3, 1_000)
    assert [budget.allows("V1", 10, 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert budget.allows("V2", 10, 30.0)
    assert not budget.allows("V1", 10, 59.9)
    assert budget.allows("V1", 10, 60.0)


def test_and_so_many_bytes_but_the_first_whatever_its_size() -> None:
    budget = Budget(100, 1_000)
    assert budget.allows("V1", 5_000, 0.0)
    assert not budget.allows("V1", 1, 0.0)
    assert budget.allows("V2", 999, 0.0)
    assert not budget.allows("V2", 2, 0.0)
    assert budget.allows("V2", 1, 0.0)


def test_a_budget_of_nothing_keeps_nothing() -> None:
    assert not Budget(0, 1_000).allows("V1", 1, 0.0)


def test_devices_without_end_share_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "_MOST_DEVICES", 10)
    budget = Budget(2, 1_000)
    kept = sum(budget.allows(f"V{n}", 1, 0.0) for n in range(1_000))
    assert kept == 12
    assert len(budget._spent) == 11
    assert budget.allows("V3", 1, 0.0)  # who was there before has the rest of its own


def test_messages_that_name_no_device_share_one() -> None:
    budget = Budget(1, 1_000)
    assert budget.allows(None, 1, 0.0)
    assert not budget.allows(None, 1, 0.0)
    assert budget.allows("V1", 1, 0.0)
