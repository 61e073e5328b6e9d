"""The composition root: builds every part from Settings, runs them, and stops them in order.

Stopping is in two steps. Drain: nothing more is taken in, what is in is committed and
acknowledged, the broker gets DISCONNECT and keeps the session. Give up, after a deadline or a
second signal: everything is dropped, which is safe, for nothing is acknowledged that was not
committed. Leaving for good comes before: the subscription ends first, then what the broker still
has for this worker is taken out, and then its session ends.
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
from ingest.budget import Budget
from ingest.check import Checker
from ingest.clock import Clock
from ingest.config import Settings
from ingest.errors import Unavailable
from ingest.metrics import Metrics, release
from ingest.pipeline import Pipeline
from ingest.schema import Catalogue
from ingest.source import Source
from ingest.store import Guard, Heartbeat, Watch, Writer, maintain_hourly, registry
from ingest.store.heartbeat import mend
from ingest.store.registry import Registered
from ingest.trouble import Trouble
from ingest.worker.account import account
from ingest.worker.observe import observe
from ingest.worker.pulse import Pulse

DRAIN_TIMEOUT_S = 20.0
"""With what stopping takes after it (5 s at the broker, 3 s at the database) below the 30 s that
Kubernetes gives by default. A worker told to stop while it leaves for good has so long twice."""
QUIET_S = 2.0
"""Nothing in flight, nothing new for so long, with the window open: the broker has no more."""
_LOOK_EVERY_S = 0.1
_STRIKE_OFF_TIMEOUT_S = 2.0
_ADVICE_EVERY_S = 1.0
_IPV6 = 6

log = structlog.get_logger(__name__)


class Service:
    """One worker. `run` it; `stop` makes it drain and return, `leave` makes it leave for good."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        *,
        checker: Checker | None = None,
        database_name: str | None = None,
        once_only: bool = False,
    ) -> None:
        """`database_name` is what its connection is called there, if not by the client id.

        `once_only`: the first `stop` has it leave for good, even as the last worker.
        """
        random = Random()  # noqa: S311  spreads reconnects, protects nothing
        self._settings = settings
        self._catalogue = catalogue
        self._random = random
        self.metrics = Metrics(_flags(catalogue))
        self.checker = checker or Checker.of(catalogue, settings)
        self.source = Source(settings, self.metrics, random)
        budget = Budget(settings.dead_letters_per_minute, settings.dead_letter_bytes_per_minute)
        self.writer = Writer(
            settings,
            catalogue,
            self.metrics,
            self.checker.samples_json,
            budget,
            random,
            database_name,
        )
        self.clock = Clock()
        self.watch = Watch(settings, catalogue, self.metrics, self.writer, self.clock)
        batcher = Batcher(BatchLimits.of(settings), budget)
        about = web.About(
            settings.mqtt_client_id,
            settings.broker_address,
            settings.subscription,
            settings.database_address,
        )
        self._live = web.Live(self.metrics, catalogue, self._state, about)
        token = settings.http_token
        self._page = web.Page(self._live, token.get_secret_value() if token else None)
        self.guard = Guard(settings, random)
        self.pipeline = Pipeline(
            self.source.inbox, self.checker, batcher, self.writer, self.metrics,
            self.guard, self.clock, self._committed,
        )  # fmt: skip
        self.metrics.ready.set_function(lambda: not self.problems())
        self.http_port: int | None = None
        """Where HTTP listens; None until it does."""
        self.started = asyncio.Event()
        """Set once HTTP listens."""
        self.heartbeat = Heartbeat(settings, self.metrics)
        self._pulse = Pulse()
        self._stop = asyncio.Event()
        self._give_up = asyncio.Event()
        self._once_only = once_only
        self._leaving = False
        self._has_left = False

    def _committed(self, committed: Committed) -> None:
        observe(self.metrics, committed)
        self._live.committed(committed)

    def problems(self) -> list[str]:
        """What keeps this worker from being ready; empty while nothing does."""
        troubles = (self.source.trouble, self.watch.trouble, self.writer.trouble)
        # The watch and the writer often say the same: then once, since the first of them.
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

    def _state(self) -> web.State:
        inbox, asked = self.source.inbox, self._settings.mqtt_receive_maximum
        limit, workers = inbox.broker_window.limit, self.heartbeat.workers
        at_work = None if workers is None else [worker._asdict() for worker in workers]
        warnings = [self.watch.warning] if self.watch.warning else []
        warnings += [f"{name} is silent: {mend(name)}" for name in self.heartbeat.silent]
        return web.State(self.problems(), warnings, inbox.in_flight, asked, limit, at_work)

    def _stuck(self) -> str | None:
        inbox = self.source.inbox
        waited_s = time.monotonic() - inbox.waiting_since_s
        if not inbox.in_flight or waited_s < self._settings.stuck_after_s:
            return None
        return f"{inbox.in_flight} messages in flight and none committed for {waited_s:.0f} s"

    def stop(self) -> None:
        """Drain and return from `run`; called again, give up at once."""
        if self._once_only:
            self._once_only = False
            self.heartbeat.asked_to_leave = True
            self.leave()
            return
        if self._stop.is_set():
            self._give_up.set()
        self._stop.set()

    def leave(self) -> None:
        """Leave for good: take out what the broker has for this worker, and end its session.

        Refused, with a word in the log, while there is no other worker to take what is new.
        """
        self.heartbeat.leave_wanted.set()

    async def run(self) -> None:
        """Work until `stop`; an error that is a bug ends it, and the broker has the messages."""
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
                leaving = tasks.create_task(self._leave_for_good(), name="leave for good")
                await self._stop.wait()
                if self._leaving:
                    await self._first_of(leaving)
                for task in (*others, leaving):
                    task.cancel()
                log.info("draining", in_flight=self.source.inbox.in_flight)
                self.source.inbox.close()
                await self._drained(pipeline)
                source.cancel()
                await asyncio.wait([source])
                watch.cancel()
        await self.writer.close()
        if self._has_left and self.source.session_ended:
            await self._strike_off()
            log.info("left for good")
        else:
            if self._leaving:
                log.warning("leaving was interrupted", hint="iov-ingest drain takes out the rest")
            client_id, kept_s = self._settings.mqtt_client_id, self._settings.mqtt_session_expiry_s
            log.info(
                "stopped",
                session=f"kept by the broker for {kept_s} s, with its share of what is published",
                hint=f"start {client_id} again, or iov-ingest drain --client-id {client_id}",
            )

    async def take_over(self, filter_: str) -> int:
        """Take out what the broker keeps for a worker that is gone, and end its session.

        The settings hold that worker's client id, `filter_` is what it was subscribed to. How many
        messages it was. Raises NoSession where the broker keeps none, else Unavailable where the
        connection ended before it was done: its owner may be back.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self.watch.run(), name="watch")
                pipeline = tasks.create_task(self.pipeline.run(), name="pipeline")
                session = tasks.create_task(self._session_of(filter_), name="session")
                quiet = tasks.create_task(self._quiet(), name="quiet")
                await asyncio.wait([session, quiet], return_when=asyncio.FIRST_COMPLETED)
                done = not session.done()
                if done:
                    self.source.end_session()
                quiet.cancel()
                self.source.inbox.close()
                await self._drained(pipeline)
                session.cancel()
                watch.cancel()
        finally:
            await self.writer.close()
        if not done:
            raise session.result()
        return self.source.inbox.taken

    async def _session_of(self, filter_: str) -> Unavailable:
        """What ended the one connection."""
        try:
            await self.source.take_over(filter_)
        except Unavailable as exc:
            return exc
        raise AssertionError("a session ends with an exception")

    async def _leave_for_good(self) -> None:
        wanted = self.heartbeat.leave_wanted
        await wanted.wait()
        while not (self.heartbeat.asked_to_leave or await self._may_leave()):
            wanted.clear()
            log.error(
                "not leaving",
                why="no other worker at work on this subscription, or the register is away",
                hint="what is published would be kept for nobody: start another one first, or "
                "iov-ingest drain --last",
            )
            await wanted.wait()
        self._leaving = True
        log.info("leaving for good", in_flight=self.source.inbox.in_flight)
        await self.source.leave()
        await self._quiet()
        self.source.end_session()
        self._has_left = True
        self._stop.set()

    async def _quiet(self) -> None:
        """Wait until the broker has nothing more for us.

        Nothing came for a while, nothing is in flight, and then the broker answers us and nothing
        has come before its answer: so it was not the network that was quiet.
        """
        source = self.source
        since_s = time.monotonic()
        while not (source.nothing_left and not source.inbox.in_flight):
            await asyncio.sleep(_LOOK_EVERY_S)
            if source.problem is not None or source.inbox.in_flight:
                since_s = time.monotonic()
            since_s = max(since_s, source.inbox.put_s)
            if time.monotonic() - since_s < QUIET_S:
                continue
            answered = await source.leave()
            if answered and not source.inbox.in_flight and source.inbox.put_s <= since_s:
                return
            since_s = time.monotonic()

    async def _may_leave(self) -> bool:
        settings = self._settings
        us = Registered(settings.mqtt_client_id, settings.subscription, alive=True)
        try:
            async with registry.reading(settings) as connection:
                return await registry.may_leave(connection, settings, us)
        except Unavailable:
            return False

    async def _strike_off(self) -> None:
        settings = self._settings
        try:
            async with (
                asyncio.timeout(_STRIKE_OFF_TIMEOUT_S),
                registry.reading(settings) as connection,
            ):
                await registry.forget(connection, settings, settings.mqtt_client_id)
        except (Unavailable, TimeoutError) as exc:
            log.warning("left, but still in the register", why=str(exc), hint="iov-ingest drain")

    async def _miss_session(self) -> None:
        """Say so if the broker has no session of a worker that the register knows.

        It had expired while the worker was away: whoever leaves for good is struck off.
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
            asked=self._settings.mqtt_receive_maximum,
            hint="set max_inflight_messages 0 (mosquitto), mqtt.max_inflight (EMQX) or its like",
        )

    async def _first_of(self, task: asyncio.Task[None]) -> None:
        """Wait for the end of a task, the deadline or a second signal."""
        give_up = asyncio.ensure_future(self._give_up.wait())
        await asyncio.wait(
            [task, give_up], timeout=DRAIN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        give_up.cancel()

    async def _drained(self, pipeline: asyncio.Task[None]) -> None:
        await self._first_of(pipeline)
        if not pipeline.done():
            log.warning("gave up draining", left_to_the_broker=self.source.inbox.in_flight)
            self.writer.cut()
            pipeline.cancel()
        # Whatever is left was not fatal: we are here.
        await self.guard.end()


def _flags(catalogue: Catalogue) -> dict[str, list[str]]:
    """What may be noted in `quality`, by stream: the rules' flags, and those of frames."""
    return {
        name: [*stream.plausibility.flags, *(gbt32960.FLAGS if name in gbt32960.STREAMS else ())]
        for name, stream in catalogue.items()
    }


def _named(host: str) -> str:
    """Name the host that HTTP listens on as others do, and as it stands in a URL."""
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
