from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from ingest.batch import Batch, Committed, Written
from ingest.check import Checker
from ingest.config import Settings
from ingest.metrics import Histogram, Metrics
from ingest.model import Reason
from ingest.web import About, Live, WorkerState
from ingest.web.live import _quantiles
from tests.support import (
    CATALOGUE,
    bad_sample,
    delivery,
    plenty,
    sample,
)

NOW = datetime.now(UTC)
ABOUT = About("w", "b:1883", "$share/ingest/iov/v1/+/+", "d:5432/telemetry")


def live() -> Live:
    metrics = Metrics(dict.fromkeys(CATALOGUE, ()))
    return Live(metrics, CATALOGUE, lambda: WorkerState([], [], 0, 10, None, None), ABOUT)


def batch(*messages: tuple[str, str, dict[str, Any]]) -> Batch:
    """A batch of one sample of (device, stream, fields) each."""
    made, checker = Batch(0.0), Checker.of(CATALOGUE, Settings())
    for device, stream, payload in messages:
        message = delivery(payload, f"iov/v1/{device}/{stream}", at=NOW)
        made.add(message, checker.check(message), plenty(), 0.0)
    return made


def done(made: Batch) -> Committed:
    """The same batch, committed."""
    return Committed(made, Written(letters=made.dead_letters), 0.0, 0.0)


def nev(lon: float, seconds_ago: float = 0) -> dict[str, Any]:
    return sample(ts=NOW - timedelta(seconds=seconds_ago), location={"lon": lon, "lat": 31.0})


def test_positions_are_taken_down_only_while_a_map_is_open() -> None:
    shown = live()
    shown.committed(done(batch(("V1", "nev", nev(121)))))
    assert not shown.positions()
    shown.map_is_open = True
    shown.committed(done(batch(("V1", "nev", nev(121)), ("V2", "nev", sample(ts=NOW)))))
    assert shown.positions() == {"V1": [121, 31.0, NOW.timestamp(), "nev"]}
    shown.map_is_open = False
    shown.committed(done(batch()))
    assert not shown.positions()


def test_every_stream_with_a_position_of_the_device_is_on_the_map() -> None:
    shown = live()
    shown.map_is_open = True
    ts, place = NOW.isoformat(), {"lon": 1.5, "lat": 2.5}
    whole = batch(
        ("R1", "v2x", {"ts": ts, "msg_type": "BSM", **place}),
        ("T1", "truck", {"ts": ts, "position": place}),
        ("A1", "ad-state", {"ts": ts, "position": place}),
        ("B1", "battery", {"ts": ts}),
    )
    shown.committed(done(whole))
    assert {device: place[:2] for device, place in shown.positions().items()} == {
        "R1": [1.5, 2.5], "T1": [1.5, 2.5], "A1": [1.5, 2.5],
    }  # fmt: skip


def test_what_moved_is_told_once_and_what_is_older_not_at_all() -> None:
    shown = live()
    shown.map_is_open = True
    shown.committed(done(batch(("V1", "nev", nev(121, 5)))))
    assert list(shown.moved()) == ["V1"]
    shown.committed(done(batch(("V1", "nev", nev(99, 60)))))
    assert not shown.moved()
    assert shown.positions()["V1"][0] == 121


def test_no_more_is_looked_at_than_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.web.live._LOOKS_PER_TICK", 3)
    shown = live()
    shown.map_is_open = True
    shown.committed(
        done(batch(("B1", "battery", {"ts": NOW.isoformat()}), ("V0", "nev", nev(121))))
    )
    shown.committed(done(batch(*[(f"V{n}", "nev", nev(121)) for n in range(1, 6)])))
    shown.committed(done(batch(("V6", "nev", nev(121)))))
    assert list(shown.moved()) == ["V0", "V4", "V5"]
    shown.committed(done(batch(("V1", "nev", nev(121)))))
    assert list(shown.moved()) == ["V1"]


def test_positions_are_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.web.live._DEVICES", 3)
    shown = live()
    shown.map_is_open = True
    for name in ("V1", "V2", "V3", "V1", "V4"):
        shown.committed(done(batch((name, "nev", nev(121)))))
    assert list(shown.positions()) == ["V3", "V1", "V4"]
    assert set(shown.moved()) == {"V3", "V1", "V4"}


def test_the_newest_dead_letters_are_details_and_their_number_is_not() -> None:
    shown = live()
    bad = batch(*[(f"V{n}", "nev", bad_sample(n, NOW, gear="Q")) for n in range(30)])
    shown._metrics.samples_rejected.labels("nev", Reason.SCHEMA).inc(30)
    shown.committed(done(bad))
    letters = shown.status(details=True)["dead_letters"]
    assert [letter["device"] for letter in letters] == [f"V{n}" for n in range(29, 9, -1)]
    public = shown.status(details=False)
    assert "dead_letters" not in public
    assert public["worker"] is None
    assert public["rejected"]["schema"] == 30


def test_dead_letters_are_grouped_and_the_newest_group_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ingest.web.live._GROUPS", 2)
    shown = live()
    for device, fields in (
        ("V1", {"gear": "Q"}), ("V2", {"soc_pct": 900}), ("V3", {"gear": "Q"}),
        ("V4", {"speed_kmh": "fast"}),
    ):  # fmt: skip
        bad = batch((device, "nev", bad_sample(1, NOW, **fields)))
        shown.committed(done(bad))
    found = shown.status(details=True)["dead_letter_groups"]
    # Of three the one that was quiet for longest is forgotten.
    assert [(group["count"], group["device"], group["detail"][:10]) for group in found] == [
        (1, "V4", "/speed_kmh"),
        (2, "V3", "/gear is r"),
    ]
    assert "dead_letter_groups" not in shown.status(details=False)
    assert "about" not in shown.status(details=False)
    assert shown.status(details=True)["about"]["database"] == "d:5432/telemetry"


def test_places_in_a_text_make_no_group_of_their_own() -> None:
    shown = live()
    for number in range(100):
        message = delivery(b'{"seq":' + b" " * number + b"}", "iov/v1/V1/nev", at=NOW)
        made = Batch(0.0)
        made.add(message, Checker.of(CATALOGUE, Settings()).check(message), plenty(), 0.0)
        shown.committed(done(made))
    (group,) = shown.status(details=True)["dead_letter_groups"]
    assert (group["count"], group["reason"]) == (100, "bad_json")


def test_quantiles_are_interpolated_as_prometheus_does() -> None:
    histogram = Histogram("h", "test", (1.0, 2.0, 5.0), registry=CollectorRegistry())
    histogram.observe_all([0.5] * 50 + [1.5] * 40 + [4.0] * 10)
    found = _quantiles(histogram, histogram.counts(), [0] * 4)
    assert found == {"p50": 1.0, "p99": pytest.approx(2 + 3 * 0.9)}
    histogram.observe_all([9.0] * 1_000)
    found = _quantiles(histogram, histogram.counts(), [0] * 4)
    assert found == {"p50": 5.0, "p99": 5.0}


@given(st.lists(st.floats(0, 20), max_size=30), st.lists(st.floats(0, 20), min_size=1, max_size=30))
def test_quantiles_lie_in_the_bucket_of_what_happened_since(
    before: list[float], since: list[float]
) -> None:
    histogram = Histogram("h", "test", (1.0, 2.0, 5.0, 20.0), registry=CollectorRegistry())
    histogram.observe_all(before)
    then = histogram.counts()
    assert _quantiles(histogram, then, then) is None
    histogram.observe_all(since)
    found = _quantiles(histogram, histogram.counts(), then)
    assert found is not None
    bounds = (0.0, 1.0, 2.0, 5.0, 20.0)
    for name, q in (("p50", 0.5), ("p99", 0.99)):
        upper = min(bound for bound in bounds if bound >= found[name] - 1e-9)
        lower = max((bound for bound in bounds if bound < found[name] - 1e-9), default=0.0)
        assert sum(value <= upper for value in since) >= q * len(since)
        assert sum(value <= lower for value in since) <= q * len(since) or lower == 0.0
