"""One log line per hour, with the outcomes of all samples since the previous line."""

from __future__ import annotations

import asyncio
from collections import Counter

import structlog

from ingest.metrics import Metrics

EVERY_S = 3_600.0

log = structlog.get_logger(__name__)


async def account(metrics: Metrics, every_s: float = EVERY_S) -> None:
    """Log the outcomes every `every_s` seconds until cancelled."""
    before: Counter[str] = Counter()
    while True:
        await asyncio.sleep(every_s)
        total = metrics.outcomes()
        since = total - before
        before = total
        others = {name: count for name, count in sorted(since.items()) if name not in _ALWAYS}
        log.info("account", **{name: since[name] for name in _ALWAYS}, **others)


_ALWAYS = ("stored", "duplicate")
