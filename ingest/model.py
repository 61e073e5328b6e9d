"""The values that walk through the service: delivery, outcome, reason.

Nothing here does anything; every floor above may know these names. What there is one of for each
message is a Struct: it is made in a third of a named tuple's time (0.1 µs, measured).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

OTHER = "other"
"""Metric label of every stream name that no schema describes."""
GBT32960 = "gbt32960"
"""Last level of the topic that carries GB/T 32960 frames, and their metric label; no stream."""


class Reason(enum.StrEnum):
    """Why something was rejected: the closed list of `iov.dead_letter.reason`."""

    TOO_LARGE = "too_large"
    BAD_TOPIC = "bad_topic"
    UNKNOWN_STREAM = "unknown_stream"
    BAD_ENCODING = "bad_encoding"
    BAD_JSON = "bad_json"
    BAD_ENVELOPE = "bad_envelope"
    BAD_TIMESTAMP = "bad_timestamp"
    TOO_OLD = "too_old"
    CLOCK_AHEAD = "clock_ahead"
    SCHEMA = "schema"
    REFUSED_BY_STORE = "refused_by_store"
    INTERNAL_ERROR = "internal_error"


class Defect(NamedTuple):
    """Why something is rejected."""

    reason: Reason
    detail: str
    """What is wrong and where; never quotes a value."""


class Acknowledger(Protocol):
    """One connection to the broker, as far as an acknowledgement needs to know it."""

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Send PUBACK for these, in this order; do nothing once this connection has ended.

        Packet identifiers belong to the connection they came by (MQTT 5, 2.2.1): after a
        reconnect the same number names another message.
        """


class Arrival(NamedTuple):
    """When one read from the socket happened; shared by every delivery in it."""

    at: datetime
    """Wall clock, aware UTC: the `received_at` of the rows."""
    monotonic_s: float
    """Monotonic clock, for latencies."""


class Delivery(Struct, eq=False):
    """One PUBLISH as it came, and what is needed to acknowledge it."""

    topic: str
    payload: bytes
    encoding: str | None
    """MQTT 5 user property `content-encoding`; None where absent."""
    content_type: str | None
    """MQTT 5 property Content Type; None where absent."""
    packet_id: int | None
    """None for QoS 0: nothing to acknowledge."""
    arrival: Arrival
    connection: Acknowledger
    fault: Defect | None = None
    """Why the packet itself cannot be read; None for nearly all. `payload` is what follows it."""


class Row(Struct):
    """One accepted sample, ready for the store."""

    stream: str
    device: str
    ts: datetime
    """When its values were true, aware UTC."""
    resend: bool
    """It was sent later than collected."""
    record: list[Any]
    """The values of its columns; only `schema.layout` knows which stands where."""
    present: int
    """Which of the stream's flattened objects are there, and so which fields; see `Layout`."""
    delivery: Delivery
    """The message it came in,"""
    position: int
    """and the sample's place there, to find its JSON again."""
    unknown_fields: int
    """How many fields the schema does not know; they are kept in `extra`."""
    flags: Collection[str] = ()
    """What was noted in `quality` by us."""
    described: Mapping[str, str] | None = None
    """What the sample says about its device: kind, vin, region, fleet."""


class Rejected(NamedTuple):
    """One sample, or one message that cannot be split, that will not be stored."""

    label: str
    """Metric label: a stream of the catalogue, `gbt32960` or `other`."""
    stream: str | None
    """As named by the topic, known or not; None where the topic cannot be read."""
    device: str | None
    reason: Reason
    detail: str
    """What is wrong and where; never quotes a value of the sample."""
    payload: bytes
    """The sample's own JSON, or the raw message where it cannot be split."""


Outcome = Row | Rejected


class Checked(Struct):
    """What became of one message: one outcome per sample, and what it weighs."""

    stream: str
    """Metric label: a stream of the catalogue, `gbt32960` or `other`."""
    outcomes: list[Outcome]
    size_bytes: int
    """The payload after inflating, a measure of the memory its outcomes take."""
    samples: Mapping[str, int] | None = None
    """How many outcomes there are by metric label; None: all are of `stream`."""
