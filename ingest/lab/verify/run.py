"""One run: load, faults on their schedule, rest, account."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import asyncpg
import orjson

from ingest.errors import IngestError, ServerError
from ingest.lab.process import COMMAND
from ingest.lab.until import until
from ingest.lab.verify.account import Account, Accounting, Found
from ingest.lab.verify.ledger import STREAMS, VISITOR, Ledger
from ingest.lab.verify.plan import Due, Event, FaultPlan, Moment, Result
from ingest.lab.verify.servers import Servers
from ingest.lab.verify.world import ADOPT_AFTER_S, World, world
from ingest.schema import load_catalogue

_AT_ONCE = 100
_RECOVERY_S = 90.0
_LOOK_EVERY_S = 0.05
_SAMPLE_EVERY_S = 1.0
_ROWS_AT_ONCE = 5_000
_OURS = {"device", "device_id", "received_at", "resend", "quality", "committed"}
"""Columns not compared with the sample: identity, and what the service adds by itself."""


Progress = Callable[[World, str, float], None]
"""Callback that is called twenty times a second.

Its arguments are the world, the present fault (an empty text if there is no fault) and the seconds
since the start.
"""


async def run(
    servers: Servers,
    plan: FaultPlan,
    progress: Progress,
    logs: Path,
    *,
    command: Sequence[str] = COMMAND,
) -> Result:
    """Carry out a plan; `command` starts a worker, whose log goes to a file in `logs`."""
    ledger = Ledger(plan.seed, plan.devices, datetime.now(UTC))
    crew = world(
        servers,
        ledger,
        workers=plan.workers,
        logs=logs,
        command=command,
        mqtt_client=plan.source,
    )
    async with crew as whole:
        course = Course(whole, plan, progress)
        await course.run()
        crashes = await _stop(whole)
        account = await account_of(whole)
    return Result(
        plan, account, course.seconds, course.events, course.moments, crashes, whole.unwell
    )


class Course:
    """The part under load, from the first message to rest."""

    def __init__(self, whole: World, plan: FaultPlan, progress: Progress) -> None:
        self._world, self._plan, self._progress = whole, plan, progress
        self._began_s = time.monotonic()
        self._slot_s = self._began_s
        self._over = False
        self._broken = ""
        self.events: list[Event] = []
        self.moments: list[Moment] = []
        self.seconds = 0.0

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def run(self) -> None:
        """Run load and faults as planned, then wait for rest."""
        plan = self._plan
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch(), name="watch")
            async with self.load():
                for due in plan.schedule():
                    late = self._now_s >= plan.duration_s
                    if late and len(self.events) >= len(plan.faults):
                        break
                    await self._until(due.at_s)
                    await self._break(due)
                await self._until(plan.duration_s)
                self.seconds = self._now_s
            await self.rest()
            watching.cancel()

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self._now_s))

    async def _break(self, due: Due) -> None:
        began_s, name = self._now_s, due.fault.name
        self._broken = name
        try:
            await due.fault.break_(self._world, Random(due.seed))
        except (IngestError, OSError, TimeoutError, asyncpg.PostgresError) as exc:
            why = str(exc) or type(exc).__name__
            self._world.unwell.append(f"{name} at {began_s:.0f} s: {why}")
            await self._mend()
        self._broken = f"{name}, recovering"
        mended_s = self._now_s
        recovered_s = None
        try:
            await self._recovered()
            recovered_s = self._now_s
        except ServerError as exc:
            self._world.unwell.append(f"after {name} at {began_s:.0f} s: {exc}")
        self.events.append(Event(name, began_s, mended_s, recovered_s))
        self._broken = ""

    async def _mend(self) -> None:
        """Make everything run and flow again, after a fault that could not be carried out."""
        whole = self._world
        database, broker = whole.servers.database, whole.servers.broker
        if database is not None and not database.runs:
            await asyncio.to_thread(database.start)
        if broker is not None and not broker.runs:
            await broker.start()
        for worker in whole.workers:
            worker.broker.flow()
            worker.database.flow()
            if worker.process is None:
                await worker.start()
        whole.gate.flow()
        whole.publishing.set()

    async def _recovered(self) -> None:
        ledger, since = self._world.ledger, self._world.ledger.issued
        await until(self._world.all_ready, "ready workers", _RECOVERY_S)
        await until(
            lambda: any(ledger.settled_s(n) < float("inf") for n in range(since, ledger.issued)),
            "an acknowledgement",
            _RECOVERY_S,
        )

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Publish at the planned rate while the block runs, then wait for the acknowledgements."""
        self._world.publishing.set()
        async with self._world.publisher, asyncio.TaskGroup() as tasks:
            for number in range(_AT_ONCE):
                tasks.create_task(self._publish(), name=f"publish {number}")
            try:
                yield
            finally:
                # The flag also ends tasks that miss their cancellation: wait_for of Python 3.11
                # swallows it if an answer comes at the same time.
                self._over = True
                self._world.publishing.set()

    async def _publish(self) -> None:
        whole, ledger = self._world, self._world.ledger
        while True:
            await self._turn()
            await whole.publishing.wait()
            if self._over:
                return
            message = ledger.issue()
            whole.outstanding += 1
            try:
                await whole.publish(message)
                ledger.acknowledged(message.number)
            finally:
                whole.outstanding -= 1

    async def _turn(self) -> None:
        """Wait for the next send time at the planned rate; missed ones are not made up for."""
        now_s = time.monotonic()
        self._slot_s = max(self._slot_s + 1 / self._plan.rate, now_s)
        await asyncio.sleep(self._slot_s - now_s)

    async def rest(self) -> None:
        """Wait until workers have acknowledged every debt, or made no progress for `rest_s`."""
        ledger = self._world.ledger
        try:
            # A session is adopted after ADOPT_AFTER_S of silence, if the database was up all that
            # time; workers look four times in that period.
            await until(self._world.adopted, "the adoption of a session", 2 * ADOPT_AFTER_S)
        except ServerError as exc:
            self._world.unwell.append(str(exc))
        settled, since_s = ledger.settled, time.monotonic()
        while time.monotonic() - since_s < self._plan.rest_s:
            if all(
                ledger.settled_s(n) < float("inf") or not ledger.is_owed(n)
                for n in range(ledger.issued)
            ):
                return
            if ledger.settled != settled:
                settled, since_s = ledger.settled, time.monotonic()
            await asyncio.sleep(_LOOK_EVERY_S * 4)

    async def _watch(self) -> None:
        next_s = 0.0
        while True:
            for worker in self._world.workers:
                await worker.revive()
            if self._now_s >= next_s:
                next_s += _SAMPLE_EVERY_S
                ledger = self._world.ledger
                resources = [worker.resources() for worker in self._world.workers]
                self.moments.append(
                    Moment(self._now_s, ledger.published, ledger.settled, resources)
                )
            self._progress(self._world, self._broken, self._now_s)
            await asyncio.sleep(_LOOK_EVERY_S)


async def _stop(whole: World) -> int:
    """Stop every worker cleanly; return how often workers had ended by themselves."""
    for worker in whole.workers:
        status = await worker.end(signal.SIGTERM)
        if status:
            whole.unwell.append(f"worker {worker.number} left its last SIGTERM with {status}")
    return sum(worker.crashes for worker in whole.workers)


async def account_of(whole: World) -> Account:
    """Read every row and dead letter, and return the account."""
    accounting = Accounting(whole.ledger)
    async with whole.owner() as owner, owner.transaction():
        kept = await owner.fetchval("SHOW track_commit_timestamp") == "on"
        offset_s = await _clock_offset_s(owner)
        committed = "pg_xact_commit_timestamp(t.xmin)" if kept else "NULL::timestamptz"
        for stream in STREAMS:
            query = (
                f"SELECT d.device, t.*, {committed} AS committed "  # noqa: S608  names of ours
                # LEFT JOIN: a row without a device is kept, and counts as never sent.
                f"FROM iov.{stream} t LEFT JOIN iov.device d USING (device_id)"
            )
            async for record in owner.cursor(query, prefetch=_ROWS_AT_ONCE):
                accounting.row(_found_row(record, stream, offset_s))
        for any_stream in load_catalogue().values():
            query = (
                f"SELECT DISTINCT device FROM iov.{any_stream.table} "  # noqa: S608  likewise
                "JOIN iov.device USING (device_id) WHERE starts_with(device, $1)"
            )
            for record in await owner.fetch(query, VISITOR):
                accounting.visitor(record["device"])
        query = (
            f"SELECT device, stream, reason, payload, {committed} AS committed "  # noqa: S608  likewise
            "FROM iov.dead_letter t ORDER BY committed"
        )
        async for record in owner.cursor(query, prefetch=_ROWS_AT_ONCE):
            accounting.letter(_found_letter(record, offset_s))
    return accounting.close()


async def _clock_offset_s(owner: asyncpg.Connection) -> float:
    """Return by how many seconds, at most, the database's clock is ahead of ours.

    Return 0 if the two may be the same clock.
    """
    before_s = time.time()
    there: datetime = await owner.fetchval("SELECT clock_timestamp()")
    ahead_s = there.timestamp() - before_s
    return 0.0 if 0 <= ahead_s <= time.time() - before_s else ahead_s


def _found_row(record: asyncpg.Record, stream: str, offset_s: float) -> Found:
    values = {k: v for k, v in record.items() if v is not None and k not in _OURS}
    return Found(record["device"] or "", stream, record["seq"], values, _unix_s(record, offset_s))


def _found_letter(record: asyncpg.Record, offset_s: float) -> Found:
    try:
        payload = orjson.loads(record["payload"])
    except orjson.JSONDecodeError:
        payload = {}
    seq = payload.get("seq", -1) if isinstance(payload, dict) else -1
    device, stream = record["device"] or "", record["stream"] or ""
    return Found(device, stream, seq, payload, _unix_s(record, offset_s), record["reason"])


def _unix_s(record: asyncpg.Record, offset_s: float) -> float | None:
    committed: datetime | None = record["committed"]
    return None if committed is None else committed.timestamp() - offset_s
