from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.check import Checker
from ingest.config import Settings
from ingest.model import Row
from ingest.schema import default_directory, load_catalogue
from ingest.schema.stored import sample_of
from tests.instances import instances
from tests.support import delivery, every_column

CATALOGUE = load_catalogue(digested=True)
CHECKER = Checker.of(CATALOGUE, Settings())
NOW = datetime(2026, 11, 29, 8, tzinfo=UTC)
EXAMPLES = sorted(default_directory().glob("*/valid/*.json"))


def stored(sample: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The row of a sample as the database returns it; None if it is rejected."""
    [row] = CHECKER.check(delivery(sample, f"iov/v1/V1/{name}", at=NOW)).outcomes
    if not isinstance(row, Row):
        return None
    values = every_column(CATALOGUE[name], row.record, row.present)
    values |= {"device_id": 1, "resend": row.resend}
    return {
        column: orjson.loads(value) if isinstance(value, bytes) else value
        for column, value in values.items()
    }


def expect_the_same_again(sample: dict[str, Any], name: str) -> None:
    row = stored(sample, name)
    if row is None:
        return  # no row, so no way back
    again = stored(sample_of(CATALOGUE[name].columns, row).sample, name)
    assert again is not None
    # Marks are not part of what was sent, and a `seq` is derived from what is left of it.
    assert again | dict.fromkeys(("seq", "quality")) == row | dict.fromkeys(("seq", "quality"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parts[-3]}/{file.stem}")
def test_a_row_becomes_the_sample_that_becomes_the_row(file: Path) -> None:
    sample = orjson.loads(file.read_bytes()) | {"ts": NOW.isoformat()}
    assert stored(sample, file.parts[-3]) is not None
    expect_the_same_again(sample, file.parts[-3])


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
@settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_so_does_any_row(name: str, data: st.DataObject) -> None:
    sample = data.draw(instances(CATALOGUE[name].schema))
    expect_the_same_again(sample | {"ts": NOW.isoformat()}, name)


def test_an_integral_float_in_a_code_is_written_as_the_integer_that_it_is() -> None:
    row = stored({"ts": NOW.isoformat(), "dtcs": [{"spn": 639.0, "fmi": 9}]}, "alarm")
    assert row is not None
    assert row["dtcs"] == ["SPN639-FMI9"]


def test_what_was_refused_is_back_at_its_place() -> None:
    sample = {
        "ts": NOW.isoformat(),
        "speed_kmh": 46.8,
        "soc_pct": -50,
        "location": {"lon": 400, "lat": 31.2},
        "motors": [{"seq": 1, "speed_rpm": "fast"}],
        "a/b~c": 1,
        "refused": "theirs",
    }
    row = stored(sample, "nev")
    assert row is not None
    assert row["seq"] < 0
    found = sample_of(CATALOGUE["nev"].columns, row)
    assert found.sample == sample | {"ts": NOW.isoformat()}
    assert found.refused == {"/soc_pct", "/location/lon", "/motors/0/speed_rpm", "/refused"}
