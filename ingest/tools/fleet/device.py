"""What all devices of the simulated city have: a name, a clock, counted samples, an outbox."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any, ClassVar

_STEP_S = 1.0
_MOST_STEPS = 30
"""After a longer silence the device goes on from where it was."""


def text(ts: datetime) -> str:
    """RFC 3339 with milliseconds, UTC."""
    return ts.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Device:
    """Something that publishes. `advance` lets time pass for it, `sample` says how it is."""

    kind: ClassVar[str]
    weights: ClassVar[dict[str, int]]
    """How often it speaks on each of its streams."""

    def __init__(self, name: str, random: Random, now: datetime) -> None:
        self.name = name
        self.random = random
        self.clock = now
        self.outbox: deque[tuple[str, list[dict[str, Any]]]] = deque()
        """(stream, samples) to be published before anything else."""
        self._seq: dict[str, int] = {}

    @property
    def reachable(self) -> bool:
        """Whether it can publish right now."""
        return True

    def advance(self, until: datetime) -> None:
        """Let time pass in steps of a second at most."""
        behind_s = (until - self.clock).total_seconds()
        if behind_s > _STEP_S * _MOST_STEPS:
            self.clock = until - timedelta(seconds=_STEP_S * _MOST_STEPS)
        while (left_s := (until - self.clock).total_seconds()) > 0:
            seconds = min(_STEP_S, left_s)
            self.clock += timedelta(seconds=seconds)
            self.step(seconds)

    def step(self, seconds: float) -> None:
        """Change its state by what happens in up to a second."""

    def sample(self, stream: str, ts: datetime | None = None) -> dict[str, Any]:
        """What it says on a stream, now or as of `ts`."""
        fields = self.say(stream)
        return {"ts": text(ts or self.clock), "seq": self.next_seq(stream)} | fields

    def say(self, stream: str) -> dict[str, Any]:
        """The fields of a sample, without its head."""
        raise NotImplementedError

    def next_seq(self, stream: str) -> int:
        """Counted from 0 for each stream."""
        self._seq[stream] = number = self._seq.get(stream, -1) + 1
        return number

    def streams(self, wanted: Sequence[str]) -> list[str]:
        """Which of these it speaks on."""
        return [stream for stream in wanted if stream in self.weights]
