"""Steps from a delivery to its outcomes: topic, envelope, time, schema, row. Pure.

Each sample is accepted or rejected alone: a bad sample never causes the rejection of another sample
of its message. The reason of a rejection never quotes a value that a vehicle sent.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Self

import orjson

from ingest import gbt32960
from ingest.config import Settings
from ingest.decode import (
    MessageLimits,
    decode,
    most_bytes,
    parse_topic,
    too_deep,
    too_much,
    topic_fault,
    unpack,
)
from ingest.envelope import Ages, instant, sequence, timely
from ingest.errors import ConfigError
from ingest.letters import Letters
from ingest.model import (
    GBT32960,
    OTHER,
    Checked,
    Defect,
    Delivery,
    KeptAs,
    Outcome,
    Reason,
    Rejected,
    Row,
)
from ingest.schema import Catalogue, SetAside, Siblings, Stream, pointer
from ingest.schema.extract import Extracted
from ingest.schema.layout import Record, note_quality, weight

_NO_OBJECT = Defect(Reason.BAD_ENVELOPE, "a sample is an object")
_FRAME_AS_JSON = Defect(
    Reason.BAD_JSON,
    f"looks like a GB/T 32960 frame, which needs the content type {gbt32960.CONTENT_TYPE}, or a "
    f"topic that ends with {GBT32960}",
)
_MOST_SET_ASIDE = 5_000
"""Number of values of one message that are set aside; each takes 7 to 20 µs (measured).

Samples after that are rejected for a bad value: a hostile message takes no longer for it.
"""
_MAY_HOLD_NUL = frozenset({str, dict, list})


class Checker:
    """Checker of deliveries against the schemas of a catalogue."""

    def __init__(
        self,
        catalogue: Catalogue,
        limits: MessageLimits,
        ages: Ages,
        *,
        keep_unreadable: bool = False,
        set_aside: bool = True,
        units: gbt32960.OwnUnits = MappingProxyType({}),
    ) -> None:
        """Use these limits.

        `keep_unreadable`: dead letters keep unreadable messages unchanged. `set_aside`: a value
        that a schema refuses costs its field, not its sample. `units`: the custom units of frames
        that the owner has described.
        """
        self._units = units
        self._catalogue = catalogue
        self._limits = limits
        self._letters = Letters(catalogue, self._limits, keep_unreadable=keep_unreadable)
        self._surely_small = most_bytes(self._limits.sample_values)
        self._ages = ages
        self._sets_aside = set_aside
        self._may_set_aside = 0
        self._bounded: datetime | None = None
        self._bounds: tuple[datetime, datetime]

    @classmethod
    def of(cls, catalogue: Catalogue, settings: Settings) -> Self:
        """Return a checker with the limits from the settings.

        Raises ConfigError if the file of the owner's units is wrong.
        """
        units = gbt32960.own_units(settings.gbt32960_units_file)
        private = sorted(
            name
            for unit in units.values()
            for name in unit.names
            if unit.stream in catalogue
            and catalogue[unit.stream].never_stored.without({name: 0}) != {name: 0}
        )
        if private:
            told = f"{', '.join(private)} must never be stored: leave the name out"
            raise ConfigError([f"IOV_GBT32960_UNITS_FILE: {told}"])
        return cls(
            catalogue,
            MessageLimits.of(settings),
            Ages.of(settings),
            keep_unreadable=settings.dead_letter_unreadable == "payload",
            set_aside=settings.refused_fields == "set_aside",
            units=units,
        )

    def check(self, delivery: Delivery) -> Checked:
        """Return one outcome per sample, or one rejection if the message cannot be split."""
        if delivery.fault is not None:
            return self._whole(delivery, None, None, delivery.fault)
        address = parse_topic(delivery.topic)
        if address is None:
            fault = self._too_large(delivery) or topic_fault(delivery.topic)
            return self._whole(delivery, None, None, fault)
        device, name = address
        stream = self._catalogue.get(name)
        if (stream is None or delivery.content_type is not None) and is_frame(delivery, name):
            return self._check_frame(delivery, device)
        if stream is None:
            fault = self._too_large(delivery) or Defect(Reason.UNKNOWN_STREAM, "no such schema")
            return self._whole(delivery, device, name, fault)
        decoded = decode(delivery.payload, delivery.encoding, self._limits)
        if isinstance(decoded, Defect):
            if decoded.reason is Reason.BAD_JSON and delivery.payload[:2] in gbt32960.STARTS:
                decoded = _FRAME_AS_JSON
            return self._whole(delivery, device, name, decoded)
        try:
            samples = decoded.samples
            streams = [stream] * len(samples)
            outcomes = self._outcomes(
                delivery, device, streams, samples, decoded.size_bytes, decoded.may_hold_nul
            )
        except (TypeError, ValueError, RecursionError):
            # The validator and orjson fail on documents that are nested too deep. To check the
            # depth only after such a failure costs normal messages nothing.
            if not too_deep(decoded.samples):
                raise
            return self._whole(delivery, device, name, Defect(Reason.BAD_JSON, "nested too deep"))
        return Checked(name, outcomes, decoded.size_bytes)

    def _check_frame(self, delivery: Delivery, device: str) -> Checked:
        """Return the outcomes of a GB/T 32960 frame, one for each sample that it holds."""
        payload = unpack(delivery.payload, delivery.encoding, self._limits)
        frame = payload if isinstance(payload, Defect) else gbt32960.decode(payload, self._units)
        if isinstance(frame, Defect):
            return self._whole(delivery, device, GBT32960, frame)
        samples = _timed(frame, delivery.arrival.at)
        known = [s for s in samples if s[0] in self._catalogue]
        streams = [self._catalogue[name] for name, _ in known]
        outcomes = self._outcomes(delivery, device, streams, [s for _, s in known])
        for index, (_, sample) in enumerate(known):
            outcome = outcomes[index]
            if isinstance(outcome, Row) and (quality := sample.get("quality")):
                # Our own decoder put these marks there, so they count as flags.
                outcome.flags = (*outcome.flags, *quality.values())
        for name, sample in samples:
            if name not in self._catalogue:
                fault = Defect(Reason.UNKNOWN_STREAM, "no such schema")
                kept = self._letters.of_sample(None, sample)
                outcomes.append(Rejected(OTHER, name, device, *fault, *kept))
        counts = Counter(o.stream if isinstance(o, Row) else o.label for o in outcomes)
        # A few bits of a frame may become long texts in its samples.
        size_bytes = len(payload) + sum(map(_weight, outcomes))
        return Checked(GBT32960, outcomes, size_bytes, counts)

    def _outcomes(
        self,
        delivery: Delivery,
        device: str,
        streams: Sequence[Stream],
        samples: Sequence[Any],
        size_bytes: int = 0,
        may_hold_nul: bool = False,  # noqa: FBT001, FBT002  one call, per message
    ) -> list[Outcome]:
        """Return one outcome per sample; `streams` has each sample's stream, in the same order.

        `size_bytes` is the size of the JSON text. Above a limit, each sample's own size is checked.
        """
        at = delivery.arrival.at
        if at is not self._bounded:
            # All messages of one socket read share `at`, so the bounds are computed once.
            self._bounded, self._bounds = at, (at - self._ages.oldest, at + self._ages.ahead)
        self._may_set_aside = _MOST_SET_ASIDE if self._sets_aside else 0
        outcome = self._outcome if size_bytes <= self._surely_small else self._outcome_of_large
        if len(samples) == 1:
            return [outcome(delivery, streams[0], device, samples[0], 0, may_hold_nul, None)]
        pairs = list(zip(streams, samples, strict=True))
        siblings = _siblings(pairs)
        return [
            outcome(delivery, stream, device, sample, place, may_hold_nul, siblings)
            for place, (stream, sample) in enumerate(pairs)
        ]

    def _outcome_of_large(
        self, delivery: Delivery, stream: Stream, device: str, sample: Any, *others: Any
    ) -> Outcome:
        """Return the outcome of a sample of a large message; check the sample's size first."""
        fault = too_much(sample, self._limits)
        if fault is not None:
            kept = self._letters.of_large_sample(stream, sample)
            return Rejected(stream.name, stream.name, device, *fault, *kept)
        return self._outcome(delivery, stream, device, sample, *others)

    def _outcome(
        self,
        delivery: Delivery,
        stream: Stream,
        device: str,
        sample: Any,
        position: int,
        may_hold_nul: bool,  # noqa: FBT001  one call, per sample
        siblings: Siblings | None,
    ) -> Outcome:
        """Return a row, or a rejection with its reason."""
        if not isinstance(sample, dict):
            return self._rejected(stream, device, sample, _NO_OBJECT)
        ts = timely(sample, self._bounds)
        if isinstance(ts, Defect):
            return self._rejected(stream, device, sample, ts)
        seq = sequence(sample, stream.storable)
        if isinstance(seq, Defect):
            return self._rejected(stream, device, sample, seq)
        received_at = delivery.arrival.at
        row = stream.exact(ts, seq, received_at, sample)
        refused: Sequence[SetAside] = ()
        sent = sample
        if row is None:
            sent = stream.never_stored.without(sample)
            said = stream.vocabulary.translated(sent)
            found = self._carefully(stream, ts, seq, received_at, said)
            if isinstance(found, str):
                fault = Defect(Reason.SCHEMA, found)
                return self._rejected(stream, device, sent, fault, clean=True)
            row, sample, refused = found
        if may_hold_nul and (where := _nul(sent)) is not None:
            fault = Defect(Reason.REFUSED_BY_STORE, f"{pointer(where)} holds U+0000")
            return self._rejected(stream, device, sent, fault)
        record, present, resend, unknown_fields = row
        if refused:
            unknown_fields -= 1  # the refused values are not what the vehicle called so
        flags: Collection[str] = ()
        findings = stream.plausibility.findings(sample, device, received_at, ts, siblings)
        if findings or refused:
            marks = {one.pointer: one.why.mark for one in refused}
            flags = _note(findings, marks, sample, record)
        described = _described(stream, sample) if stream.device_fields else None
        return Row(
            stream.name, device, ts, resend, record, present, delivery, position,
            unknown_fields, flags, [one.why for one in refused] if refused else (), described,
        )  # fmt: skip

    def _carefully(
        self, stream: Stream, ts: datetime, seq: int, received_at: datetime, sample: dict[str, Any]
    ) -> tuple[Extracted, dict[str, Any], Sequence[SetAside]] | str:
        """Return (row, the sample that is in it, refused values), or why the schema refuses it."""
        row = stream.known(ts, seq, received_at, sample)
        if row is not None:
            return row, sample, ()
        refused: Sequence[SetAside] = ()
        if self._may_set_aside > 0:
            divided = stream.set_aside(sample)
            self._may_set_aside -= divided.tried
            if divided.fault is not None:
                return divided.fault
            sample, refused = divided.kept, divided.refused
        found = stream.row(ts, seq, received_at, sample)
        return found if isinstance(found, str) else (found, sample, refused)

    def _rejected(
        self, stream: Stream, device: str, sample: Any, fault: Defect, *, clean: bool = False
    ) -> Rejected:
        kept = self._letters.of_sample(stream, sample, clean=clean)
        return Rejected(stream.name, stream.name, device, *fault, *kept)

    def internal_error(self, delivery: Delivery) -> Checked:
        """Return one rejection for a message whose check raised an unexpected error."""
        device, name = parse_topic(delivery.topic) or (None, None)
        fault = Defect(Reason.INTERNAL_ERROR, "an error in the service; see its log")
        return self._whole(delivery, device, name, fault)

    def set_aside(self, delivery: Delivery) -> Checked:
        """Return one rejection for a message that must not be read; keep its size and digest."""
        device, name = parse_topic(delivery.topic) or (None, None)
        label = name if name is not None and name in self._catalogue else OTHER
        told = hashlib.sha256(delivery.payload).hexdigest()
        detail = (
            "in flight at the last three ends of a worker, so it was not read: "
            f"{len(delivery.payload)} bytes, SHA-256 {told}"
        )
        rejected = Rejected(label, name, device, Reason.INTERNAL_ERROR, detail, b"", KeptAs.DIGEST)
        return Checked(label, [rejected], len(delivery.topic))

    def samples_json(self, delivery: Delivery, indexes: Sequence[int]) -> list[bytes]:
        """Return accepted samples of a delivery, by index, in the form that dead letters keep."""
        address = parse_topic(delivery.topic)
        assert address is not None
        name = address[1]
        if is_frame(delivery, name):
            payload = unpack(delivery.payload, delivery.encoding, self._limits)
            assert not isinstance(payload, Defect)
            frame = gbt32960.decode(payload, self._units)
            assert not isinstance(frame, Defect)
            timed = _timed(frame, delivery.arrival.at)
            known = [(of, sample) for of, sample in timed if of in self._catalogue]
        else:
            decoded = decode(delivery.payload, delivery.encoding, self._limits)
            assert not isinstance(decoded, Defect)
            known = [(name, sample) for sample in decoded.samples]
        kept = (known[index] for index in indexes)
        return [self._letters.of_sample(self._catalogue[of], one)[0] for of, one in kept]

    def _too_large(self, delivery: Delivery) -> Defect | None:
        size, most = len(delivery.payload), self._limits.payload_bytes
        return Defect(Reason.TOO_LARGE, f"{size} bytes, at most {most}") if size > most else None

    def _whole(
        self, delivery: Delivery, device: str | None, name: str | None, fault: Defect
    ) -> Checked:
        label = (
            name if name is not None and (name in self._catalogue or name == GBT32960) else OTHER
        )
        rejected = Rejected(label, name, device, *fault, *self._letters.of_message(delivery, name))
        # The payload kept of a compressed message may be a thousand times the message's size.
        size_bytes = max(len(delivery.payload), len(rejected.payload)) + len(delivery.topic)
        return Checked(label, [rejected], size_bytes)


def _weight(outcome: Outcome) -> int:
    """Return the bytes of the texts in an outcome."""
    return len(outcome.payload) if isinstance(outcome, Rejected) else weight(outcome.record)


def is_frame(delivery: Delivery, stream: str) -> bool:
    """Return whether the topic or the content type marks the payload as a GB/T 32960 frame."""
    if delivery.content_type is None:
        return stream == GBT32960
    return stream == GBT32960 or delivery.content_type.lower() == gbt32960.CONTENT_TYPE


def _timed(frame: gbt32960.Frame, received_at: datetime) -> list[tuple[str, dict[str, Any]]]:
    """Return the samples of a frame. A sample without a time gets the time of arrival."""
    samples = list(frame.samples.items())
    for _, sample in samples:
        if "ts" not in sample:
            sample["ts"] = received_at.isoformat()
            sample["quality"] = {"/ts": "estimated"} | sample.get("quality", {})
    return samples


def _siblings(samples: Iterable[tuple[Stream, Any]]) -> Siblings:
    return Siblings(
        (stream.name, ts, stream.vocabulary.translated(sample))
        for stream, sample in samples
        if isinstance(sample, dict) and isinstance(ts := instant(sample.get("ts")), datetime)
    )


def _note(
    findings: dict[str, str], marks: dict[str, str], sample: dict[str, Any], record: Record
) -> list[str]:
    """Add findings, and marks of refused values, to the row's `quality`; return the new flags.

    The device's own marks stay.
    """
    own = sample.get("quality") or {}
    note_quality(record, orjson.dumps(findings | marks | own))
    return [flag for at, flag in findings.items() if at not in own]


def _described(stream: Stream, sample: dict[str, Any]) -> dict[str, str] | None:
    said = {name: sample[name] for name in stream.device_fields if sample.get(name) is not None}
    return said or None


def _nul(node: Any) -> tuple[str | int, ...] | None:
    """Return the path to U+0000 in a name or a text of `node`; None if it does not occur."""
    if type(node) is str:
        return () if "\0" in node else None
    if type(node) is dict:
        if "\0" in "".join(node):
            return ()
        items: Any = node.items()
    elif type(node) is list and not _MAY_HOLD_NUL.isdisjoint(map(type, node)):
        items = enumerate(node)
    else:
        return None
    for step, value in items:
        if type(value) in _MAY_HOLD_NUL and (found := _nul(value)) is not None:
            return (step, *found)
    return None
