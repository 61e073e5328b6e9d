from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest.errors import ConfigError
from ingest.lab.replay import Replay, instants, recorded, shifted


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
