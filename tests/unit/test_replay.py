from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from ingest.check import Checker
from ingest.commands.message import Message
from ingest.commands.publisher import Publisher
from ingest.config import Settings
from ingest.errors import ConfigError
from ingest.lab.replay import Recorded, Replay, instants, recorded, resent, shifted
from tests.support import CATALOGUE

CHECKER = Checker.of(CATALOGUE, Settings())
DATA = Path(__file__).parents[3] / "shared" / "data"


def test_a_recording_is_read_plain_and_zipped(tmp_path: Path) -> None:
    lines = b'{"topic":"a","payload":{"ts":1}}\n\n{"topic":"b","payload":[]}\n'
    (tmp_path / "plain").write_bytes(lines)
    (tmp_path / "zipped").write_bytes(gzip.compress(lines))
    for name in ("plain", "zipped"):
        assert [entry.topic for entry in recorded(tmp_path / name)] == ["a", "b"]


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
    recording = Replay(file, 0, CHECKER, shift=True)
    recording.measure()
    assert recording.total == 2
    moved = instants(shifted({"ts": 5_000}, recording._by))[0]
    assert abs(moved - datetime.now(UTC)) < timedelta(seconds=10)


def test_every_date_time_of_a_sample_moves_by_the_same_span() -> None:
    sample = {
        "ts": 1_000,
        "sent_at": "2026-11-01T08:00:00Z",
        "trip": {"started_at": "2026-11-01T07:00:00+0000", "name": "1970"},
        "stops": [{"at": "2026-11-01T07:30:00Z", "n": 5}, "2026-11-01T07:30:00.5Z"],
        "ms": 1_000,
    }
    assert shifted([sample], timedelta(hours=1)) == [
        {
            "ts": 3_601_000,
            "sent_at": "2026-11-01T09:00:00Z",
            "trip": {"started_at": "2026-11-01T08:00:00Z", "name": "1970"},
            "stops": [{"at": "2026-11-01T08:30:00Z", "n": 5}, "2026-11-01T08:30:00.500000Z"],
            "ms": 1_000,
        }
    ]
    assert resent([{"ts": 1}, 7]) == [{"ts": 1, "resend": True}, 7]


def test_what_cannot_be_moved_stays_as_it_is() -> None:
    sample = {"ts": 253_402_300_799_000, "until": "9999-12-31T23:00:00Z"}
    assert shifted(sample, timedelta(days=9)) == sample


def test_lines_of_mosquitto_sub_and_binary_payloads_are_read(tmp_path: Path) -> None:
    line = {"tst": "2026-11-22T08:00:00.000000Z+0000", "topic": "a", "qos": 1, "retain": 0}
    lines = [
        line | {"payloadlen": 8, "payload": '{"ts":1}'},
        line | {"payloadlen": 8, "payload": {"ts": 1}},
        line | {"payload": "no json"},
        {"topic": "a", "payload_base64": base64.b64encode(b"##\xff").decode()},
        {"topic": "a", "payload": "text"},
        line
        | {
            "payload_base64": "AA==",
            "properties": {
                "content-type": "application/vnd.gbt32960",
                "user-properties": {"content-encoding": "gzip"},
            },
        },
    ]
    file = tmp_path / "recording"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert list(recorded(file)) == [
        Recorded("a", {"ts": 1}, None, None),
        Recorded("a", {"ts": 1}, None, None),
        Recorded("a", b"no json", None, None),
        Recorded("a", b"##\xff", None, None),
        Recorded("a", "text", None, None),
        Recorded("a", b"\0", "gzip", "application/vnd.gbt32960"),
    ]
    assert shifted({"ts": 1e3}, timedelta(seconds=1)) == {"ts": 2_000}
    deep = '"payload": ' + "[" * 600 + "]" * 600
    for bad in (deep, '"payload_base64": "?"', '"payload": 1, "properties": {"content-type": 5}'):
        file.write_text('{"topic": "a", ' + bad + "}")
        with pytest.raises(ConfigError, match="line 1: not"):
            list(recorded(file))


class Nobody:
    """Publisher that keeps nothing."""

    async def publish_all(self, messages: Any, done: Callable[[Message], None]) -> None:
        async for message in messages:
            done(message)


@pytest.mark.skipif(not DATA.is_dir(), reason="the recordings are not on this machine")
@pytest.mark.parametrize(
    ("name", "lines", "refused", "refused_fields"),
    [
        ("inputs.ndjson", 22, 0, 6),
        ("incidents.ndjson.gz", 1_579, 35, 0),
        ("mobility-rfms.ndjson.gz", 149, 0, 0),
        ("truck.ndjson.gz", 895, 0, 0),
        ("v2x.ndjson.gz", 978, 0, 0),
    ],
)
async def test_of_real_recordings_only_times_of_no_calendar_are_refused(
    name: str, lines: int, refused: int, refused_fields: int
) -> None:
    checker = Checker.of(CATALOGUE, Settings(max_age_days=36_500))
    recording = Replay(DATA / name, 0, checker, shift=True)
    recording.measure()
    await recording.run(cast(Publisher, Nobody()))
    account = recording.account()
    assert account["acknowledged"] == lines
    assert (account["refused"], account["refused_fields"]) == (refused, refused_fields)
    assert all("bad_timestamp" in why for why in account.get("why", ()))
