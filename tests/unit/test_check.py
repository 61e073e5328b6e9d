from __future__ import annotations

import base64
import bz2
import gzip
import lzma
import zlib
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.check import Checker
from ingest.config import Settings
from ingest.envelope import derived_seq, instant
from ingest.model import Defect, KeptAs, Outcome, Reason, Rejected, Row
from ingest.schema import Catalogue
from ingest.schema.private import NeverStored
from ingest.schema.stream import stream
from tests.support import (
    CATALOGUE,
    bad_sample,
    column,
    delivery,
    every_column,
    sample,
)

CHECKER = Checker.of(CATALOGUE, Settings())
NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def outcomes(payload: Any, topic: str = "iov/v1/V1/nev", **more: Any) -> list[Outcome]:
    return CHECKER.check(delivery(payload, topic, at=NOW, **more)).outcomes


def rejected(payload: Any, topic: str = "iov/v1/V1/nev", **more: Any) -> Rejected:
    (outcome,) = outcomes(payload, topic, **more)
    assert isinstance(outcome, Rejected)
    return outcome


def row(payload: Any, topic: str = "iov/v1/V1/nev") -> dict[str, Any]:
    (outcome,) = outcomes(payload, topic)
    assert isinstance(outcome, Row), outcome
    return every_column(CATALOGUE[outcome.stream], outcome.record, outcome.present)


def test_a_good_sample_becomes_a_row() -> None:
    found = row(sample(5, NOW, resend=True, cabin="warm", location={"lon": 1.5, "tilt": 2}))
    assert found["device_id"] is None, "the store knows it"
    assert (found["ts"], found["seq"], found["received_at"]) == (NOW, 5, NOW)
    assert found["resend"] is True
    assert (found["speed_kmh"], found["location_lon"], found["location_lat"]) == (46.8, 1.5, None)
    assert orjson.loads(found["extra"]) == {"cabin": "warm", "location": {"tilt": 2}}


@pytest.mark.parametrize(
    ("payload", "reason", "detail"),
    [
        ([7], Reason.BAD_ENVELOPE, "a sample is an object"),
        ({}, Reason.BAD_ENVELOPE, "/ts is absent"),
        ({"ts": None}, Reason.BAD_ENVELOPE, "/ts is absent"),
        (sample(seq=-1, ts=NOW), Reason.BAD_ENVELOPE, "/seq"),
        (sample(ts=NOW) | {"seq": 4_294_967_296}, Reason.BAD_ENVELOPE, "/seq"),
        (sample(ts=NOW) | {"seq": 1.5}, Reason.BAD_ENVELOPE, "/seq"),
        (sample(ts=NOW) | {"seq": 1e10}, Reason.BAD_ENVELOPE, "/seq"),
        (sample(ts=NOW) | {"seq": True}, Reason.BAD_ENVELOPE, "/seq"),
        (sample(ts=NOW) | {"seq": "1"}, Reason.BAD_ENVELOPE, "/seq"),
        (sample(ts="2026-11-22T08:00:00"), Reason.BAD_TIMESTAMP, "/ts is not an RFC 3339"),
        (sample(ts="2032-90-02T12:08:07+01:00"), Reason.BAD_TIMESTAMP, "/ts is no date"),
        (sample() | {"ts": 1.5}, Reason.BAD_TIMESTAMP, "/ts is neither"),
        (sample() | {"ts": True}, Reason.BAD_TIMESTAMP, "/ts is neither"),
        (sample() | {"ts": 10**17}, Reason.BAD_TIMESTAMP, "/ts is outside"),
        (sample(ts=NOW - timedelta(days=30, seconds=1)), Reason.TOO_OLD, "/ts"),
        (sample(ts=0), Reason.TOO_OLD, "/ts"),
        (sample(ts=NOW + timedelta(seconds=301)), Reason.CLOCK_AHEAD, "/ts"),
        (bad_sample(ts=NOW, speed_kmh=501), Reason.SCHEMA, "/speed_kmh is refused (range)"),
        (bad_sample(ts=NOW, speed_kmh="s3cr3t"), Reason.SCHEMA, "/speed_kmh is refused (type)"),
        (sample(ts=NOW, trip_id=["\0"]), Reason.REFUSED_BY_STORE, "/trip_id/0 holds U+0000"),
        (sample(ts=NOW, cabin="a\0b"), Reason.REFUSED_BY_STORE, "/cabin holds U+0000"),
        (sample(ts=NOW, **{"a\0b": 1}), Reason.REFUSED_BY_STORE, " holds U+0000"),
        (sample(ts=NOW, motors=[{"no": 1, "x": ["\0"]}]), Reason.REFUSED_BY_STORE, "/motors/0/x/0"),
    ],
)
def test_what_is_wrong_with_a_sample_has_its_reason(
    payload: Any, reason: Reason, detail: str
) -> None:
    found = rejected(payload)
    assert (found.reason, found.device, found.stream) == (reason, "V1", "nev")
    assert found.detail.startswith(detail)
    assert "s3cr3t" not in found.detail
    own = payload[0] if isinstance(payload, list) else payload
    assert orjson.loads(found.payload) == own


@pytest.mark.parametrize("edge", [timedelta(days=-30), timedelta(seconds=300), timedelta()])
def test_the_limits_of_age_belong_to_what_is_allowed(edge: timedelta) -> None:
    assert row(sample(1, NOW + edge))["ts"] == NOW + edge


@pytest.mark.parametrize(
    ("topic", "reason", "device", "name"),
    [
        ("other/topic", Reason.BAD_TOPIC, None, None),
        ("iov/v1/V1/envelope", Reason.UNKNOWN_STREAM, "V1", "envelope"),
    ],
)
def test_a_message_that_belongs_nowhere_is_kept_as_far_as_it_can_be_read(
    topic: str, reason: Reason, device: str | None, name: str | None
) -> None:
    for payload, kept, how in (
        (b'{"x": 1}', b'{"x": 1}', KeptAs.CLEAN),
        (b"raw", digest_of(b"raw"), KeptAs.DIGEST),
    ):
        checked = CHECKER.check(delivery(payload, topic))
        assert checked.stream == "other"
        (found,) = checked.outcomes
        assert found == Rejected("other", name, device, reason, found.detail, kept, how)  # type: ignore[union-attr]  # it is a Rejected, so equal to one


def digest_of(payload: bytes) -> bytes:
    """What is kept of a message that cannot be taken apart."""
    return orjson.dumps({"bytes": len(payload), "sha256": sha256(payload).hexdigest()})


HIDDEN = b'{"heart_rate": 77}'


@pytest.mark.parametrize(
    "sent",
    [
        b"##" + HIDDEN, b"x" + HIDDEN, bz2.compress(HIDDEN),
        lzma.compress(HIDDEN), base64.b64encode(HIDDEN), gzip.compress(HIDDEN, mtime=0)[:-1],
        zlib.compress(HIDDEN, wbits=-15), HIDDEN[:-1], HIDDEN.decode().encode("utf-16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("topic", ["iov/v1/V1/cockpit", "iov/v1/V1/nev", "iov/v1/V1/none", "a/b"])
def test_what_cannot_be_taken_apart_is_kept_as_its_size_and_digest(sent: bytes, topic: str) -> None:
    (found,) = CHECKER.check(delivery(sent, topic, at=NOW)).outcomes
    assert isinstance(found, Rejected)
    assert found.payload == digest_of(sent)
    keeping = Checker.of(CATALOGUE, Settings(dead_letter_unreadable="payload"))
    (kept,) = keeping.check(delivery(sent, topic, at=NOW)).outcomes
    assert isinstance(kept, Rejected)
    assert kept.payload == sent


def too_many(**more: Any) -> dict[str, Any]:
    """A sample of more members than one may have."""
    return sample(1, NOW) | {f"k{n:x}": 0 for n in range(55_000)} | more


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({}, "all"),
        ({"Heart-Rate": 77}, "digest"),
        ({"é": 1}, "all"),
        ({"é": 1, "owner": [{"name": "x"}]}, "digest"),
        ({"y": [{"heart\trate": 77}]}, "digest"),
    ],
)
def test_of_a_sample_too_large_to_be_looked_through_no_private_field_is_kept(
    more: dict[str, Any], kept: str
) -> None:
    sent = too_many(**more)
    payload = gzip.compress(orjson.dumps([sent, sample(2, NOW)]))
    message = delivery(payload, "iov/v1/V1/cockpit", encoding="gzip", at=NOW)
    found = CHECKER.check(message).outcomes[0]
    assert isinstance(found, Rejected)
    assert found.reason is Reason.TOO_LARGE
    assert found.detail.startswith("more than 100000 values in one sample: about ")
    text = orjson.dumps(sent)
    assert found.payload == (text if kept == "all" else digest_of(text))
    keeping = Checker.of(CATALOGUE, Settings(dead_letter_unreadable="payload"))
    as_it_came = keeping.check(message).outcomes[0]
    assert isinstance(as_it_came, Rejected)
    assert as_it_came.payload == text


@pytest.mark.parametrize(
    "name", ["n" * 1_001, '"' * 1_001, "\\" * 1_001, "é" * 1_001, "a" * 900 + '"' + "b" * 101]
)
def test_a_name_that_is_too_long_for_a_pointer_is_told(name: str) -> None:
    nested: list[dict[str, Any]] = [{name: 1}, {"x": [{name: {}}]}]
    for inner in nested:
        for texts in (1, 40):
            sent = sample(1, NOW) | {"fill": ["z" * 900] * texts} | inner
            (found,) = CHECKER.check(delivery(sent, "iov/v1/V1/nev", at=NOW)).outcomes
            told = getattr(found, "detail", "") == "a name of more than 1000 characters"
            assert told is (texts > 1)


def test_a_derived_seq_tells_nothing_of_what_is_never_stored() -> None:
    seqs = set()
    for rate in range(60, 180, 40):
        body = {"ts": NOW.isoformat(), "event": "dms_warning", "heart_rate": rate}
        (found,) = CHECKER.check(delivery(body, "iov/v1/V1/cockpit", at=NOW)).outcomes
        seqs.add(column(found, CATALOGUE, "seq") if isinstance(found, Row) else None)
    assert len(seqs) == 1
    assert None not in seqs


@pytest.mark.parametrize("topic", ["other/topic", "iov/v1/V1/what", "iov/v1/V1/nev"])
def test_too_large_comes_before_everything(topic: str) -> None:
    assert rejected(b"x" * 262_145, topic).reason is Reason.TOO_LARGE


def test_one_bad_sample_harms_no_other_in_its_message() -> None:
    batch = [sample(1, NOW), bad_sample(2, NOW), 7, sample(3, NOW)]
    kinds = [type(outcome) for outcome in outcomes(batch)]
    assert kinds == [Row, Rejected, Rejected, Row]
    assert [o.position for o in outcomes(batch) if isinstance(o, Row)] == [0, 3]


@pytest.mark.parametrize(
    "payload",
    [
        b'{"ts":"2026-11-22T08:00:00Z","x":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"ts":"bad","x":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"ts":"2026-11-22T08:00:00Z","motors":[{"x":' + b"[" * 300 + b"]" * 300 + b"}]}",
        b"[" * 900 + b"]" * 900,
    ],
)
def test_too_deep_is_bad_json(payload: bytes) -> None:
    found = rejected(payload)
    assert (found.reason, found.payload) == (Reason.BAD_JSON, payload)


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "microseconds", "nanoseconds"])
@pytest.mark.parametrize("write", [int, float])
def test_a_time_in_another_unit_is_refused_and_the_unit_named(unit: str, write: Any) -> None:
    in_unit = {"seconds": 1, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}[unit]
    payload = sample() | {"ts": write(NOW.timestamp() * in_unit)}
    if unit == "milliseconds":
        assert row(payload)["ts"] == NOW
    else:
        found = rejected(payload)
        assert (found.reason, found.detail) == (
            Reason.BAD_TIMESTAMP,
            f"/ts looks like Unix {unit}; a number is milliseconds",
        )


def test_fractions_of_a_second_and_a_number_as_text_are_named_too() -> None:
    fraction = rejected(sample() | {"ts": NOW.timestamp() + 0.25})
    assert fraction.detail == "/ts looks like Unix seconds; a number is milliseconds"
    text = rejected(sample() | {"ts": str(int(NOW.timestamp()))})
    assert text.detail == "/ts is a number written as text"


@pytest.mark.parametrize(
    "written", ["1795334400000", "1.7953344e12", "17953344e5", "1795334400000.0"]
)
def test_an_integral_number_is_an_integer_however_it_is_written(written: str) -> None:
    assert NOW.timestamp() == 1_795_334_400
    found = row(f'{{"ts": {written}, "seq": 1.2e1, "gear": 3.0, "odometer_km": 1}}'.encode())
    assert (found["ts"], found["seq"]) == (NOW, 12)


def test_a_value_that_is_no_number_costs_its_field_and_its_batch_nothing() -> None:
    good, bad = (
        row(sample(1, NOW)),
        b'[%b, {"ts": "2026-11-22T08:00:00+0000", "seq": 2, "speed_kmh": NaN, "soc_pct": 5}]',
    )
    outcomes_ = outcomes(bad % orjson.dumps(sample(1, NOW)))
    assert [type(one) for one in outcomes_] == [Row, Row]
    first, second = (
        every_column(CATALOGUE["nev"], one.record, one.present)
        for one in outcomes_
        if isinstance(one, Row)
    )
    assert first == good
    assert (second["ts"], second["speed_kmh"], second["soc_pct"]) == (NOW, None, 5)
    assert orjson.loads(second["quality"]) == {"/speed_kmh": "invalid"}
    assert orjson.loads(second["extra"]) == {"refused": {"/speed_kmh": "NaN"}}


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_what_must_never_be_stored_is_found_in_a_payload_packed_without_a_mark(pack: Any) -> None:
    (found,) = CHECKER.check(delivery(pack(HIDDEN), "iov/v1/V1/nev", at=NOW)).outcomes
    assert isinstance(found, Rejected)
    assert found.payload == b"{}"


def test_milliseconds_are_exact() -> None:
    assert instant(1_793_520_000_123) == datetime(2026, 11, 1, 8, 0, 0, 123_000, tzinfo=UTC)
    assert isinstance(instant(-(10**15)), Defect)


def test_a_missing_seq_is_derived_as_the_contract_says() -> None:
    found = {"ts": "2026-11-22T08:00:00Z", "soc_pct": 71, "resend": True, "sent_at": "x"}
    text = b'{"soc_pct":71,"ts":"2026-11-22T08:00:00Z"}'
    assert derived_seq(found) == -1 - zlib.crc32(text)


@given(st.dictionaries(st.text(max_size=5), st.integers(-9, 9) | st.text(max_size=5), max_size=5))
def test_a_redelivery_derives_the_same_seq_whatever_its_order(fields: dict[str, Any]) -> None:
    again = dict(reversed(fields.items())) | {"resend": True, "sent_at": "later"}
    fields = {k: v for k, v in fields.items() if k not in {"resend", "sent_at"}}
    assert derived_seq(again) == derived_seq(fields)
    assert -4_294_967_296 <= derived_seq(fields) <= -1


def with_never_stored() -> Catalogue:
    schema = CATALOGUE["nev"].schema | {"x-never-stored": ["plate", "heart_rate_bpm"]}
    return {"nev": stream("nev", schema)}


def test_what_must_never_be_stored_is_removed_from_extra_and_dead_letters() -> None:
    checker = Checker.of(with_never_stored(), Settings(refused_fields="reject"))
    private = {"plate": "A 1", "deep": [{"heart_rate_bpm": 61, "kept": 1}]}
    (good,) = checker.check(delivery(sample(1, NOW, **private), at=NOW)).outcomes
    assert isinstance(good, Row)
    assert orjson.loads(column(good, CATALOGUE, "extra")) == {"deep": [{"kept": 1}]}
    (bad,) = checker.check(delivery(sample(1, NOW, soc_pct="x", **private), at=NOW)).outcomes
    assert isinstance(bad, Rejected)
    assert b"plate" not in bad.payload
    assert b"heart" not in bad.payload
    assert b"plate" not in checker.samples_json(delivery(sample(1, NOW, **private), at=NOW), [0])[0]


def test_what_is_hashed_in_its_column_is_hashed_in_a_dead_letter_too() -> None:
    found = rejected({"ts": NOW.isoformat(), "event": "?", "iccid": "1"}, "iov/v1/V1/session")
    digest = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert orjson.loads(found.payload)["iccid"] == digest
    found = rejected({"ts": NOW.isoformat(), "event": "?", "iccid": 8986}, "iov/v1/V1/session")
    assert orjson.loads(found.payload)["iccid"] is None
    helper = {"remote_assist": {"operator_hash": "1", "active": None}}
    found = rejected([{"ts": "?", **helper}], "iov/v1/V1/mobility")
    assert orjson.loads(found.payload)["remote_assist"]["operator_hash"] == digest


@pytest.mark.parametrize(
    ("topic", "more"),
    [
        ("iov/v1/dev!/cockpit", {}),
        ("iov/v1/dev1/cockpit2", {}),
        ("iov/v1/dev1/gbt32960", {}),
        ("iov/v1/dev1/cockpit", {"content_type": "application/vnd.gbt32960"}),
        ("iov/v1/dev1/cockpit2", {"encoding": "gzip"}),
    ],
)
def test_what_must_never_be_stored_is_in_no_dead_letter_whatever_its_topic(
    topic: str, more: dict[str, str]
) -> None:
    payload = orjson.dumps({"ts": 1, "event": "dms_warning", "heart_rate": 77, "kept": 1})
    sent = gzip.compress(payload) if more.get("encoding") else payload
    found = rejected(sent, topic, **more)
    assert orjson.loads(found.payload) == {"ts": 1, "event": "dms_warning", "kept": 1}
    harmless = orjson.dumps({"ts": 1, "speed": 3})
    assert rejected(harmless, topic, **more | {"encoding": None}).payload == harmless


def test_a_message_that_cannot_be_split_keeps_digests_of_what_is_hashed() -> None:
    many = [{"ts": 1, "event": "login", "iccid": "8986"}] * 1_001
    found = rejected(many, "iov/v1/V1/session")
    assert found.reason is Reason.TOO_LARGE
    assert b"8986" not in found.payload.replace(
        orjson.loads(found.payload)[0]["iccid"].encode(), b""
    )


def test_too_deep_is_bad_json_on_every_stream() -> None:
    deep = b'{"ts":%d,"event":"boot","seq":1,"a":%s1%s}'
    for levels in (300, 500, 900):
        text = deep % (int(NOW.timestamp() * 1000), b"[" * levels, b"]" * levels)
        for name in ("nev", "cockpit"):
            assert rejected(text, f"iov/v1/V1/{name}").reason is Reason.BAD_JSON


def test_limits_of_the_settings_hold() -> None:
    checker = Checker.of(CATALOGUE, Settings(max_samples=1, max_age_days=1, max_ahead_s=0))
    found = checker.check(delivery([sample(1, NOW), sample(2, NOW)], at=NOW)).outcomes
    assert [o.reason for o in found if isinstance(o, Rejected)] == [Reason.TOO_LARGE]
    found = checker.check(delivery(sample(1, NOW - timedelta(days=2)), at=NOW)).outcomes
    assert [o.reason for o in found if isinstance(o, Rejected)] == [Reason.TOO_OLD]


def test_an_internal_error_keeps_the_whole_message() -> None:
    checked = CHECKER.internal_error(delivery(b"[1,2]"))
    assert checked.stream == "nev"
    assert checked.outcomes == [
        Rejected(
            "nev",
            "nev",
            "V1",
            Reason.INTERNAL_ERROR,
            "an error in the service; see its log",
            b"[1,2]",
        )
    ]
    assert CHECKER.internal_error(delivery(b"", "what")).stream == "other"


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
names = st.sampled_from(["ts", "seq", "resend", "quality", "speed_kmh", "motors", "location", "x"])


@given(st.dictionaries(names, json_values, max_size=8) | json_values)
def test_whatever_is_sent_every_message_ends_in_outcomes(payload: Any) -> None:
    for topic in ("iov/v1/V1/nev", "iov/v1/V1/session"):
        found = CHECKER.check(delivery(payload, topic, at=NOW)).outcomes
        assert len(found) == (len(payload) if isinstance(payload, list) and payload else 1)


def test_a_message_that_cannot_be_split_holds_nothing_private_either() -> None:
    checker = Checker.of(with_never_stored(), Settings(max_samples=1))
    private = [sample(1, NOW, plate="A 1"), sample(2, NOW, plate="A 1")]
    (found,) = checker.check(delivery(private, at=NOW)).outcomes
    assert isinstance(found, Rejected)
    assert found.reason is Reason.TOO_LARGE
    assert b"soc_pct" in found.payload
    assert b"plate" not in found.payload
    (found,) = checker.check(delivery(b'{"plate":"A 1"', at=NOW)).outcomes
    assert isinstance(found, Rejected)
    assert (found.reason, found.payload) == (Reason.BAD_JSON, digest_of(b'{"plate":"A 1"'))
    (found,) = checker.internal_error(delivery({"plate": "A 1"}, at=NOW)).outcomes
    assert isinstance(found, Rejected)
    assert found.payload == b"{}"


def test_names_a_vehicle_makes_up_are_not_remembered_however_long() -> None:
    never_stored = NeverStored(["heart_rate"])
    for number in range(50):
        name = f"{number}" * 100_000
        assert never_stored.without({name: 1, "heartRate": 2}) == {name: 1}
    long = "heart_rate" + "_" * 200
    assert never_stored.without({long: 1}) == {}
    assert never_stored._bans.cache_info().currsize == 1
