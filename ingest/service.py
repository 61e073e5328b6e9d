"""The composition root: builds every part from Settings, runs them, and stops them in order.

Stopping is in two steps. Drain: nothing more is taken in, what is in is committed and
acknowledged, the broker gets DISCONNECT. Give up, after a deadline or a second signal: everything
is dropped, which is safe, for nothing is acknowledged that was not committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from random import Random

import structlog

from ingest import gbt32960
from ingest.batch import Batcher
from ingest.batch import Limits as BatchLimits
from ingest.budget import Budget
from ingest.check import Checker
from ingest.config import Settings
from ingest.decode import Limits
from ingest.envelope import Ages
from ingest.metrics import Metrics, release
from ingest.pipeline import Pipeline
from ingest.schema import Catalogue
from ingest.source import Source
from ingest.store import Watch, Writer
from ingest.web import serve

DRAIN_TIMEOUT_S = 20.0
"""With what leaving takes after it (5 s at the broker, 1 s at the database) below the 30 s that
Kubernetes gives by default."""
_GC_THRESHOLD = 50_000
"""A batch is tens of thousands of young objects, none of them in a cycle, and at the default of 700
the collector goes through them again and again: 30.6 µs of CPU per message instead of 27.7
(medians of three runs of the bench, in turn)."""

log = structlog.get_logger("service")


class Service:
    """One worker. `run` it; `stop` makes it drain and return."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, *, checker: Checker | None = None
    ) -> None:
        random = Random()  # noqa: S311  spreads reconnects, protects nothing
        self._settings = settings
        self.metrics = Metrics(_flags(catalogue))
        self.checker = checker or Checker(
            catalogue,
            Limits(settings.max_payload_bytes, settings.max_inflated_bytes, settings.max_samples),
            Ages(timedelta(days=settings.max_age_days), timedelta(seconds=settings.max_ahead_s)),
        )
        self.source = Source(settings, self.metrics, random)
        budget = Budget(settings.dead_letters_per_minute, settings.dead_letter_bytes_per_minute)
        self.writer = Writer(
            settings, catalogue, self.metrics, self.checker.sample_json, budget, random
        )
        self.watch = Watch(settings, catalogue, self.metrics, self.writer)
        limits = BatchLimits(settings.batch_rows, wait_s=settings.batch_wait_ms / 1000)
        self.pipeline = Pipeline(
            self.source.inbox, self.checker, Batcher(limits, budget), self.writer, self.metrics
        )
        self.http_port: int | None = None
        """Where HTTP listens; None until it does."""
        self.started = asyncio.Event()
        """Set once HTTP listens."""
        self._stop = asyncio.Event()
        self._give_up = asyncio.Event()

    def problems(self) -> list[str]:
        """What keeps this worker from being ready; empty while nothing does."""
        parts = (self.source.problem, self.watch.problem, self.writer.problem)
        return list(dict.fromkeys(problem for problem in parts if problem is not None))

    def stop(self) -> None:
        """Drain and return from `run`; called again, give up at once."""
        if self._stop.is_set():
            self._give_up.set()
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop`; an error that is a bug ends it, and the broker has the messages."""
        settings = self._settings
        async with serve(
            settings.http_host, settings.http_port, self.metrics.registry, self.problems
        ) as self.http_port:
            log.info("started", release=release(), http_port=self.http_port)
            self.started.set()
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self.watch.run(), name="watch")
                source = tasks.create_task(self.source.run(), name="source")
                pipeline = tasks.create_task(self.pipeline.run(), name="pipeline")
                await self._stop.wait()
                log.info("draining", in_flight=self.source.inbox.in_flight)
                self.source.inbox.close()
                await self._drained(pipeline)
                source.cancel()
                await asyncio.wait([source])
                watch.cancel()
        await self.writer.close()
        log.info("stopped")

    async def _drained(self, pipeline: asyncio.Task[None]) -> None:
        """Wait for the pipeline's end, the deadline or a second signal."""
        give_up = asyncio.ensure_future(self._give_up.wait())
        await asyncio.wait(
            [pipeline, give_up], timeout=DRAIN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        give_up.cancel()
        if not pipeline.done():
            log.warning("gave up draining", left_to_the_broker=self.source.inbox.in_flight)
            self.writer.cut()
            pipeline.cancel()


def _flags(catalogue: Catalogue) -> dict[str, list[str]]:
    """What may be noted in `quality`, by stream: the rules' flags, and those of frames."""
    return {
        name: [*stream.plausibility.flags, *(gbt32960.FLAGS if name in gbt32960.STREAMS else ())]
        for name, stream in catalogue.items()
    }


async def run(settings: Settings, catalogue: Catalogue) -> None:
    """Run one worker until SIGTERM or SIGINT."""
    service = Service(settings, catalogue)
    with signals(service.stop):
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 50)
        await service.run()


@contextlib.contextmanager
def signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and SIGINT while the block runs."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
