"""Base of all devices of the simulated city: a name, a clock, counted samples, an outbox."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any, ClassVar

_STEP_S = 1.0
_MOST_STEPS = 30
"""Largest number of steps to catch up; any time before these steps is skipped."""


def text(ts: datetime) -> str:
    """Return a UTC time as RFC 3339 text with milliseconds."""
    return ts.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Device(ABC):
    """Something that publishes. `advance` lets time pass for it, `sample` returns its state."""

    kind: ClassVar[str]
    weights: ClassVar[dict[str, int]]
    """Relative frequency of its messages on each of its streams."""
    held_stream: ClassVar[str | None] = None
    """Stream whose samples are held while it cannot publish, and sent later."""

    def __init__(self, name: str, random: Random, now: datetime) -> None:
        self.name = name
        self.random = random
        self.clock = now
        self.outbox: deque[tuple[str, list[dict[str, Any]]]] = deque()
        """(stream, samples) to be published before anything else."""
        self._seq: dict[str, int] = {}
        self._held: list[dict[str, Any]] = []
        self._second_s = 0.0

    @property
    def reachable(self) -> bool:
        """True if it can publish right now."""
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
            self._second_s += seconds
            if self._second_s >= 1:
                self._second_s -= 1
                self.each_second()
            if self._held and self.reachable:
                self._send_held()

    @abstractmethod
    def step(self, seconds: float) -> None:
        """Change its state by what happens in up to a second."""

    def each_second(self) -> None:
        """Do what is due once a second: hold a sample if it cannot be published."""
        if self.held_stream is not None and not self.reachable:
            self._held.append({"ts": text(self.clock)} | self.say(self.held_stream))

    def _send_held(self) -> None:
        """Publish what was held, as resent, in one message."""
        assert self.held_stream is not None
        held, self._held = self._held, []
        late = {"resend": True, "trigger": "resend", "sent_at": text(self.clock)}
        samples = [
            sample | {"seq": self.next_seq(self.held_stream)} | late for sample in held
        ]  # fmt: skip
        self.outbox.append((self.held_stream, samples))

    def say_now(self, stream: str, fields: dict[str, Any]) -> None:
        """Add one sample to the outbox, marked as resent if the device cannot publish now."""
        head = {"ts": text(self.clock), "seq": self.next_seq(stream)}
        late = {} if self.reachable else {"resend": True}
        self.outbox.append((stream, [head | fields | late]))

    def sample(self, stream: str, ts: datetime | None = None) -> dict[str, Any]:
        """Return a sample of a stream, with the time now or `ts`."""
        fields = self.say(stream)
        return {"ts": text(ts or self.clock), "seq": self.next_seq(stream)} | fields

    @abstractmethod
    def say(self, stream: str) -> dict[str, Any]:
        """Return the fields of a sample, without `ts` and `seq`."""

    def next_seq(self, stream: str) -> int:
        """Return the stream's next sequence number, counted from 0."""
        self._seq[stream] = number = self._seq.get(stream, -1) + 1
        return number

    def streams(self, wanted: Sequence[str]) -> list[str]:
        """Return those of the `wanted` streams that it publishes."""
        return [stream for stream in wanted if stream in self.weights]
