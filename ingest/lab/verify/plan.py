"""The plan of a run, and its result. Pure."""

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
    """Seconds after the start; later if the fault before takes longer."""
    fault: Fault
    seed: int
    """Seed that decides whom it hits, and for how long."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Settings of a run."""

    faults: Sequence[Fault]
    duration_s: float = 60.0
    """Seconds of load; longer if not every fault has had its turn by then."""
    rate: float = 500.0
    """Messages per second."""
    workers: int = 2
    seed: int = 1
    every_s: float = 10.0
    """Seconds from one fault to the next, on average."""
    devices: int = 50
    rest_s: float = 60.0
    """Seconds without any progress after the load, after which the run counts as at rest."""
    source: str = "auto"
    """`IOV_MQTT_CLIENT` of the workers."""

    def schedule(self) -> list[Due]:
        """Return all faults in random order, round after round, until `duration_s`.

        The first round is always complete, even if it takes longer.
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
    """State of the run, recorded once a second."""

    at_s: float
    published: int
    """Number of messages acknowledged to the publisher."""
    settled: int
    """Number of messages acknowledged by workers."""
    resources: list[tuple[float, int] | None]
    """(resident memory in MB, open file descriptors) of each worker; None if it does not run."""


class Event(NamedTuple):
    """A fault that took place; its times are seconds after the start."""

    name: str
    began_s: float
    mended_s: float
    recovered_s: float | None
    """Time when every worker was ready and a message issued after the mending was acknowledged;
    None if that took too long."""


@dataclass
class Result:
    """Result of a run."""

    plan: FaultPlan
    account: Account
    seconds: float
    events: list[Event]
    moments: list[Moment]
    crashes: int
    """Number of times that a worker ended by itself."""
    unwell: list[str] = field(default_factory=list)
    """Other problems, one text each."""

    @property
    def ok(self) -> bool:
        """True if the promise held, no worker crashed and nothing else went wrong."""
        return self.account.holds and not self.crashes and not self.unwell

    @property
    def recoveries_s(self) -> list[float]:
        """Seconds from each fault's mending until all workers had recovered."""
        return [e.recovered_s - e.mended_s for e in self.events if e.recovered_s is not None]

    def as_json(self) -> dict[str, Any]:
        """Return the result under the keys of `--json`."""
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
