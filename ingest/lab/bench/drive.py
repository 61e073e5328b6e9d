"""Load on a service, and what the service did meanwhile.

The publisher keeps a set number of messages ahead of what is committed, so that the broker's queue
neither runs dry nor grows. CPU time and memory are the processes' own, as the kernel reports them
(proc(5)).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from ingest.errors import ServerError
from ingest.lab.bench.publisher import FastPublisher, Traffic

AHEAD = 100_000
"""Number of samples published and not yet committed: more than the service commits between two
looks. With 30,000 the bench itself was the limit, at 54,000 samples/s with twenty to a message."""
_UNANSWERED = 30_000
"""Number of messages not acknowledged by the broker at which the publisher waits."""
_CHUNK = 500
_LOOK_EVERY_S = 0.5
"""Seconds between two looks; each is a scrape, which costs the service some milliseconds."""
_PAUSE_S = 0.005
_TIMEOUT_S = 60.0
_SLOWEST_PER_S = 2_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Progress = Callable[[str], None]


class Counters(NamedTuple):
    """Totals of the service at one moment."""

    at_s: float
    cpu_s: float
    rss_mb: float
    committed: int
    """Number of samples."""


class Run(NamedTuple):
    """Measurements over some seconds."""

    seconds: float
    committed: int
    committed_per_s: float
    cpu_us: float
    """CPU time of the service in µs, per committed sample."""
    rss_mb: float
    """Largest resident memory that was seen, in MB."""


async def drive(
    publisher: FastPublisher,
    traffic: Traffic,
    look: Callable[[], Awaitable[Counters]],
    seconds: float,
    warm_up_s: float,
    say: Progress,
    *,
    warm_up_samples: int = 0,
) -> Run:
    """Publish ahead of the service; return what it did between the warm-up and the end.

    The warm-up takes at least `warm_up_s` seconds and `warm_up_samples` committed samples, the run
    at least `seconds` and one commit.
    """
    longest_s = warm_up_s + warm_up_samples / _SLOWEST_PER_S + seconds + _TIMEOUT_S
    begin: Counters | None = None
    now = first = await look()
    sent_before, acknowledged_before = traffic.sent, publisher.acknowledged
    most_mb = 0.0
    while True:
        if time.monotonic() - now.at_s >= _LOOK_EVERY_S:
            then, now = now, await look()
            most_mb = max(most_mb, now.rss_mb)
            elapsed_s = now.at_s - first.at_s
            rate = (now.committed - then.committed) / (now.at_s - then.at_s)
            say(f"{elapsed_s:4.0f} s  {rate:9,.0f} committed/s  {now.rss_mb:4.0f} MB")
            warm = now.committed - first.committed >= warm_up_samples
            if begin is None and elapsed_s >= warm_up_s and warm:
                begin = now
            # On a busy machine a short run may see no commit, and so would measure nothing.
            elif begin and now.at_s - begin.at_s >= seconds and now.committed > begin.committed:
                return _run(begin, now, most_mb)
            if elapsed_s > longest_s:
                raise ServerError("the service did not keep up with the clock")
        sent = traffic.sent - sent_before
        behind = sent - (now.committed - first.committed) // traffic.samples
        unanswered = sent - (publisher.acknowledged - acknowledged_before)
        # Not more than the identifiers allow (MQTT 5, 2.2.1), nor far beyond what is committed.
        if behind < AHEAD // traffic.samples and unanswered < _UNANSWERED:
            await publisher.send(traffic.next(max(1, _CHUNK // traffic.samples)))
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(_PAUSE_S)


def _run(begin: Counters, end: Counters, most_mb: float) -> Run:
    samples, elapsed_s = end.committed - begin.committed, end.at_s - begin.at_s
    cpu_us = (end.cpu_s - begin.cpu_s) / samples * 1e6
    return Run(elapsed_s, samples, samples / elapsed_s, cpu_us, most_mb)


def cpu_s(pid: int) -> float:
    """Return user plus system time of a process in seconds, to a hundredth of a second."""
    # The second field, the name in brackets, may hold any characters.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
