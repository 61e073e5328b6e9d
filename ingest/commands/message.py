"""A message to publish, whoever publishes it."""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """One PUBLISH to come."""

    topic: str
    payload: bytes
    samples: int
    kind: str = "good"
    """`good`, `bad`, `duplicate` or `late`."""
