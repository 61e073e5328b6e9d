from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from ingest.metrics import Histogram, Metrics
from ingest.model import Reason


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


def test_every_series_is_there_from_the_start() -> None:
    """Or its first event is no increase, and an alert on it is silent that one time."""
    metrics = Metrics({"nev": ["clock_off"]})
    names = {"nev", "gbt32960", "other"}
    for family in metrics.registry.collect():
        labels = [
            sample.labels for sample in family.samples if not sample.name.endswith("_created")
        ]
        if family.name.startswith("iov_") and family.type in {"counter", "histogram"}:
            assert labels, family.name
            streams = {found["stream"] for found in labels if "stream" in found}
            assert streams in (set(), names, {"nev"}), family.name


def test_one_metric_alone_is_found_by_the_name_of_any_of_its_samples() -> None:
    metrics = Metrics({"nev": ["clock_off"]})
    metrics.commit_seconds.observe(0.02)
    metrics.samples_stored.labels("nev").inc(3)
    for family in metrics.registry.collect():
        for sample in family.samples if family.name.startswith("iov_") else ():
            assert metrics.value(sample.name, **sample.labels) == sample.value, sample.name
    assert metrics.value("iov_samples_stored_total") == 3
