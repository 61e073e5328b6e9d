"""The composition root: builds every part from Settings, runs them, and stops them in order.

Stopping is in two steps:

1. Drain: nothing more is taken in, messages in flight are committed and acknowledged, then the
   broker gets DISCONNECT and keeps the session.
2. Give up, after a deadline or a second signal: everything is dropped. That is safe, because
   nothing is acknowledged that was not committed.

A worker that leaves for good (`leave`) does so before it drains, and then keeps no session.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from random import Random

import structlog

from ingest import gbt32960, web
from ingest.batch import Batcher, BatchLimits, Committed
from ingest.broker import Broker
from ingest.budget import Budget
from ingest.check import Checker
from ingest.clock import Clock
from ingest.config import Settings
from ingest.metrics import Metrics, release
from ingest.pipeline import Pipeline
from ingest.schema import Catalogue
from ingest.source import Source, Stage
from ingest.store import (
    Guard,
    Heartbeat,
    StoreConnection,
    Watch,
    Writer,
    maintain_hourly,
)
from ingest.store.heartbeat import mend
from ingest.trouble import Trouble
from ingest.worker.account import account
from ingest.worker.leave import Leave
from ingest.worker.observe import observe
from ingest.worker.pulse import Pulse

DRAIN_TIMEOUT_S = 20.0
"""Seconds that a worker may drain.

After it, stopping takes 5 s at the broker and 3 s at the database, in all less than the 30 s that
Kubernetes gives by default. A worker told to stop while it leaves for good has this time
twice.
"""
_ADVICE_EVERY_S = 1.0
_IPV6 = 6

log = structlog.get_logger(__name__)


class Service:
    """One worker: `run` it; `stop` makes it drain and return, `leave.ask` leave for good."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        *,
        checker: Checker | None = None,
        session: Broker | None = None,
        database_name: str | None = None,
    ) -> None:
        """Build a worker from its settings.

        `session` is another worker's session, used instead of the one in the settings.
        `database_name` names the database connection; default: the session's `application_name`.
        """
        random = Random()  # noqa: S311  spreads reconnects, protects nothing
        broker, database = session or settings.broker, settings.database
        self._settings = settings
        self._broker = broker
        self._catalogue = catalogue
        self._random = random
        self.metrics = Metrics(_flags(catalogue))
        self.checker = checker or Checker.of(catalogue, settings)
        self.source = Source(broker, self.metrics, random)
        budget = Budget(settings.dead_letters_per_minute, settings.dead_letter_bytes_per_minute)
        self.connection = StoreConnection(
            database,
            database_name or broker.application_name,
            catalogue,
            self.metrics,
            random,
            settings.commit_timeout_s,
        )
        self.writer = Writer(
            self.connection, catalogue, self.metrics, self.checker.samples_json, budget
        )
        self.clock = Clock()
        self.watch = Watch(settings, catalogue, self.metrics, self.connection, self.clock)
        batcher = Batcher(BatchLimits.of(settings), budget)
        about = web.About(
            broker.client_id,
            broker.address,
            broker.subscription,
            database.address,
        )
        self._live = web.Live(self.metrics, catalogue, self._state, about)
        token = settings.http_token
        self._page = web.Page(self._live, token.get_secret_value() if token else None)
        self.guard = Guard(database, broker, random)
        self.pipeline = Pipeline(
            self.source.inbox, self.checker, batcher, self.writer, self.metrics,
            self.guard, self.clock, self._committed,
        )  # fmt: skip
        self.metrics.ready.set_function(lambda: not self.problems())
        self.http_port: int | None = None
        """Port that HTTP listens on; None until it listens."""
        self.started = asyncio.Event()
        """Set once HTTP listens."""
        self.leave = Leave(database, broker, self.source)
        self.heartbeat = Heartbeat(
            database, broker, self.metrics, lambda: self.leave.ask(granted=True)
        )
        self._pulse = Pulse()
        self._stop = asyncio.Event()
        self._give_up = asyncio.Event()

    def _committed(self, committed: Committed) -> None:
        observe(self.metrics, committed)
        self._live.committed(committed)

    def problems(self) -> list[str]:
        """Return the reasons why this worker is not ready; empty while it is ready."""
        troubles = (self.source.trouble, self.watch.trouble, self.connection.trouble)
        # If the watch and the writer report the same problem, list it once, with the earlier start.
        servers: dict[tuple[str, str | None], Trouble] = {}
        for trouble in troubles:
            first = servers.setdefault((trouble.server, trouble.text), trouble)
            if trouble.since < first.since:
                servers[trouble.server, trouble.text] = trouble
        parts = (
            *(trouble.told for trouble in servers.values()),
            self.writer.closed,
            self.clock.problem,
            self._stuck(),
            self._pulse.problem,
            "stopping" if self._stop.is_set() else None,
        )
        return list(dict.fromkeys(problem for problem in parts if problem is not None))

    def _state(self) -> web.WorkerState:
        inbox, asked = self.source.inbox, self._broker.receive_maximum
        limit, workers = inbox.broker_window.limit, self.heartbeat.workers
        at_work = None if workers is None else [worker._asdict() for worker in workers]
        warnings = [self.watch.warning] if self.watch.warning else []
        warnings += [f"{name} is silent: {mend(name)}" for name in self.heartbeat.silent]
        return web.WorkerState(self.problems(), warnings, inbox.in_flight, asked, limit, at_work)

    def _stuck(self) -> str | None:
        inbox = self.source.inbox
        waited_s = time.monotonic() - inbox.waiting_since_s
        if not inbox.in_flight or waited_s < self._settings.stuck_after_s:
            return None
        return f"{inbox.in_flight} messages in flight and none committed for {waited_s:.0f} s"

    def stop(self) -> None:
        """Drain and return from `run`; called again, give up at once."""
        if self._stop.is_set():
            self._give_up.set()
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop`, or until this worker has left for good.

        An error that is a bug ends it too; the broker still has the unacknowledged messages.
        """
        settings = self._settings
        application = web.worker(self.metrics.registry, self.problems, self._page)
        async with web.serve(settings.http_host, settings.http_port, application) as self.http_port:
            log.info("started", release=release(), http_port=self.http_port)
            self.heartbeat.page_address = f"{_named(settings.http_host)}:{self.http_port}"
            self.started.set()
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self.watch.run(), name="watch")
                source = tasks.create_task(self.source.run(), name="source")
                pipeline = tasks.create_task(self.pipeline.run(), name="pipeline")
                others = [
                    tasks.create_task(self._pulse.run(), name="pulse"),
                    tasks.create_task(self._advise(), name="advise"),
                    tasks.create_task(self.heartbeat.run(), name="heartbeat"),
                    tasks.create_task(self._miss_session(), name="miss session"),
                    tasks.create_task(self._page.run(), name="page"),
                    tasks.create_task(account(self.metrics), name="account"),
                    tasks.create_task(
                        maintain_hourly(settings, self._catalogue, self._random), name="maintain"
                    ),
                ]
                leaving = tasks.create_task(self.leave.run(), name="leave")
                stopping = tasks.create_task(self._stop.wait(), name="stop")
                # Phase 1: work, until told to stop or nothing is left in the session.
                await asyncio.wait([stopping, leaving], return_when=asyncio.FIRST_COMPLETED)
                self._stop.set()
                if self.source.stage is Stage.LEAVING:
                    await self._first_of(leaving)
                for task in (*others, leaving):
                    task.cancel()
                # Phase 2: take nothing in, settle what is in, and only then disconnect.
                log.info("draining", in_flight=self.source.inbox.in_flight)
                self.source.inbox.close()
                await self.finish(pipeline)
                source.cancel()
                await asyncio.wait([source])
                watch.cancel()
        await self.connection.close()
        await self._farewell()

    async def _farewell(self) -> None:
        """Say what becomes of the session."""
        if self.source.stage is Stage.LEFT and not self.source.inbox.in_flight:
            await self.leave.strike_off()
            log.info("left for good")
            return
        if self.source.stage > Stage.STAYING:
            log.warning("leaving was interrupted", hint="iov-ingest leave takes out the rest")
        client_id, kept_s = self._broker.client_id, self._broker.session_expiry_s
        log.info(
            "stopped",
            session=f"kept by the broker for {kept_s} s, with its share of what is published",
            hint=f"start {client_id} again, or iov-ingest leave --client-id {client_id}",
        )

    async def _miss_session(self) -> None:
        """Report a lost session if the register knows this worker but the broker has no session.

        Then the session has expired while the worker was away, because a worker that leaves for
        good is struck off the register.
        """
        if await self.heartbeat.known and not await self.source.found_session:
            self.source.session_lost()

    async def _advise(self) -> None:
        """Say once that the broker's window is the bottleneck."""
        window = self.source.inbox.broker_window
        while window.limit is None:  # noqa: ASYNC110  not worth an event on the way of the data
            await asyncio.sleep(_ADVICE_EVERY_S)
        log.warning(
            "the broker's window is the bottleneck",
            in_flight_at_most=window.limit,
            asked=self._broker.receive_maximum,
            hint="set max_inflight_messages 0 (mosquitto), mqtt.max_inflight (EMQX) or its like",
        )

    async def _first_of(self, task: asyncio.Task[None]) -> None:
        """Wait for the end of a task, the deadline or a second signal."""
        give_up = asyncio.ensure_future(self._give_up.wait())
        await asyncio.wait(
            [task, give_up], timeout=DRAIN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        give_up.cancel()

    async def finish(self, pipeline: asyncio.Task[None]) -> None:
        """Wait until the pipeline has settled all that is in flight; give up after the deadline."""
        await self._first_of(pipeline)
        if not pipeline.done():
            log.warning("gave up draining", left_to_the_broker=self.source.inbox.in_flight)
            self.connection.cut()
            pipeline.cancel()
        # No message that is left has killed this process.
        await self.guard.end()


def _flags(catalogue: Catalogue) -> dict[str, list[str]]:
    """Return all possible `quality` flags by stream: of the rules, and of GB/T 32960 frames."""
    return {
        name: [*stream.plausibility.flags, *(gbt32960.FLAGS if name in gbt32960.STREAMS else ())]
        for name, stream in catalogue.items()
    }


def _named(host: str) -> str:
    """Return the host that HTTP listens on, in the form that others use in a URL."""
    try:
        address = ip_address(host)
    except ValueError:
        return host or socket.gethostname()
    if address.is_unspecified or address.is_loopback:
        return socket.gethostname()
    return f"[{host}]" if address.version == _IPV6 else host


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
