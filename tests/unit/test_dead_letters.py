from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.batch import DeadLetter
from ingest.commands.common import moment
from ingest.commands.dead_letters.replay import is_not_kept, replayed
from ingest.commands.dead_letters.report import readable
from ingest.errors import ConfigError
from ingest.letters import size_and_digest

NOW = datetime(2026, 11, 29, 8, tzinfo=UTC)


def letter(topic: str, device: str | None, stream: str | None) -> DeadLetter:
    return DeadLetter(NOW, topic, device, stream, "schema", "", b"{}")


def of_old(payload: bytes) -> DeadLetter:
    """A letter from before it was noted what is kept."""
    return DeadLetter(NOW, "t", "V1", "nev", "schema", "", payload, None)


@given(st.binary())
def test_what_only_size_and_digest_were_kept_of_is_recognised(sent: bytes) -> None:
    payload, kept = size_and_digest(sent)
    assert is_not_kept(of_old(payload))
    assert is_not_kept(of_old(payload)._replace(kept=kept.value))
    assert not is_not_kept(of_old(payload)._replace(kept="clean")), "a vehicle sent it"


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b'{"bytes":1}',
        b'{"bytes":1,"sha256":"ab","ts":1}',
        b'{"bytes":1,"sha256":',
        b'{"bytes":' + b"1" * 300 + b"}",
    ],
)
def test_what_a_vehicle_sent_is_not_taken_for_it(payload: bytes) -> None:
    assert not is_not_kept(of_old(payload))


@pytest.mark.parametrize(
    ("topic", "device", "stream", "again"),
    [
        ("iov/v1/V1/nev", "V1", "nev", "iov/v1/V1/nev"),
        ("site/iov/v1/V1/nev", "V1", "nev", "site/iov/v1/V1/nev"),
        ("iov/v1/V1/gbt32960", "V1", "alarm", "iov/v1/V1/alarm"),
        ("iov/v1/V1/nev", "V1", "gbt32960", "iov/v1/V1/gbt32960"),
        ("what/ever", None, None, "what/ever"),
    ],
)
def test_a_letter_arrives_again_by_the_topic_of_its_stream(
    topic: str, device: str | None, stream: str | None, again: str
) -> None:
    delivery = replayed(7, letter(topic, device, stream))
    assert (delivery.topic, delivery.arrival.at, delivery.packet_id) == (again, NOW, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("24h", NOW - timedelta(hours=24)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-01-31T08:00:00+08:00", datetime(2026, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_time_is_given_as_such_or_as_a_span_before_now(text: str, expected: datetime) -> None:
    assert moment(text, NOW, "--since") == expected


@pytest.mark.parametrize("text", ["", "yesterday", "24", "-1h", "2026-01-31", "999999999w", "1.5h"])
def test_a_time_that_cannot_be_read_is_a_wrong_argument(text: str) -> None:
    with pytest.raises(ConfigError, match="--since"):
        moment(text, NOW, "--since")


@pytest.mark.parametrize(
    ("payload", "lines"),
    [
        (b'{"a":[1]}', ["{", '  "a": [', "    1", "  ]", "}"]),
        ("schön".encode(), ["schön"]),
        (b"##\x02\xfe", ["000000  23 23 02 fe"]),
        (b"a\x1b[31mb", ["000000  61 1b 5b 33 31 6d 62"]),
    ],
)
def test_a_payload_is_shown_so_that_people_can_read_it(payload: bytes, lines: list[str]) -> None:
    assert readable(payload).splitlines() == lines


def test_of_a_long_binary_payload_the_beginning_is_shown() -> None:
    shown = readable(bytes(range(256)) * 20).splitlines()
    assert len(shown) == 257
    assert "1,024 bytes more" in shown[-1]


@pytest.mark.parametrize("sent", ["\x1b[2J", "\x85", "\u202e"])
def test_what_could_steer_a_terminal_is_shown_as_its_escape(sent: str) -> None:
    shown = readable(orjson.dumps({sent: "x", "y": sent}))
    assert sent not in shown
    assert shown.isascii()


def test_json_is_shown_as_it_would_be_written() -> None:
    assert orjson.loads(readable(b'{"b": 1, "a": "\\u001b"}')) == {"b": 1, "a": "\x1b"}
