from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import orjson
import pytest

from ingest.check import Checker
from ingest.errors import ConfigError
from ingest.model import Row
from ingest.schema import load_catalogue
from ingest.tools.fleet import STREAMS, Fleet, Mischief, Vehicle
from ingest.tools.replay import Replay, instants, recorded, shifted
from tests.support import delivery

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def messages(fleet: Fleet, count: int) -> list[tuple[str, bytes, str]]:
    found = (fleet.message(NOW + timedelta(milliseconds=100 * n)) for n in range(count))
    return [(m.topic, m.payload, m.kind) for m in found]


def test_the_same_seed_says_the_same() -> None:
    assert messages(Fleet(20, 7), 300)[50:] == messages(Fleet(20, 7), 300)[50:]
    assert messages(Fleet(20, 7), 50) != messages(Fleet(20, 8), 50)


def test_what_the_fleet_says_is_accepted_and_what_it_says_wrong_is_not() -> None:
    checker = Checker(load_catalogue())
    fleet = Fleet(10, 1, STREAMS, 2, Mischief(bad=0.2, duplicate=0.1, late=0.1))
    kinds: dict[str, int] = {}
    for topic, payload, kind in messages(fleet, 1_000):
        at = NOW + timedelta(seconds=200)
        outcomes = checker.check(delivery(payload, topic, at=at)).outcomes
        assert len(outcomes) == 2
        assert all(isinstance(o, Row) for o in outcomes) == (kind != "bad")
        kinds[kind] = kinds.get(kind, 0) + 1
    assert set(kinds) == {"good", "bad", "duplicate", "late"}
    assert 130 < kinds["bad"] < 270


def test_a_vehicle_moves_as_fast_as_it_says() -> None:
    from random import Random

    car = Vehicle("V", Random(1), clock=NOW)
    for _ in range(200):
        before, odometer_km, soc_pct = car.lat, car.odometer_km, car.soc_pct
        car.step(1.0)
        assert car.odometer_km - odometer_km == pytest.approx(car.speed_kmh / 3_600)
        assert abs(car.lat - before) * 111.32 <= car.speed_kmh / 3_600 + 1e-9
        assert car.soc_pct <= soc_pct or car.soc_pct == 90


def test_sequence_numbers_count_per_device_and_stream() -> None:
    seen: dict[str, list[int]] = {}
    for topic, payload, _ in messages(Fleet(3, 1), 300):
        seen.setdefault(topic, []).append(orjson.loads(payload)["seq"])
    assert len(seen) > 6
    for numbers in seen.values():
        assert all(after == before + 1 for before, after in pairwise(numbers))


def test_a_recording_is_read_plain_and_zipped(tmp_path: Path) -> None:
    lines = b'{"topic":"a","payload":{"ts":1}}\n\n{"topic":"b","payload":[]}\n'
    (tmp_path / "plain").write_bytes(lines)
    (tmp_path / "zipped").write_bytes(gzip.compress(lines))
    for name in ("plain", "zipped"):
        assert [entry["topic"] for entry in recorded(tmp_path / name)] == ["a", "b"]


@pytest.mark.parametrize("line", [b"no json", b'{"topic":1,"payload":2}', b'{"topic":"a"}', b"7"])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "recording"
    file.write_bytes(b'{"topic":"a","payload":1}\n' + line + b"\n")
    with pytest.raises(ConfigError, match="line 2: not"):
        list(recorded(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        list(recorded(tmp_path / "none"))


def test_shifting_moves_every_instant_that_can_be_read_and_keeps_its_form() -> None:
    by = timedelta(days=1)
    payload = [{"ts": "2021-03-29T11:13:45+01:00"}, {"ts": 1_000}, {"ts": "2032-90-02"}, {}, 7]
    assert shifted(payload, by) == [
        {"ts": "2021-03-30T10:13:45Z"}, {"ts": 86_401_000}, {"ts": "2032-90-02"}, {}, 7,
    ]  # fmt: skip
    assert len(instants(payload)) == 2


def test_a_shifted_recording_ends_now(tmp_path: Path) -> None:
    file = tmp_path / "recording"
    file.write_bytes(b'{"topic":"a","payload":{"ts":1000}}\n{"topic":"a","payload":{"ts":5000}}\n')
    recording = Replay(file, 0, shift=True)
    recording.measure()
    assert recording.total == 2
    moved = instants(shifted({"ts": 5_000}, recording._by))[0]
    assert abs(moved - datetime.now(UTC)) < timedelta(seconds=10)
