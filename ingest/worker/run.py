"""One worker process: the service, its signals, and adoption of other workers' sessions."""

from __future__ import annotations

import asyncio
import gc
import signal
import time

from ingest.config import Settings
from ingest.schema import Catalogue
from ingest.worker.memory import give_back
from ingest.worker.service import Service, signals
from ingest.worker.takeover import Adoption

_GC_THRESHOLD = 50_000
"""Number of new objects before the collector runs.

A batch has tens of thousands of new objects, none of them in a cycle. At the default of 700 the
collector goes through them again and again: 30.6 µs of CPU per message instead of 27.7 µs (medians
of three alternating runs of the bench).
"""
_SAME_SIGNAL_S = 1.0
"""Seconds after the first stop signal during which further stop signals are ignored.

A later signal means "at once"; with `once_only`, the second signal means "drain".
"""


async def run(settings: Settings, catalogue: Catalogue, *, once_only: bool = False) -> None:
    """Run one worker until SIGTERM or SIGINT, or until it has left for good after SIGUSR1.

    With `once_only`, the first signal makes it leave for good, even if no other worker is there to
    take new messages; the second signal makes it drain.
    """
    service = Service(settings, catalogue)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, service.leave.ask)
    beside: list[asyncio.Task[None]] = []
    told_s: list[float] = []

    def stop() -> None:
        # The same signal may come twice: systemd sends it to every process of a unit, and our
        # supervisor passes it on.
        if told_s and time.monotonic() - told_s[0] < _SAME_SIGNAL_S:
            return
        told_s.append(time.monotonic())
        for task in beside:
            task.cancel()
        if once_only and len(told_s) == 1:
            service.leave.ask(granted=True)
        else:
            service.stop()

    with signals(stop):
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 50)
        async with asyncio.TaskGroup() as tasks:
            beside.append(tasks.create_task(give_back(), name="memory"))
            if settings.adopt_after_s:
                adoption = Adoption(settings, catalogue, service.watch)
                beside.append(tasks.create_task(adoption.run(), name="adoption"))
            await service.run()
            for task in beside:
                task.cancel()
