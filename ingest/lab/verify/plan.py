"""What is asked of a run, and what it came to. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import Any, NamedTuple

from ingest.lab.verify.account import Account
from ingest.lab.verify.faults import Fault


class Due(NamedTuple):
    """One fault of the schedule."""

    at_s: float
    """After the beginning; later where the one before takes longer."""
    fault: Fault
    seed: int
    """Decides whom it hits and how long."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What is asked for."""

    faults: Sequence[Fault]
    duration_s: float = 60.0
    """How long there is load; longer where not every fault has had its turn by then."""
    rate: float = 500.0
    """Messages per second."""
    workers: int = 2
    seed: int = 1
    every_s: float = 10.0
    """From one fault to the next, on average."""
    devices: int = 50
    rest_s: float = 60.0
    """So long without any progress after the load is taken for rest."""
    source: str = "auto"
    """`IOV_MQTT_CLIENT` of the workers."""

    def schedule(self) -> list[Due]:
        """Every fault in random order, again and again, until the time is over.

        The first turn of all is whole whatever the time.
        """
        chance = Random(self.seed)
        due: list[Due] = []
        turn: list[Fault] = []
        at_s = self.every_s * chance.uniform(0.5, 1.5)
        while len(due) < len(self.faults) or (self.faults and at_s < self.duration_s):
            turn = turn or chance.sample(list(self.faults), len(self.faults))
            due.append(Due(at_s, turn.pop(), chance.randrange(2**32)))
            at_s += self.every_s * chance.uniform(0.5, 1.5)
        return due


class Moment(NamedTuple):
    """How it went, once a second."""

    at_s: float
    published: int
    """Messages acknowledged to the publisher."""
    settled: int
    """Messages we acknowledged."""
    resources: list[tuple[float, int] | None]
    """Of each worker: resident memory in MB, open file descriptors."""


class Event(NamedTuple):
    """A fault that was, in seconds after the beginning."""

    name: str
    began_s: float
    mended_s: float
    recovered_s: float | None
    """When every worker was ready and a message published after the mending was acknowledged."""


@dataclass
class Result:
    """What a run came to."""

    plan: FaultPlan
    account: Account
    seconds: float
    events: list[Event]
    moments: list[Moment]
    crashes: int
    """Workers that ended by themselves."""
    unwell: list[str] = field(default_factory=list)
    """What else went wrong."""

    @property
    def ok(self) -> bool:
        """Whether the promise held and nobody fell over."""
        return self.account.holds and not self.crashes and not self.unwell

    @property
    def recoveries_s(self) -> list[float]:
        """From a fault's mending to everybody at work again."""
        return [e.recovered_s - e.mended_s for e in self.events if e.recovered_s is not None]

    def as_json(self) -> dict[str, Any]:
        """By the keys of `--json`."""
        account, recoveries_s = self.account, self.recoveries_s
        happened = Counter(event.name for event in self.events)
        return {
            "published": account.published,
            "stored": account.stored,
            "lost": account.lost,
            "duplicated": account.duplicated,
            "altered": account.altered,
            "early_acks": account.early_acks,
            "faults": {fault.name: happened[fault.name] for fault in self.plan.faults},
            "recovery_s": {
                "p50": round(median(recoveries_s), 3) if recoveries_s else None,
                "max": round(max(recoveries_s), 3) if recoveries_s else None,
            },
            "forgotten": account.forgotten,
            "unacknowledged": account.unacknowledged,
            "letters_repeated": account.letters_repeated,
            "crashes": self.crashes,
            "unwell": self.unwell,
            "seconds": round(self.seconds, 1),
            "seed": self.plan.seed,
        }
