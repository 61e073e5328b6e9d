"""Rows and dead letters of many messages that are committed, and then acknowledged, together.

A batch owns its deliveries: settling a batch settles exactly these messages. The code here does no
I/O and starts nothing: the pipeline adds messages, asks when the batch is due, and takes it. The
time is always an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Self

from ingest.budget import Budget
from ingest.config import Settings
from ingest.model import Checked, Delivery, KeptAs, Reason, Rejected, Row

_DETAIL_CHARACTERS = 300


class DeadLetter(NamedTuple):
    """One row of `iov.dead_letter`, in the order of `LETTER_COLUMNS`."""

    received_at: datetime
    topic: str
    device: str | None
    stream: str | None
    reason: str
    detail: str
    payload: bytes
    kept: str | None = KeptAs.CLEAN.value
    replayed: int | None = None
    """No column: id of the letter in the database from which this one was made."""
    same: bool = False
    """No column: true if it is the letter `replayed` itself, rejected again."""

    @property
    def size_bytes(self) -> int:
        """Number of bytes of what a vehicle can make long: payload, topic, stream, detail.

        In all parts but the payload, each character counts as one byte.
        """
        stream = self.stream or ""
        return len(self.payload) + len(self.topic) + len(stream) + len(self.detail)

    def columns(self) -> dict[str, Any]:
        """Return the values of its columns, by name."""
        return dict(zip(LETTER_COLUMNS, self, strict=False))

    def plain(self) -> DeadLetter:
        """Return the letter with all texts in ASCII, which every database encoding can hold."""
        return self._replace(
            topic=_ascii(self.topic),
            stream=None if self.stream is None else _ascii(self.stream),
            detail=_ascii(self.detail),
        )


LETTER_COLUMNS = DeadLetter._fields[: DeadLetter._fields.index("replayed")]
"""Columns of `iov.dead_letter` that a new letter fills."""


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


SIZE_BYTES = 4 * 1024 * 1024
"""Bytes of inflated payloads at which a batch closes."""


class BatchLimits(NamedTuple):
    """Limits at which a batch closes."""

    rows: int
    """Number of samples, accepted or rejected."""
    size_bytes: int
    """Bytes of inflated payloads, to bound memory: numbers take up to thirteen times as much."""
    wait_s: float
    """Seconds the first message may wait for others while the writer is idle."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits from the settings."""
        return cls(settings.batch_rows, SIZE_BYTES, settings.batch_wait_ms / 1000)


class Replayed(Delivery, kw_only=True, eq=False):
    """A dead letter that goes through the service again, as if it arrived when it first did."""

    id: int
    """Its key in `iov.dead_letter`."""
    letter: DeadLetter
    whole: bool = False
    """True if it holds one sample or cannot be split: rejected again, it stays as it is."""


def dead_letter(delivery: Delivery, rejected: Rejected) -> DeadLetter:
    """Return what the store keeps of a rejection."""
    letter = _new_letter(delivery, rejected)
    if not isinstance(delivery, Replayed):
        return letter
    if delivery.whole:
        again = delivery.letter._replace(
            reason=letter.reason, detail=letter.detail, replayed=delivery.id, same=True
        )
        # What could not be read then, and can be now, is kept without what is private in it.
        if again.kept == KeptAs.RAW and letter.kept == KeptAs.CLEAN:
            return again._replace(payload=letter.payload, kept=letter.kept)
        return again
    return letter._replace(topic=delivery.letter.topic, replayed=delivery.id)


def _new_letter(delivery: Delivery, rejected: Rejected) -> DeadLetter:
    return DeadLetter(
        delivery.arrival.at,
        _storable(delivery.topic),
        rejected.device,
        None if rejected.stream is None else _storable(rejected.stream),
        rejected.reason.value,
        # The detail may hold a JSON pointer with names of any length that a vehicle made up.
        _storable(rejected.detail[:_DETAIL_CHARACTERS]),
        rejected.payload,
        rejected.kept.value,
    )


def _storable(text: str) -> str:
    """Return `text` with U+0000 replaced, because PostgreSQL cannot store it."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class Description(NamedTuple):
    """What a device said about itself at one time."""

    device: str
    at: datetime
    fields: Mapping[str, str]


@dataclass(slots=True)
class Batch:
    """Messages that are committed together, in one transaction unless the store splits them."""

    opened_s: float
    """Monotonic time of its first message."""
    deliveries: list[Delivery] = field(default_factory=list)
    """In the order of arrival, which is the order of acknowledgement (MQTT 5, 4.6)."""
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """Accepted samples by stream, first come first."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    rejected: Counter[tuple[str, Reason]] = field(default_factory=Counter)
    """Rejected samples by metric label and reason."""
    unknown_fields: Counter[str] = field(default_factory=Counter)
    """Number of fields that no schema names, by stream."""
    suppressed: Counter[str] = field(default_factory=Counter)
    """Rejected samples, by label, whose dead letter was dropped because of the device's budget."""
    flags: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of flags noted in `quality`, by stream and flag."""
    refused_fields: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of values set aside because the schema refuses them, by stream and reason."""
    described: list[Description] = field(default_factory=list)
    """Descriptions of devices, taken from accepted samples."""
    replayed: set[int] = field(default_factory=set)
    """Ids of the dead letters whose content it is, to be taken out; empty for a worker's batch."""
    samples: int = 0
    size_bytes: int = 0

    def add(self, delivery: Delivery, checked: Checked, budget: Budget, now_s: float) -> None:
        """Take in a message and all of its outcomes."""
        self.deliveries.append(delivery)
        self.samples += len(checked.outcomes)
        self.size_bytes += checked.size_bytes
        for outcome in checked.outcomes:
            if type(outcome) is Row:
                if (rows := self.rows.get(outcome.stream)) is None:
                    rows = self.rows[outcome.stream] = []
                rows.append(outcome)
                if (
                    outcome.unknown_fields
                    or outcome.flags
                    or outcome.described
                    or outcome.refused_fields
                ):
                    self._note(outcome)
            else:
                assert isinstance(outcome, Rejected)
                self.rejected[outcome.label, outcome.reason] += 1
                letter = dead_letter(delivery, outcome)
                if budget.allows(outcome.device, letter.size_bytes, now_s):
                    self.dead_letters.append(letter)
                else:
                    self.suppressed[outcome.label] += 1

    def absorb(self, other: Batch) -> None:
        """Add the messages of a later batch, so that both are committed together."""
        self.deliveries += other.deliveries
        for stream, rows in other.rows.items():
            self.rows.setdefault(stream, []).extend(rows)
        self.dead_letters += other.dead_letters
        self.described += other.described
        self.rejected += other.rejected
        self.unknown_fields += other.unknown_fields
        self.suppressed += other.suppressed
        self.flags += other.flags
        self.refused_fields += other.refused_fields
        self.samples += other.samples
        self.size_bytes += other.size_bytes

    def _note(self, row: Row) -> None:
        if row.unknown_fields:
            self.unknown_fields[row.stream] += row.unknown_fields
        for flag in row.flags:
            self.flags[row.stream, flag] += 1
        for why in row.refused_fields:
            self.refused_fields[row.stream, why] += 1
        if row.described:
            self.described.append(Description(row.device, row.ts, row.described))


More = Callable[[], Batch | None]
"""Function that returns the messages that have arrived since the batch was closed.

It returns None if no message has arrived or if the batch is too large to take more.
"""


@dataclass(slots=True)
class Written:
    """Account of one committed batch: samples by stream."""

    stored: Counter[str] = field(default_factory=Counter)
    duplicate: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    suppressed: Counter[str] = field(default_factory=Counter)
    """Samples whose dead letter is not kept: device over budget, or letter refused by the store."""
    letters: list[DeadLetter] = field(default_factory=list)
    """Dead letters that are kept."""
    staying: set[int] = field(default_factory=set)
    """Ids of replayed letters that stay: rejected again, or a part of one could not be kept."""

    @property
    def good(self) -> bool:
        """True if a row was stored, now or earlier, which shows that the store works."""
        return self.stored.total() + self.duplicate.total() > 0

    def add(self, other: Written) -> None:
        """Add the result of one part of the batch."""
        self.stored += other.stored
        self.duplicate += other.duplicate
        self.refused += other.refused
        self.suppressed += other.suppressed
        self.letters += other.letters
        self.staying |= other.staying


@dataclass(frozen=True, slots=True)
class Committed:
    """A batch that is stored and acknowledged, for the code that counts or shows it."""

    batch: Batch
    written: Written
    closed_s: float
    """Monotonic time when the batch was closed."""
    at_s: float
    """Monotonic time when the batch was acknowledged."""


class Batcher:
    """The batch that is being filled, and the decision when to take it."""

    def __init__(self, limits: BatchLimits, budget: Budget) -> None:
        self._limits = limits
        self._budget = budget
        self._open: Batch | None = None
        self.waits = limits.wait_s > 0
        """True if an idle writer lets the first message wait."""
        self.full = False
        """True if nothing may be added until the batch is taken."""

    def add(self, delivery: Delivery, checked: Checked, now: float) -> None:
        """Put a message into the open batch; a message is never divided."""
        if self._open is None:
            # The wait runs from the first message, not from the last batch.
            self._open = Batch(now)
        self._open.add(delivery, checked, self._budget, now)
        limits = self._limits
        self.full = self._open.samples >= limits.rows or self._open.size_bytes >= limits.size_bytes

    def due_in(self, now: float) -> float | None:
        """Return the seconds until an idle writer should take the batch; None if it is empty."""
        if self._open is None:
            return None
        if self.full:
            return 0.0
        return max(0.0, self._open.opened_s + self._limits.wait_s - now)

    def close(self) -> None:
        """Mark the open batch, if there is one, as full, so that the writer takes it."""
        self.full = self._open is not None

    def may_grow(self, batch: Batch) -> bool:
        """Return whether a batch may absorb another batch; the limits bound memory."""
        limits = self._limits
        return batch.samples <= limits.rows and batch.size_bytes <= limits.size_bytes

    def take(self) -> Batch | None:
        """Close the open batch and return it; None if it holds nothing."""
        taken, self._open = self._open, None
        self.full = False
        return taken
