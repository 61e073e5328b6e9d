"""Metrics of a batch that is committed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter

from ingest.batch import Committed
from ingest.metrics import Metrics
from ingest.model import Reason, Row


def observe(metrics: Metrics, committed: Committed) -> None:
    """Count a batch's samples; record their lag from the vehicle and the time until commit."""
    batch, written = committed.batch, committed.written
    metrics.count(metrics.samples_stored, written.stored)
    metrics.count(metrics.samples_duplicate, written.duplicate)
    for (stream, reason), number in batch.rejected.items():
        metrics.samples_rejected.labels(stream, reason).inc(number)
    for stream, number in written.refused.items():
        metrics.samples_rejected.labels(stream, Reason.REFUSED_BY_STORE).inc(number)
    metrics.count(metrics.dead_letters_suppressed, batch.suppressed)
    metrics.count(metrics.dead_letters_suppressed, written.suppressed)
    metrics.count(metrics.unknown_fields, batch.unknown_fields)
    for (stream, flag), number in batch.flags.items():
        metrics.quality_flags.labels(stream, flag).inc(number)
    for (stream, why), number in batch.refused_fields.items():
        metrics.fields_refused.labels(stream, why).inc(number)
    metrics.batch_rows.observe(batch.samples)
    metrics.commit_seconds.observe(committed.at_s - committed.closed_s)
    for arrival, group in groupby(batch.deliveries, key=attrgetter("arrival")):
        metrics.ack_latency.observe(committed.at_s - arrival.monotonic_s, len(list(group)))
    for stream, rows in batch.rows.items():
        metrics.event_lag.observe_all(_lags(rows), stream)
        resent = [row for row in rows if row.resend]
        metrics.resent_event_lag.observe_all(_lags(resent), stream)


def _lags(rows: Iterable[Row]) -> list[float]:
    """Return the seconds from `ts` to `received_at` of each row, at least 0."""
    lags = [(row.delivery.arrival.at - row.ts).total_seconds() for row in rows]
    # A sample from the future counts as lag 0; a negative value would corrupt the sum of lags.
    return [lag if lag > 0 else 0.0 for lag in lags]
