"""A message to publish, whoever publishes it."""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """One message that is still to be published."""

    topic: str
    payload: bytes
    samples: int
    kind: str = "good"
    """`good`, `bad`, `duplicate` or `late`."""
    encoding: str | None = None
    """MQTT 5 user property `content-encoding`."""
    content_type: str | None = None
    """MQTT 5 property Content Type."""
