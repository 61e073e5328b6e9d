"""Time and sequence number of a sample. Pure."""

from __future__ import annotations

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
    if ts < oldest:
        return Defect(Reason.TOO_OLD, "/ts is older than the limit")
    return Defect(Reason.CLOCK_AHEAD, "/ts is further ahead than the limit")


def instant(ts: Any) -> datetime | Defect:
    """Return `ts` in UTC. It may be RFC 3339 with a zone, or integer Unix milliseconds."""
    if ts is None:
        return Defect(Reason.BAD_ENVELOPE, "/ts is absent")
    try:
        if type(ts) is str:
            return rfc3339(ts)
        if type(ts) is int:
            return _EPOCH + timedelta(milliseconds=ts)
    except OverflowError:
        return Defect(Reason.BAD_TIMESTAMP, "/ts is outside the calendar")
    except ValueError as exc:
        return Defect(Reason.BAD_TIMESTAMP, f"/ts is {exc}")
    return Defect(Reason.BAD_TIMESTAMP, "/ts is neither text nor integer milliseconds")


def sequence(sample: dict[str, Any], stored: Callable[[Any], Any]) -> int | Defect:
    """Return the `seq` of a sample; if it is absent, derive it from `stored(sample)`.

    `stored` removes what must never be stored, so that nobody can guess it from the checksum.
    """
    seq = sample.get("seq")
    if seq is None:
        return derived_seq(stored(sample))
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
