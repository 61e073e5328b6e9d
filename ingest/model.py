"""Types of the data that pass through the service: delivery, outcome, reason.

They have no logic, and every layer above may import them. A type with an instance per message is a
Struct, which is created in a third of a named tuple's time (0.1 µs, measured).
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
"""Last topic level of GB/T 32960 frames, and their metric label; it is not a stream."""


class Reason(enum.StrEnum):
    """Reason of a rejection: the closed list of values of `iov.dead_letter.reason`."""

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


class Why(enum.StrEnum):
    """Reason why a schema refuses a value: the closed list of the label `why`."""

    TYPE = "type"
    RANGE = "range"
    LENGTH = "length"
    ENUMERATION = "enumeration"
    PATTERN = "pattern"
    FORMAT = "format"
    ITEMS = "items"
    REQUIRED = "required"
    SENTINEL = "sentinel"
    OTHER = "other"

    @property
    def mark(self) -> str:
        """Mark that the pointer of the value gets in `quality`."""
        outside = self in {Why.RANGE, Why.LENGTH, Why.ENUMERATION}
        return "out_of_range" if outside else "invalid"


class KeptAs(enum.StrEnum):
    """Form of a dead letter's payload: the closed list of values of `iov.dead_letter.kept`."""

    CLEAN = "clean"
    """All of it but what must never be stored; digests in place of what is stored as a digest."""
    RAW = "raw"
    """All of it, because it could not be read and the operator wants it unchanged."""
    DIGEST = "digest"
    """Its size and a digest, because it could not be read."""


class Defect(NamedTuple):
    """Reason of a rejection, with its details."""

    reason: Reason
    detail: str
    """Description of the error and its place; it never quotes a value."""


class Acknowledger(Protocol):
    """Connection to the broker, reduced to what an acknowledgement needs."""

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Send PUBACK for these identifiers, in this order; do nothing if the connection has ended.

        Packet identifiers belong to the connection they came by (MQTT 5, 2.2.1): after a
        reconnect the same number names another message.
        """


class NoConnection:
    """Acknowledger of messages that came by no connection."""

    def acknowledge(self, _packet_ids: Sequence[int]) -> None:
        """Do nothing."""


class Arrival(NamedTuple):
    """Time of one read from the socket, shared by every delivery of that read."""

    at: datetime
    """Wall clock, aware UTC: the `received_at` of the rows."""
    monotonic_s: float
    """Monotonic clock, for latencies."""


class Delivery(Struct, eq=False):
    """One PUBLISH as it came, and what is needed to acknowledge it."""

    topic: str
    payload: bytes
    encoding: str | None
    """MQTT 5 user property `content-encoding`; None if absent."""
    content_type: str | None
    """MQTT 5 property Content Type; None if absent."""
    packet_id: int | None
    """Packet identifier; None for QoS 0, which needs no acknowledgement."""
    arrival: Arrival
    connection: Acknowledger
    fault: Defect | None = None
    """Defect of topic or properties, None for nearly all packets. `payload` is what follows."""


class Row(Struct):
    """One accepted sample, ready for the store."""

    stream: str
    device: str
    ts: datetime
    """Time when its values were true, aware UTC."""
    resend: bool
    """True if it was sent later than collected."""
    record: list[Any]
    """Values of its columns; only `schema.layout` knows their order."""
    present: int
    """Bit mask of the stream's flattened objects that the record contains; see `Layout`."""
    delivery: Delivery
    """Message that contained the sample."""
    position: int
    """Index of the sample in its message, to find its JSON again."""
    unknown_fields: int
    """Number of fields that the schema does not name; they are kept in `extra`."""
    flags: Collection[str] = ()
    """Flags that the service noted in `quality`."""
    refused_fields: Collection[str] = ()
    """Reasons of the values that were set aside, one for each; see `schema.aside`."""
    described: Mapping[str, str] | None = None
    """The device's description from the sample: kind, vin, region, fleet."""


class Rejected(NamedTuple):
    """A sample that will not be stored, or a whole message if it cannot be split."""

    label: str
    """Metric label: a stream of the catalogue, `gbt32960` or `other`."""
    stream: str | None
    """Name of the stream, known or not; None if the topic cannot be read."""
    device: str | None
    reason: Reason
    detail: str
    """Description of the error and its place; it never quotes a value of the sample."""
    payload: bytes
    """The sample's JSON, or the message if it cannot be split, as far as `Letters` keeps it."""
    kept: KeptAs = KeptAs.CLEAN
    """Form of `payload`."""


Outcome = Row | Rejected


class Checked(Struct):
    """Result of checking one message: one outcome per sample, and a measure of their size."""

    stream: str
    """Metric label: a stream of the catalogue, `gbt32960` or `other`."""
    outcomes: list[Outcome]
    size_bytes: int
    """Bytes of the payload after inflating, a measure of the memory that its outcomes take."""
    samples: Mapping[str, int] | None = None
    """Number of outcomes by metric label; None if all have the label `stream`."""
