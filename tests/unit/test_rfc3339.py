from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.schema import rfc3339


@given(
    st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)),  # noqa: DTZ001
    st.integers(-1439, 1439),
)
def test_what_python_writes_comes_back_in_utc(instant: datetime, offset_min: int) -> None:
    aware = instant.replace(tzinfo=timezone(timedelta(minutes=offset_min)))
    assert rfc3339(aware.isoformat()) == aware
    assert rfc3339(aware.isoformat()).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("2026-11-01t08:00:00z", "2026-11-01T08:00:00Z"),
        ("2026-11-01 08:00:00.1234567Z", "2026-11-01T08:00:00.123456Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T15:59:60.5-08:00", "2017-01-01T00:00:00Z"),
        ("2026-11-01T16:00:00+08:00", "2026-11-01T08:00:00Z"),
        ("2026-11-01T08:00:00-00:00", "2026-11-01T08:00:00Z"),
    ],
)
def test_every_form_the_standard_allows_is_read(text: str, same_as: str) -> None:
    assert rfc3339(text) == datetime.fromisoformat(same_as)


@pytest.mark.parametrize(
    "text",
    [
        "", "2026-11-01", "2026-11-01T08:00:00", "2026-11-01T08:00Z", "20261101T080000Z",
        "2026-11-01T24:00:00Z", "2026-11-01T08:00:00+24:00", "2026-02-30T08:00:00Z",
        "2032-90-02T12:08:07+01:00", "2026-W44-7T08:00:00Z", "٢٠٢٦-11-01T08:00:00Z",
        "2026-11-01T08:00:00Z\n", "0001-01-01T00:00:00+23:00", "0000-01-01T00:00:00Z",
        "2026-11-01T08:00:00,5Z", "9999-12-31T23:59:60Z",
    ],
)  # fmt: skip
def test_nothing_else_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(not an RFC 3339|no date of the calendar)") as caught:
        rfc3339(text)
    assert not text or text not in str(caught.value)


def test_it_is_always_utc() -> None:
    assert rfc3339("2026-11-01T08:00:00+08:00").tzinfo is UTC
