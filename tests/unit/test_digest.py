"""Digests in place of private values, with a key and without."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from ingest.check import Checker
from ingest.config import Settings
from ingest.errors import ConfigError
from ingest.model import Rejected, Row
from ingest.schema import digest_of, load_catalogue
from ingest.schema.digest import once
from ingest.schema.private import places, with_digests, with_room_for_digests
from tests.support import column, delivery

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
KEY = b"0123456789abcdef" * 4
TRAILER = "WKESD000000000001"


def hmac_of(text: str) -> str:
    return hmac.new(KEY, text.encode(), "sha256").hexdigest()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "digest.key"
    file.write_bytes(KEY + b"\n")
    return file


def test_with_a_key_nobody_without_it_can_guess(key_file: Path) -> None:
    assert digest_of(key_file)("8986") == hmac_of("8986")
    assert digest_of(None)("1") == (
        "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    )


def test_rows_and_dead_letters_hold_the_same_digest(key_file: Path) -> None:
    catalogue = load_catalogue(None, digest_of(key_file))
    checker = Checker.of(catalogue, Settings())
    said = {"ts": NOW.isoformat(), "seq": 1, "trailers": [{"no": 1, "vin": TRAILER}], "x": 1}
    said |= {"driver_hash": "D 1"}
    (row,) = checker.check(delivery(said, "iov/v1/T/truck", at=NOW)).outcomes
    assert isinstance(row, Row)
    assert orjson.loads(column(row, catalogue, "trailers")) == [{"no": 1, "vin": hmac_of(TRAILER)}]
    assert column(row, catalogue, "driver_hash") == hmac_of("D 1")
    (letter,) = checker.check(delivery(said | {"seq": -1}, "iov/v1/T/truck", at=NOW)).outcomes
    assert isinstance(letter, Rejected)
    kept = orjson.loads(letter.payload)
    assert kept["trailers"] == [{"no": 1, "vin": hmac_of(TRAILER)}]
    assert kept["driver_hash"] == hmac_of("D 1")


def test_what_is_no_text_has_no_digest() -> None:
    where = places([("a", "b")])
    assert with_digests({"a": [{"b": 7, "c": 1}, 5]}, where, str.upper) == {
        "a": [{"b": None, "c": 1}, 5]
    }
    assert with_digests({"a": {"b": "x"}}, where, str.upper) == {"a": {"b": "X"}}


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), (b"short", "5 bytes, at least 32")]
)
def test_a_key_that_is_none_is_told(content: bytes | None, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "digest.key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        digest_of(file)
    (told,) = caught.value.problems
    assert told.startswith(f"IOV_DIGEST_KEY_FILE: {file}: {problem}")
    assert "short" not in told


def test_what_is_a_digest_already_stays(key_file: Path) -> None:
    digest = once(digest_of(key_file))
    assert digest("8986") == hmac_of("8986")
    assert digest(hmac_of("8986")) == hmac_of("8986")


def test_a_field_for_digests_has_room_for_one_and_no_other_field_changes() -> None:
    schema = {
        "properties": {
            "id": {"x-hash": "sha256", "type": "string", "maxLength": 17, "pattern": "^[A-Z]+$"},
            "long": {"x-hash": "sha256", "type": "string", "maxLength": 100},
            "name": {"type": "string", "maxLength": 17, "pattern": "^[A-Z]+$"},
            "parts": {"items": {"properties": {"vin": {"x-hash": "sha256", "minLength": 17}}}},
        }
    }
    assert with_room_for_digests(schema) == {
        "properties": {
            "id": {"x-hash": "sha256", "type": "string", "maxLength": 64},
            "long": {"x-hash": "sha256", "type": "string", "maxLength": 100},
            "name": {"type": "string", "maxLength": 17, "pattern": "^[A-Z]+$"},
            "parts": {"items": {"properties": {"vin": {"x-hash": "sha256", "maxLength": 64}}}},
        }
    }


def test_a_derived_seq_tells_nothing_of_what_is_stored_as_a_digest(key_file: Path) -> None:
    """Without the key, nobody can find a driver by trying all ids against the checksum."""
    trip = {"ts": NOW.isoformat(), "driver_hash": "D-4711", "gross_weight_kg": 1}
    seqs = []
    for key in (key_file, None):
        catalogue = load_catalogue(digest=digest_of(key))
        checker = Checker.of(catalogue, Settings())
        [row] = checker.check(delivery(trip, "iov/v1/V1/truck", at=NOW)).outcomes
        assert isinstance(row, Row)
        seqs.append(column(row, catalogue, "seq"))
        [other] = checker.check(
            delivery(trip | {"driver_hash": "D-4712"}, "iov/v1/V1/truck", at=NOW)
        ).outcomes
        assert isinstance(other, Row)
        seqs.append(column(other, catalogue, "seq"))
    assert len(set(seqs)) == 4
