"""Time and sequence number of a sample. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self
from zlib import crc32

import orjson

from ingest.config import Settings
from ingest.model import Defect, Reason
from ingest.schema import rfc3339

MAX_SEQ = 4_294_967_295
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_IN_SEQ = {"resend", "sent_at"}
_YEARS_MS = range(946_684_800_000, 4_102_444_800_000)
"""Unix milliseconds from the year 2000 to 2100."""
_UNITS = {"Unix seconds": 1_000, "Unix microseconds": 1e-3, "Unix nanoseconds": 1e-6}
"""Milliseconds of each unit that a number may have been meant in; no two fit one number."""
_DIGITS = re.compile(r"-?\d+(?:\.\d*)?", re.ASCII)


class Ages(NamedTuple):
    """Limits of the distance between a sample's `ts` and the clock."""

    oldest: timedelta
    ahead: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits from the settings."""
        return cls(timedelta(days=settings.max_age_days), timedelta(seconds=settings.max_ahead_s))


def timely(sample: dict[str, Any], bounds: tuple[datetime, datetime]) -> datetime | Defect:
    """Return the sample's time; a Defect if it is unreadable, too old or too far ahead."""
    ts = instant(sample.get("ts"))
    if isinstance(ts, Defect):
        return ts
    oldest, ahead = bounds
    if oldest <= ts <= ahead:
        return ts
    if type(number := sample["ts"]) is not str and (unit := _unit(number)):
        return _not_in_milliseconds(unit)
    if ts < oldest:
        return Defect(Reason.TOO_OLD, "/ts is older than the limit")
    return Defect(Reason.CLOCK_AHEAD, "/ts is further ahead than the limit")


def instant(ts: Any) -> datetime | Defect:
    """Return `ts` in UTC. It may be RFC 3339 with a zone, or integral Unix milliseconds.

    An integral number may be written `1.7e12` or `1700000000000.0`, as JSON Schema says of the type
    `integer`.
    """
    if ts is None:
        return Defect(Reason.BAD_ENVELOPE, "/ts is absent")
    try:
        if type(ts) is str:
            return rfc3339(ts)
        if type(ts) is int:
            return _EPOCH + timedelta(milliseconds=ts)
        if type(ts) is float and ts.is_integer():
            return _EPOCH + timedelta(milliseconds=int(ts))
    except OverflowError:
        unit = _unit(ts)
        if unit:
            return _not_in_milliseconds(unit)
        return Defect(Reason.BAD_TIMESTAMP, "/ts is outside the calendar")
    except ValueError as exc:
        if _DIGITS.fullmatch(ts):
            return Defect(Reason.BAD_TIMESTAMP, "/ts is a number written as text")
        return Defect(Reason.BAD_TIMESTAMP, f"/ts is {exc}")
    if type(ts) is float and (unit := _unit(ts)):
        return _not_in_milliseconds(unit)
    return Defect(Reason.BAD_TIMESTAMP, "/ts is neither text nor integer milliseconds")


def _unit(number: float) -> str | None:
    """Return the unit in which a number is a time of this century; None if in no other than ms."""
    for unit, in_ms in _UNITS.items():
        if _YEARS_MS.start <= number * in_ms < _YEARS_MS.stop:
            return unit
    return None


def _not_in_milliseconds(unit: str) -> Defect:
    return Defect(Reason.BAD_TIMESTAMP, f"/ts looks like {unit}; a number is milliseconds")


def sequence(sample: dict[str, Any], storable: Callable[[Any], Any]) -> int | Defect:
    """Return the `seq` of a sample; if it is absent, derive it from `storable(sample)`.

    `storable` leaves only what may be stored, so that nobody can guess the rest from the checksum.
    A dead letter has no more than that, so its sample gets the same `seq` when it is replayed.
    """
    seq = sample.get("seq")
    if seq is None:
        return derived_seq(storable(sample))
    if type(seq) is float and seq.is_integer():
        seq = int(seq)  # 12.0 is an integer in JSON Schema
    if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
        return Defect(Reason.BAD_ENVELOPE, f"/seq is no integer from 0 to {MAX_SEQ}")
    return seq


def derived_seq(sample: dict[str, Any]) -> int:
    """Return a negative `seq` for a sample without `seq`.

    It is −1−CRC-32 of the sample's JSON with sorted keys, without `resend` and `sent_at`, which
    differ between a sample and its redelivery.
    """
    content = {k: v for k, v in sample.items() if k not in _NOT_IN_SEQ}
    return -1 - crc32(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
