"""Dead letters go through the service again: what would come of them, and what comes of them.

The way is that of a message from a broker: checker, batch, writer. What differs:

- A letter is judged as when it arrived, because its age and `received_at` are those of then.
- Values that are digests already stay as they are.
- A letter is deleted in the transaction that stores its samples, or with the last of them if the
  store divides a batch. If it is rejected again, it stays, with its payload untouched.
- No device has a budget: no letter may be lost because there are many.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Self

import asyncpg
import orjson
import structlog

from ingest.batch import Batch, BatchLimits, DeadLetter, Replayed, Written
from ingest.budget import Budget
from ingest.check import Checker
from ingest.config import Settings
from ingest.decode import parse_topic
from ingest.errors import NotReady, Unavailable
from ingest.metrics import Metrics
from ingest.model import Arrival, Checked, Delivery, KeptAs, NoConnection, Reason, Rejected
from ingest.schema import Catalogue, digest_of, load_catalogue
from ingest.store import (
    StoreConnection,
    Writer,
    dead_letters,
    durability_problem,
    expect_migrated,
    may_be_accepted,
)
from ingest.store.dead_letters import Which

STORED = "stored"
IN_PART = "stored in part"
NOT_KEPT = "its payload was not kept"
_NAME = "iov-ingest dead-letters replay"
_MOST_TOLD_BYTES = 200
"""Bytes that size and digest of a message take at most."""
PATIENCE_S = 30.0
"""Seconds without a commit after which a replay ends."""
_LOOK_EVERY_S = 0.2
_ENOUGH = 100
"""Number of letters before their share of failures is judged."""

Bar = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Progress bar for a number of letters; the function that it holds advances it."""


log = structlog.get_logger(__name__)


class Outcome(NamedTuple):
    """Verdict on a letter, when it was kept and now."""

    stream: str
    then: str
    """Reason of the letter."""
    now: str
    """`stored`, `stored in part`, `its payload was not kept`, or the reason of now."""


@dataclass
class ReplayAccount:
    """Result of a replay."""

    letters: int = 0
    """Number of chosen letters."""
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    stored: int = 0
    """Number of samples that were stored."""
    duplicates: int = 0
    """Number of samples that had been stored already."""
    stopped: bool = False
    """True if it stopped because too many failed."""

    @property
    def done(self) -> int:
        """Number of letters that were looked at."""
        return self.outcomes.total()

    @property
    def failed(self) -> int:
        """Number of letters that were rejected again."""
        back = {STORED, IN_PART, NOT_KEPT}
        return sum(n for outcome, n in self.outcomes.items() if outcome.now not in back)

    @property
    def tried(self) -> int:
        """Number of letters whose payload was kept."""
        return sum(n for outcome, n in self.outcomes.items() if outcome.now != NOT_KEPT)

    def as_json(self) -> dict[str, Any]:
        """Return the keys of `--json`."""
        outcomes = [
            {**outcome._asdict(), "letters": letters}
            for outcome, letters in self.outcomes.most_common()
        ]
        return {**vars(self), "outcomes": outcomes, "done": self.done, "failed": self.failed}


class Judge:
    """Judge of letters: two checkers, by the schemas and limits of now."""

    def __init__(self, catalogue: Catalogue, clean: Checker, raw: Checker) -> None:
        """Use the checker `raw` for letters that hold what a vehicle sent, `clean` for others.

        `clean` takes digests as they are; `catalogue` is the one that it knows.
        """
        self.catalogue = catalogue
        self._clean = clean
        self._raw = raw

    @classmethod
    def of(cls, directory: Path | None, settings: Settings) -> Self:
        """Return a judge by the schemas of a directory and the limits from the settings."""
        digest = digest_of(settings.digest_key_file)
        clean = load_catalogue(directory, digest, digested=True)
        raw = load_catalogue(directory, digest)
        return cls(clean, Checker.of(clean, settings), Checker.of(raw, settings))

    def now(self, id_: int, letter: DeadLetter) -> str:
        """Return the outcome of a letter, as far as it is known without the store."""
        if is_not_kept(letter):
            return NOT_KEPT
        checked = self.check(replayed(id_, letter))
        reasons = [one.reason.value for one in checked.outcomes if isinstance(one, Rejected)]
        return _outcome(reasons, rows=len(checked.outcomes) > len(reasons))

    def check(self, delivery: Replayed) -> Checked:
        """Check a letter again, and note whether it stays one if it is rejected.

        It stays one if nothing of it can be stored, or if a part of it would be kept as size and
        digest only. Then it has one outcome.
        """
        checker = self._of(delivery.letter)
        try:
            checked = checker.check(delivery)
        except Exception:
            # As in the pipeline, any error is this one letter's.
            log.exception("internal error on one letter", letter=delivery.id)
            checked = checker.internal_error(delivery)
        rejected = [one for one in checked.outcomes if isinstance(one, Rejected)]
        told_only = [one for one in rejected if one.kept is KeptAs.DIGEST]
        whole = told_only or (rejected if len(rejected) == len(checked.outcomes) else [])
        delivery.whole = bool(whole) or len(checked.outcomes) == 1
        if whole:
            return Checked(checked.stream, [whole[0]], len(delivery.payload))
        return checked

    def samples_json(self, delivery: Delivery, indexes: Sequence[int]) -> list[bytes]:
        """Return samples of a letter, by index, in the form that dead letters keep."""
        assert isinstance(delivery, Replayed)
        return self._of(delivery.letter).samples_json(delivery, indexes)

    def _of(self, letter: DeadLetter) -> Checker:
        return self._raw if letter.kept == KeptAs.RAW else self._clean


def replayed(id_: int, letter: DeadLetter) -> Replayed:
    """Return a letter as a message that arrives again.

    Its topic is the one it came by, unless it is a sample of a frame, whose topic names no stream.
    """
    topic = letter.topic
    address = letter.device, letter.stream
    if None not in address and parse_topic(topic) != address:
        topic = f"iov/v1/{letter.device}/{letter.stream}"
    arrival = Arrival(letter.received_at, time.monotonic())
    return Replayed(
        topic, letter.payload, None, None, None, arrival, NoConnection(), id=id_, letter=letter
    )


def is_not_kept(letter: DeadLetter) -> bool:
    """Return whether only size and digest of what was rejected were kept, or nothing.

    Letters that were written before that was noted (`kept` is None) are judged by their looks.
    """
    payload = letter.payload
    if not payload or letter.kept is not None:
        return not payload or letter.kept == KeptAs.DIGEST
    if len(payload) > _MOST_TOLD_BYTES or not payload.startswith(b'{"bytes":'):
        return False
    try:
        return set(orjson.loads(payload)) == {"bytes", "sha256"}
    except (TypeError, ValueError):
        return False


def _outcome(reasons: list[str], *, rows: bool) -> str:
    """Return what became of a letter: reasons of what was rejected, and whether there are rows."""
    if not reasons:
        return STORED
    return IN_PART if rows else min(reasons)


@dataclass
class _Some:
    """Letters that are written together."""

    batch: Batch = field(default_factory=lambda: Batch(time.monotonic()))
    letters: dict[int, DeadLetter] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    """Number of samples of each letter; 1 if it stays whole."""


def _without_limit() -> Budget:
    """Return a budget of dead letters that no device exhausts."""
    return Budget(sys.maxsize, sys.maxsize)


async def _patiently(writer: Writer, batch: Batch, patience_s: float) -> Written:
    """Write a batch; raise Unavailable once nothing could be committed for `patience_s`."""
    async with asyncio.TaskGroup() as tasks:
        write = tasks.create_task(writer.write(batch), name="write letters")
        watch = tasks.create_task(_trouble_of(writer, patience_s), name="patience")
        watch.add_done_callback(lambda _: write.cancel())
        write.add_done_callback(lambda _: watch.cancel())
    if write.cancelled():
        raise Unavailable(watch.result())
    return write.result()


async def _trouble_of(writer: Writer, patience_s: float) -> str:
    """Return the reason why nothing could be committed for `patience_s`, once that is so."""
    trouble, quiet_s = writer.connection.trouble, time.monotonic()
    while time.monotonic() - quiet_s <= patience_s:
        await asyncio.sleep(_LOOK_EVERY_S)  # nobody reports that a trouble lasts
        if trouble.text is None:
            quiet_s = time.monotonic()
    return f"{trouble.server}: {trouble.text}"


class LetterReplay:
    """The chosen letters that are there at its start, in the order in which they were kept."""

    def __init__(self, connection: asyncpg.Connection, which: Which) -> None:
        """Read letters over `connection`."""
        self.account = ReplayAccount()
        """Account of the letters so far."""
        self._connection = connection
        self._which = which

    async def dry_run(self, judge: Judge, bar: Bar) -> ReplayAccount:
        """Judge all letters, change nothing."""
        last = await self._begin()
        with bar(self.account.letters) as advance:
            async for letters in dead_letters.some_at_a_time(self._connection, self._which, last):
                for id_, letter in letters:
                    self._note(letter, judge.now(id_, letter))
                advance(len(letters))
        return self.account

    async def run(
        self,
        settings: Settings,
        judge: Judge,
        most_failed: float,
        bar: Bar,
        patience_s: float = PATIENCE_S,
    ) -> ReplayAccount:
        """Replay the letters until all are done, or until too large a share of them failed.

        Raises NotReady if the database is not migrated to the schemas or must not be written, and
        Unavailable if nothing can be committed for `patience_s`. What is done stays done.
        """
        await expect_migrated(self._connection, judge.catalogue)
        problem = await durability_problem(self._connection)
        if problem is not None and not may_be_accepted(problem, settings):
            raise NotReady(problem)
        last = await self._begin()
        metrics = Metrics(dict.fromkeys(judge.catalogue, ()))
        connection = StoreConnection(
            settings.database, _NAME, judge.catalogue, metrics,
            Random(),  # noqa: S311  spreads reconnects, protects nothing
            settings.commit_timeout_s,
        )  # fmt: skip
        writer = Writer(connection, judge.catalogue, metrics, judge.samples_json, _without_limit())
        account, limits = self.account, BatchLimits.of(settings)
        try:
            with bar(account.letters) as advance:
                async for letters in dead_letters.some_at_a_time(
                    self._connection, self._which, last
                ):
                    for some in self._batches(letters, judge, limits):
                        written = await _patiently(writer, some.batch, patience_s)
                        self._count(some, written)
                    advance(len(letters))
                    if account.tried >= _ENOUGH and account.failed > most_failed * account.tried:
                        account.stopped = account.done < account.letters
                        break
        finally:
            await connection.close()
        return account

    async def _begin(self) -> int:
        """Count the chosen letters; return the id of the last that is there."""
        last = await dead_letters.last_id(self._connection)
        found = await dead_letters.groups(self._connection, self._which)
        self.account.letters = sum(group.letters for group in found)
        return last

    def _batches(
        self, letters: Iterable[tuple[int, DeadLetter]], judge: Judge, limits: BatchLimits
    ) -> Iterator[_Some]:
        """Yield batches of letters, each as large as a worker's may be."""
        some, budget = _Some(), _without_limit()
        for id_, letter in letters:
            if is_not_kept(letter):
                self._note(letter, NOT_KEPT)
                continue
            delivery = replayed(id_, letter)
            checked = judge.check(delivery)
            some.letters[id_] = letter
            some.samples[id_] = len(checked.outcomes)
            some.batch.add(delivery, checked, budget, 0.0)
            some.batch.replayed.add(id_)
            if some.batch.samples >= limits.rows or some.batch.size_bytes >= limits.size_bytes:
                yield some
                some = _Some()
        if some.letters:
            yield some

    def _count(self, some: _Some, written: Written) -> None:
        """Note what became of each letter of a batch."""
        self.account.stored += written.stored.total()
        self.account.duplicates += written.duplicate.total()
        reasons: dict[int, list[str]] = {}
        for letter in written.letters:
            if letter.replayed is not None:
                reasons.setdefault(letter.replayed, []).append(letter.reason)
        for id_, letter in some.letters.items():
            why = reasons.get(id_, [])
            if not why and id_ in written.staying:
                why = [Reason.REFUSED_BY_STORE.value]  # not even why could be noted
            self._note(letter, _outcome(why, rows=some.samples[id_] > len(why)))

    def _note(self, letter: DeadLetter, now: str) -> None:
        self.account.outcomes[Outcome(letter.stream or "", letter.reason, now)] += 1
