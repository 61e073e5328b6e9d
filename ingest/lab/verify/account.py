"""The account of a run: what is in the tables, compared with what must be there. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Any, NamedTuple

from ingest.lab.verify.ledger import REFUSED, VISITOR, Ledger
from ingest.model import Reason


class Found(NamedTuple):
    """One sample in the database, as a row or as a dead letter."""

    device: str
    stream: str
    seq: int
    values: dict[str, Any]
    """Columns that are not null, or for a dead letter its payload."""
    committed_s: float | None
    """Unix time of the commit; None if the database does not keep it."""
    reason: str | None = None
    """Reason of a dead letter; None for a row."""


@dataclass
class Account:
    """Outcome of everything that was published, counted in samples."""

    published: int = 0
    """Number of samples that the broker acknowledged to the publisher."""
    stored: int = 0
    """Number of these found as rows, or as dead letters if bad or if their day was closed."""
    lost: int = 0
    duplicated: int = 0
    altered: int = 0
    """Number of samples found changed, stored as a row although bad, or never sent at all."""
    early_acks: int | None = 0
    """Number acknowledged by us before the commit; None if the commit times are unknown."""
    forgotten: int = 0
    """Number missing without our fault: the broker lost its store before we acknowledged them."""
    letters_repeated: int = 0
    """Number of repeated dead letters; allowed, because the answer to a COMMIT may be lost."""
    unacknowledged: int = 0
    """Number that we had not acknowledged at the end: the broker would send them again forever."""
    devices: dict[str, Counter[str]] = field(default_factory=dict)
    """Number of samples of each kind of error, by device."""

    @property
    def holds(self) -> bool:
        """True if the promise was kept."""
        wrong = self.lost or self.duplicated or self.altered or self.early_acks
        return not (wrong or self.unacknowledged)


class Accounting:
    """Account in progress: takes in what is found, row by row, until `close`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen = {key: bytearray(len(numbers)) for key, numbers in ledger.numbers.items()}
        self._account = Account()
        self._missing_visitors = set(ledger.visiting)
        self._untimed = False

    def row(self, found: Found) -> None:
        """Take in a row of a stream's table."""
        sample = self._sample(found)
        if sample is None:
            return
        if self._ledger.is_bad(sample) or found.values != columns(sample):
            self._wrong("altered", found.device)
        if self._times(found) and not self._ledger.is_bad(sample):
            self._wrong("duplicated", found.device)
        self._count(found)

    def letter(self, found: Found) -> None:
        """Take in a dead letter."""
        sample = self._sample(found)
        if sample is None:
            return
        refused = found.reason == Reason.REFUSED_BY_STORE and self._ledger.may_be_letter(
            found.stream, sample
        )
        bad = self._ledger.is_bad(sample) and found.reason == Reason.BAD_TIMESTAMP
        if not (bad or refused) or found.values != sample:
            self._wrong("altered", found.device)
        elif self._times(found):
            self._account.letters_repeated += 1
        else:
            self._count(found)

    def visitor(self, device: str) -> None:
        """Note that a row or dead letter of a visiting device was found."""
        self._missing_visitors.discard(device)

    def close(self) -> Account:
        """Return the account; call once, after everything found was taken in."""
        ledger, account = self._ledger, self._account
        for (device, stream), numbers in ledger.numbers.items():
            times = self._seen[device, stream]
            for seq, number in enumerate(numbers):
                if not ledger.is_published(number):
                    continue
                account.published += 1
                if ledger.is_owed(number) and ledger.settled_s(number) == inf:
                    self._wrong("unacknowledged", device)
                if times[seq]:
                    account.stored += 1
                elif ledger.is_owed(number):
                    self._wrong("lost", device)
                else:
                    account.forgotten += 1
        for device in self._missing_visitors:
            self._wrong("lost", device)
        if self._untimed and not account.early_acks:
            account.early_acks = None
        return account

    def _sample(self, found: Found) -> dict[str, Any] | None:
        """Return the sample that was sent under this key.

        Return None for a visitor, and for a key never sent, which counts as altered.
        """
        if found.device.startswith(VISITOR):
            self.visitor(found.device)
            return None
        times = self._seen.get((found.device, found.stream))
        if times is None or not 0 <= found.seq < len(times):
            self._wrong("altered", found.device)
            return None
        return self._ledger.sample(found.device, found.stream, found.seq)

    def _times(self, found: Found) -> int:
        return self._seen[found.device, found.stream][found.seq]

    def _count(self, found: Found) -> None:
        self._seen[found.device, found.stream][found.seq] = 1
        number = self._ledger.numbers[found.device, found.stream][found.seq]
        if found.committed_s is None:
            self._untimed = True
        elif self._ledger.settled_s(number) < found.committed_s:
            self._wrong("early_acks", found.device)

    def _wrong(self, what: str, device: str) -> None:
        account = self._account
        setattr(account, what, getattr(account, what) + 1)
        account.devices.setdefault(device, Counter())[what] += 1


def columns(sample: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that a sample of ours must become, without null columns.

    This does not use the service's extractor, because that is what is being tested.
    """
    row: dict[str, Any] = {"extra": {"nonce": sample["nonce"]}}
    for name, value in sample.items():
        if name == REFUSED:
            row["extra"]["refused"] = {f"/{name}": value}
        elif name == "ts":
            row["ts"] = datetime.fromisoformat(value)
        elif isinstance(value, dict):
            row |= {f"{name}_{inner}": inside for inner, inside in value.items()}
        elif name != "nonce":
            row[name] = value
    return row
