"""What a fleet hands to a publisher, and what may be wrong with it."""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """One PUBLISH to come."""

    topic: str
    payload: bytes
    samples: int
    kind: str = "good"
    """`good`, `bad`, `duplicate` or `late`."""


class Mischief(NamedTuple):
    """Shares of the messages, from 0 to 1, that are not as they should be."""

    bad: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
