"""Dead letters go through the service again: what would come of them, and what comes of them.

The way is that of a message from a broker: checker, batch, writer. What differs:

- A letter is judged as when it arrived, because its age and `received_at` are those of then.
- Values that are digests already stay as they are.
- A letter is deleted in the transaction that stores its samples, or with the last of them if the
  store divides a batch. If it is rejected again, it stays, with its payload untouched.
- No device has a budget: no letter may be lost because there are many.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, Self

import asyncpg
import orjson

from ingest.batch import Batch, DeadLetter, Replayed, Written
from ingest.budget import Budget
from ingest.check import Checker
from ingest.config import Settings
from ingest.decode import parse_topic
from ingest.metrics import Metrics
from ingest.model import Arrival, Checked, Rejected
from ingest.schema import Catalogue
from ingest.store import StoreConnection, Writer, dead_letters
from ingest.store.dead_letters import Which

STORED = "stored"
IN_PART = "stored in part"
NOT_KEPT = "its payload was not kept"
_NAME = "iov-ingest dead-letters replay"
_MOST_TOLD_BYTES = 200
"""Bytes that size and digest of a message take at most."""
_ENOUGH = 100
"""Number of letters before their share of failures is judged."""

Bar = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Progress bar for a number of letters; the function that it holds advances it."""


class _Broker:
    """No broker: a letter was acknowledged when it was written."""

    def acknowledge(self, packet_ids: Any) -> None:
        """Do nothing."""


class Outcome(NamedTuple):
    """What was said of a letter, and what is said of it now."""

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
        kept = (n for outcome, n in self.outcomes.items() if outcome.now != NOT_KEPT)
        return sum(kept)

    def as_json(self) -> dict[str, Any]:
        """Return the keys of `--json`."""
        outcomes = [
            {**outcome._asdict(), "letters": letters}
            for outcome, letters in self.outcomes.most_common()
        ]
        return {**vars(self), "outcomes": outcomes, "done": self.done, "failed": self.failed}


class Judge:
    """What the service says of a letter now."""

    def __init__(self, catalogue: Catalogue, checker: Checker) -> None:
        """Use a catalogue and a checker that take digests as they are."""
        self.catalogue = catalogue
        self.checker = checker

    @classmethod
    def of(cls, catalogue: Catalogue, settings: Settings) -> Self:
        """Return a judge with the limits from the settings."""
        return cls(catalogue, Checker.of(catalogue, settings))

    def now(self, id_: int, letter: DeadLetter) -> str:
        """Return the outcome of a letter, as far as it is known without the store."""
        if is_not_kept(letter.payload):
            return NOT_KEPT
        checked = self.check(replayed(id_, letter))
        reasons = [one.reason.value for one in checked.outcomes if isinstance(one, Rejected)]
        return _outcome(reasons, rows=len(checked.outcomes) > len(reasons))

    def check(self, delivery: Replayed) -> Checked:
        """Check a letter again, and note whether it stays one if it is rejected."""
        try:
            checked = self.checker.check(delivery)
        except Exception:  # noqa: BLE001  as in the pipeline: any error is this one letter's
            checked = self.checker.internal_error(delivery)
        delivery.whole = len(checked.outcomes) == 1
        return checked


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
        topic, letter.payload, None, None, None, arrival, _Broker(), id=id_, letter=letter
    )


def is_not_kept(payload: bytes) -> bool:
    """Return whether only size and digest of what was rejected were kept, or nothing."""
    if not payload:
        return True
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


class LetterReplay:
    """The chosen letters that are there at its start, in the order in which they were kept."""

    def __init__(self, connection: asyncpg.Connection, which: Which) -> None:
        """Read letters over `connection`."""
        self._connection = connection
        self._which = which
        self._account = ReplayAccount()

    async def dry_run(self, judge: Judge, bar: Bar) -> ReplayAccount:
        """Judge all letters, change nothing."""
        last = await self._begin()
        with bar(self._account.letters) as advance:
            async for letters in dead_letters.some_at_a_time(self._connection, self._which, last):
                for id_, letter in letters:
                    self._note(letter, judge.now(id_, letter))
                advance(len(letters))
        return self._account

    async def run(
        self, settings: Settings, judge: Judge, most_failed: float, bar: Bar
    ) -> ReplayAccount:
        """Replay the letters until all are done, or until too large a share of them failed."""
        last = await self._begin()
        metrics = Metrics(dict.fromkeys(judge.catalogue, ()))
        connection = StoreConnection(
            settings.database, _NAME, judge.catalogue, metrics,
            Random(),  # noqa: S311  spreads reconnects, protects nothing
            settings.commit_timeout_s,
        )  # fmt: skip
        without_limit = Budget(sys.maxsize, sys.maxsize)
        writer = Writer(
            connection, judge.catalogue, metrics, judge.checker.samples_json, without_limit
        )
        account = self._account
        try:
            with bar(account.letters) as advance:
                async for letters in dead_letters.some_at_a_time(
                    self._connection, self._which, last
                ):
                    await self._write(letters, judge, writer, without_limit)
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
        self._account.letters = sum(group.letters for group in found)
        return last

    async def _write(
        self, letters: list[tuple[int, DeadLetter]], judge: Judge, writer: Writer, budget: Budget
    ) -> None:
        """Have some letters stored, in one batch."""
        batch = Batch(time.monotonic())
        checked: dict[int, Checked] = {}
        for id_, letter in letters:
            if is_not_kept(letter.payload):
                self._note(letter, NOT_KEPT)
                continue
            delivery = replayed(id_, letter)
            checked[id_] = judge.check(delivery)
            batch.add(delivery, checked[id_], budget, 0.0)
            batch.replayed.add(id_)
        if not checked:
            return
        written = await writer.write(batch)
        self._account.stored += written.stored.total()
        self._account.duplicates += written.duplicate.total()
        self._count(dict(letters), checked, written)

    def _count(
        self, letters: dict[int, DeadLetter], checked: dict[int, Checked], written: Written
    ) -> None:
        """Note what became of each letter."""
        reasons: dict[int, list[str]] = {}
        for letter in written.letters:
            if letter.replayed is not None:
                reasons.setdefault(letter.replayed, []).append(letter.reason)
        for id_, outcomes in checked.items():
            why = reasons.get(id_, [])
            rows = len(outcomes.outcomes) > len(why)
            self._note(letters[id_], _outcome(why, rows=rows))

    def _note(self, letter: DeadLetter, now: str) -> None:
        self._account.outcomes[Outcome(letter.stream or "", letter.reason, now)] += 1
