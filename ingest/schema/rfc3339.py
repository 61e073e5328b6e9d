"""RFC 3339 date-times, the only text form of an instant that a sample may carry.

The zone may also be in ISO 8601's basic form (`+0800`, `+08`), as `strftime` and Java write it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_FORM = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
    r"([Zz]|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)",
    re.ASCII,
)
_LEAP_SECOND = slice(17, 19)
_REMEMBERED, _LONGEST = 4_096, 35
"""Number of texts in the cache, and number of characters up to which a text is cached.

A hostile text may have megabytes of zeros. Caching helps because the clocks of a fleet agree: at
40,000 samples a second, forty samples have the same time to the millisecond.
"""


def rfc3339(text: str) -> datetime:
    """Return the instant in UTC; fractions beyond a microsecond are cut off.

    A leap second (`:60`) is the first instant of the next minute, as in PostgreSQL. Raises
    ValueError for every other text that RFC 3339, 5.6 does not allow, such as one without a zone.
    """
    return _remembered(text) if len(text) <= _LONGEST else _parsed(text)


def _parsed(text: str) -> datetime:
    form = _FORM.fullmatch(text)
    if form is None:
        raise ValueError("not an RFC 3339 date-time with zone")
    try:
        if text[_LEAP_SECOND] == "60":
            return _parsed(f"{text[:17]}59{form[2]}") + timedelta(seconds=1)
        found = datetime.fromisoformat(text if text[-1] != "z" else text.upper())
        return found if found.tzinfo is UTC else found.astimezone(UTC)
    except (ValueError, OverflowError):
        # The text of the standard library's error would quote the value.
        raise ValueError("no date of the calendar") from None


_remembered = lru_cache(_REMEMBERED)(_parsed)
