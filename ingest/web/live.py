"""Data of a worker's live page: rates and latencies, newest dead letters, last positions.

Rates and latencies come from the metrics. The pipeline hands over each batch after its commit;
positions are taken from it only while somebody looks at a map, so that a page that is not open
costs nothing.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple

from ingest.batch import Committed, DeadLetter
from ingest.metrics import Histogram, Metrics
from ingest.model import Row
from ingest.schema import Catalogue, Stream
from ingest.schema.layout import Record

_LETTERS, _GROUPS = 20, 50
_NUMBERS = re.compile(r"\d+")
_DEVICES = 20_000
"""Number of positions that are kept, the newest ones: 5 MB."""
_LOOKS_PER_TICK = 500
"""Number of rows searched for positions between two events.

Searching all of 40,000 rows a second took 2 µs per row.
"""
_PLACES = (("location_lon", "location_lat"), ("position_lon", "position_lat"), ("lon", "lat"))
"""Pairs of columns with a device's own position; the first pair that a stream has is used."""
_QUANTILES = {"p50": 0.5, "p99": 0.99}

Reader = Callable[[Record], tuple[Any, ...]]
"""Takes (longitude, latitude) out of a record."""


class WorkerState(NamedTuple):
    """State of the worker, as reported by its parts."""

    problems: list[str]
    warnings: list[str]
    """Problems that somebody has to solve but that leave this worker ready.

    Their texts may name other workers.
    """
    in_flight: int
    window: int
    broker_window: int | None
    workers: list[dict[str, str | None]] | None
    """`client_id` and `page_address` of every worker at work on the same subscription.

    None while the register in the database is not available.
    """


class About(NamedTuple):
    """Name of a worker, and the servers its samples come from and go to."""

    worker: str
    broker: str
    """`host:port`."""
    subscription: str
    database: str
    """`host:port/database`."""


class Live:
    """Source of the data that the live page shows."""

    def __init__(
        self, metrics: Metrics, catalogue: Catalogue, state: Callable[[], WorkerState], about: About
    ) -> None:
        self._metrics, self._catalogue, self._state, self._about = metrics, catalogue, state, about
        self._groups: dict[tuple[str, str], dict[str, Any]] = {}
        self._started_s = time.monotonic()
        self._letters: deque[DeadLetter] = deque(maxlen=_LETTERS)
        self._positions: dict[str, list[Any]] = {}
        self._moved: dict[str, list[Any]] = {}
        self._readers: dict[tuple[str, int], Reader | None] = {}
        self._looks_left = _LOOKS_PER_TICK
        self._last = _Counts(metrics)
        self.map_is_open = False
        """True while somebody looks at a map, so that positions are recorded."""

    def committed(self, committed: Committed) -> None:
        """Record what the page shows of a stored batch."""
        # Each payload may have megabytes, and the page shows no payload.
        for letter in committed.written.letters:
            self._letters.append(letter._replace(payload=b""))
            self._group(letter)
        if not self.map_is_open:
            if self._positions:
                self._positions, self._moved = {}, {}
            return
        for name, rows in committed.batch.rows.items():
            stream = self._catalogue[name]
            if self._looks_left and _position(stream, stream.layout.all) is not None:
                newest = rows[-self._looks_left :]
                self._looks_left -= len(newest)
                self._take_positions(stream, newest)

    def _group(self, letter: DeadLetter) -> None:
        # Numbers are masked. A vehicle can cause details without end that differ only in a place
        # in an array or a text; with masked numbers they are one group.
        key = letter.reason, _NUMBERS.sub("#", letter.detail)
        # Removed before it is added again, so that the group quiet for longest is at the front.
        known = self._groups.pop(key, None)
        self._groups[key] = {
            "reason": letter.reason,
            "detail": letter.detail,
            "count": 1 + (known["count"] if known else 0),
            "device": letter.device,
            "received_at": letter.received_at.isoformat(timespec="milliseconds"),
        }
        if len(self._groups) > _GROUPS:
            del self._groups[next(iter(self._groups))]

    def _take_positions(self, stream: Stream, rows: Sequence[Row]) -> None:
        for row in rows:
            key = stream.name, row.present
            if key not in self._readers:
                self._readers[key] = _position(stream, row.present)
            reader = self._readers[key]
            lon, lat = reader(row.record) if reader is not None else (None, None)
            if lon is None or lat is None:
                continue
            ts = row.ts.timestamp()
            known = self._positions.get(row.device)
            if known is not None and known[2] > ts:
                continue  # resent, or late
            place = [lon, lat, ts, stream.name]
            # Removed before it is added again, so that the positions updated longest ago are first.
            self._positions.pop(row.device, None)
            self._positions[row.device] = self._moved[row.device] = place
        for device in list(islice(self._positions, max(0, len(self._positions) - _DEVICES))):
            del self._positions[device]
            self._moved.pop(device, None)

    def status(self, *, details: bool, fresh: bool = True) -> dict[str, Any]:
        """Return totals since the start, and the current state.

        Devices and other details are included only if `details`. If not `fresh`, the totals are
        those that the last call of `rates` used.
        """
        state, now = self._state(), _Counts(self._metrics) if fresh else self._last
        found: dict[str, Any] = {
            "worker": self._about.worker if details else None,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "ready": not state.problems,
            "problems": state.problems,
            "warnings": state.warnings if details else len(state.warnings),
            "in_flight": state.in_flight,
            "window": state.window,
            "broker_window": state.broker_window,
            "workers": None if state.workers is None else len(state.workers),
            "reconnects": now.reconnects,
            "sessions_lost": now.sessions_lost,
            "streams": now.streams,
            "rejected": now.reasons,
        }
        if details:
            found["about"] = self._about._asdict()
            found["at_work"] = state.workers or []
            found["dead_letter_groups"] = list(reversed(self._groups.values()))
            found["dead_letters"] = [
                {
                    "received_at": letter.received_at.isoformat(timespec="milliseconds"),
                    "device": letter.device,
                    "stream": letter.stream,
                    "reason": letter.reason,
                    "detail": letter.detail,
                }
                for letter in reversed(self._letters)
            ]
        return found

    def rates(self) -> dict[str, Any]:
        """Return rates per second, and quantiles in seconds, of the time since the last call."""
        before, self._last = self._last, _Counts(self._metrics)
        return self._last.since(before)

    def positions(self) -> dict[str, list[Any]]:
        """Return all known positions: device → [lon, lat, Unix time, stream]."""
        return self._positions

    def moved(self) -> dict[str, list[Any]]:
        """Return the positions updated since the last call, at most `_LOOKS_PER_TICK` of them."""
        self._looks_left = _LOOKS_PER_TICK
        moved, self._moved = self._moved, {}
        return moved


class _Counts:
    """The counters at one moment."""

    def __init__(self, metrics: Metrics) -> None:
        self.at_s = time.monotonic()
        self.streams: dict[str, dict[str, int]] = {}
        for name, counter in (
            ("received", metrics.samples_received),
            ("stored", metrics.samples_stored),
            ("duplicate", metrics.samples_duplicate),
        ):
            for labels, value in _values(counter):
                self.streams.setdefault(labels["stream"], {})[name] = int(value)
        reasons: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        for labels, value in _values(metrics.samples_rejected):
            reasons[labels["reason"]] += int(value)
            rejected[labels["stream"]] += int(value)
        for stream, counts in self.streams.items():
            counts["rejected"] = rejected[stream]
        self.reasons = dict(reasons)
        self.reconnects = {labels["peer"]: int(n) for labels, n in _values(metrics.reconnects)}
        self.sessions_lost = sum(int(n) for _, n in _values(metrics.sessions_lost))
        self._commit = _buckets(metrics.commit_seconds, [""])
        self._lags = {s: _buckets(metrics.event_lag, [s]) for s in self.streams}
        self._metrics = metrics

    def since(self, before: _Counts) -> dict[str, Any]:
        seconds = max(self.at_s - before.at_s, 1e-3)
        return {
            "seconds": round(seconds, 3),
            "streams": {
                stream: {
                    name: round((count - before.streams[stream][name]) / seconds, 1)
                    for name, count in counts.items()
                }
                for stream, counts in self.streams.items()
            },
            "commit_s": _quantiles(self._metrics.commit_seconds, self._commit, before._commit),
            "lag_s": {
                stream: _quantiles(self._metrics.event_lag, lags, before._lags[stream])
                for stream, lags in self._lags.items()
            },
        }


def _values(metric: Any) -> list[tuple[dict[str, str], float]]:
    """Return (labels, value) of each series of a prometheus_client counter."""
    return [
        (sample.labels, sample.value)
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    ]


def _buckets(histogram: Histogram, labels: Iterable[str]) -> list[int]:
    return [sum(counts) for counts in zip(*map(histogram.counts, labels), strict=True)]


def _quantiles(
    histogram: Histogram, now: Sequence[int], before: Sequence[int]
) -> dict[str, float] | None:
    """Return quantiles of the values between two moments; None if there were no values.

    They are interpolated as Prometheus does (`histogram_quantile`): values are taken as spread
    evenly in their bucket, and a quantile above the last bound is given as that bound.
    """
    up_to = [0, *accumulate(n - b for n, b in zip(now, before, strict=True))]
    if not up_to[-1]:
        return None
    bounds = [min(0.0, histogram.bounds[0]), *histogram.bounds, histogram.bounds[-1]]
    found = {}
    for name, q in _QUANTILES.items():
        rank = q * up_to[-1]
        place = bisect_left(up_to, rank, lo=1)
        share = (rank - up_to[place - 1]) / (up_to[place] - up_to[place - 1])
        found[name] = bounds[place - 1] + (bounds[place] - bounds[place - 1]) * share
    return found


def _position(stream: Stream, present: int) -> Reader | None:
    """Return a reader for the position in a stream's rows; None if they have no position."""
    for names in _PLACES:
        if set(names).issubset(stream.layout.columns(present)):
            return stream.layout.reader(present, names)
    return None
