"""From a delivery to its outcomes: topic, envelope, time, schema, row. Pure.

Each sample is judged alone: a bad one harms no other in its message. What is rejected says why in
words that quote nothing a vehicle sent.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from ingest.decode import Decoded, Fault, Limits, decode, parse_topic, too_deep
from ingest.model import OTHER, Checked, Delivery, Outcome, Reason, Rejected, Row
from ingest.schema import Catalogue, Stream, pointer, rfc3339

MAX_SEQ = 4_294_967_295
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_IN_SEQ = {"resend", "sent_at"}


class Ages(NamedTuple):
    """How far from the clock a sample's `ts` may be."""

    oldest: timedelta = timedelta(days=30)
    ahead: timedelta = timedelta(seconds=300)


class Checker:
    """Turns deliveries into outcomes by the schemas of a catalogue."""

    def __init__(
        self, catalogue: Catalogue, limits: Limits | None = None, ages: Ages | None = None
    ) -> None:
        self._catalogue = catalogue
        self._limits = limits or Limits()
        self._ages = ages or Ages()

    def check(self, delivery: Delivery) -> Checked:
        """One outcome per sample, or one rejection for a message that cannot be split."""
        address = parse_topic(delivery.topic)
        if address is None:
            fault = self._too_large(delivery) or Fault(
                Reason.BAD_TOPIC, "not iov/v1/{device}/{stream}"
            )
            return self._whole(delivery, None, None, fault)
        device, name = address
        stream = self._catalogue.get(name)
        if stream is None:
            fault = self._too_large(delivery) or Fault(Reason.UNKNOWN_STREAM, "no such schema")
            return self._whole(delivery, device, name, fault)
        decoded = decode(delivery.payload, delivery.encoding, self._limits)
        if isinstance(decoded, Fault):
            return self._whole(delivery, device, name, decoded)
        try:
            outcomes = self._outcomes(delivery, stream, device, decoded)
        except (TypeError, ValueError):
            # Neither the validator nor orjson follows a document down without end. Looking for
            # depth only then costs honest messages nothing.
            if not too_deep(decoded.samples):
                raise
            return self._whole(delivery, device, name, Fault(Reason.BAD_JSON, "nested too deep"))
        return Checked(name, outcomes, decoded.size_bytes)

    def _outcomes(
        self, delivery: Delivery, stream: Stream, device: str, decoded: Decoded
    ) -> list[Outcome]:
        received_at = delivery.arrival.at
        bounds = (received_at - self._ages.oldest, received_at + self._ages.ahead)
        outcomes: list[Outcome] = []
        for index, sample in enumerate(decoded.samples):
            result = _row(stream, device, sample, index, received_at, bounds, decoded.may_hold_nul)
            if isinstance(result, Fault):
                own = orjson.dumps(_without(sample, stream.never_stored))
                outcomes.append(Rejected(stream.name, device, *result, own))
            else:
                outcomes.append(result)
        return outcomes

    def internal_error(self, delivery: Delivery) -> Checked:
        """The one rejection of a message on which checking itself failed."""
        device, name = parse_topic(delivery.topic) or (None, None)
        fault = Fault(Reason.INTERNAL_ERROR, "an error in the service; see its log")
        return self._whole(delivery, device, name, fault)

    def sample_json(self, delivery: Delivery, index: int) -> bytes:
        """One sample of a delivery that was accepted, as a dead letter keeps it."""
        decoded = decode(delivery.payload, delivery.encoding, self._limits)
        address = parse_topic(delivery.topic)
        assert not isinstance(decoded, Fault)
        assert address is not None
        never_stored = self._catalogue[address[1]].never_stored
        return orjson.dumps(_without(decoded.samples[index], never_stored))

    def _too_large(self, delivery: Delivery) -> Fault | None:
        size, most = len(delivery.payload), self._limits.payload_bytes
        return Fault(Reason.TOO_LARGE, f"{size} bytes, at most {most}") if size > most else None

    def _whole(
        self, delivery: Delivery, device: str | None, name: str | None, fault: Fault
    ) -> Checked:
        label = name if name in self._catalogue else OTHER
        rejected = Rejected(name, device, *fault, self._raw(delivery, name))
        return Checked(label or OTHER, [rejected], len(delivery.payload))

    def _raw(self, delivery: Delivery, name: str | None) -> bytes:
        """The raw message, unless it may hold what must never be stored and cannot be cleaned."""
        stream = self._catalogue.get(name or "")
        if stream is None or not stream.never_stored:
            return delivery.payload
        try:
            return orjson.dumps(_without(orjson.loads(delivery.payload), stream.never_stored))
        except (TypeError, ValueError, RecursionError):
            return b""


def _row(
    stream: Stream,
    device: str,
    sample: Any,
    index: int,
    received_at: datetime,
    bounds: tuple[datetime, datetime],
    may_hold_nul: bool,  # noqa: FBT001  one call, per sample
) -> Row | Fault:
    if not isinstance(sample, dict):
        return Fault(Reason.BAD_ENVELOPE, "a sample is an object")
    ts = instant(sample.get("ts"))
    if isinstance(ts, Fault):
        return ts
    if ts < bounds[0]:
        return Fault(Reason.TOO_OLD, "/ts is older than the limit")
    if ts > bounds[1]:
        return Fault(Reason.CLOCK_AHEAD, "/ts is further ahead than the limit")
    seq = sample.get("seq")
    if seq is None:
        seq = derived_seq(sample)
    elif type(seq) is not int or not 0 <= seq <= MAX_SEQ:
        return Fault(Reason.BAD_ENVELOPE, f"/seq is no integer from 0 to {MAX_SEQ}")
    if stream.never_stored:
        sample = _without(sample, stream.never_stored)
    row = stream.row(device, ts, seq, received_at, sample)
    if isinstance(row, str):
        return Fault(Reason.SCHEMA, row)
    if may_hold_nul and (where := _nul(sample, ())) is not None:
        return Fault(Reason.REFUSED_BY_STORE, f"{pointer(where)} holds U+0000")
    values, unknown_fields = row
    return Row(stream.name, device, values, index, unknown_fields)


def instant(ts: Any) -> datetime | Fault:
    """`ts` in UTC: RFC 3339 with zone, or integer Unix milliseconds."""
    if ts is None:
        return Fault(Reason.BAD_ENVELOPE, "/ts is absent")
    try:
        if type(ts) is str:
            return rfc3339(ts)
        if type(ts) is int:
            return _EPOCH + timedelta(milliseconds=ts)
    except OverflowError:
        return Fault(Reason.BAD_TIMESTAMP, "/ts is outside the calendar")
    except ValueError as exc:
        return Fault(Reason.BAD_TIMESTAMP, f"/ts is {exc}")
    return Fault(Reason.BAD_TIMESTAMP, "/ts is neither text nor integer milliseconds")


def derived_seq(sample: dict[str, Any]) -> int:
    """The negative `seq` of a sample that has none.

    −1−CRC-32 of its JSON with sorted keys, without `resend` and `sent_at`, which differ between
    a sample and its redelivery.
    """
    content = {k: v for k, v in sample.items() if k not in _NOT_IN_SEQ}
    return -1 - crc32(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


def _without(node: Any, names: frozenset[str]) -> Any:
    """`node` without any field of these names, however deep."""
    if not names:
        return node
    if isinstance(node, dict):
        return {k: _without(v, names) for k, v in node.items() if k not in names}
    if isinstance(node, list):
        return [_without(item, names) for item in node]
    return node


def _nul(node: Any, path: tuple[str | int, ...]) -> tuple[str | int, ...] | None:
    """Where U+0000 stands in `node`, in a name or a text; None where it does not."""
    if isinstance(node, str):
        return path if "\0" in node else None
    if isinstance(node, dict):
        if any("\0" in name for name in node):
            return path
        items: Any = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        return None
    for step, value in items:
        found = _nul(value, (*path, step))
        if found is not None:
            return found
    return None
