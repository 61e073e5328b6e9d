from __future__ import annotations

import gzip
import itertools
import resource
import time
import zlib
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ingest.config import Settings
from ingest.decode import (
    Decoded,
    MessageLimits,
    decode,
    filter_fault,
    inflate,
    parse_topic,
    too_deep,
    topic_fault,
    values,
)
from ingest.model import Defect, Reason

DEFAULTS = MessageLimits.of(Settings())
LIMITS = DEFAULTS._replace(payload_bytes=1_000, inflated_bytes=4_000, samples=3)


def reason(outcome: Decoded | Defect) -> Reason:
    assert isinstance(outcome, Defect)
    return outcome.reason


@pytest.mark.parametrize(
    ("topic", "found"),
    [
        ("iov/v1/LSVAA4182E2184847/nev", ("LSVAA4182E2184847", "nev")),
        ("region-7/iov/v1/V1/nev", ("V1", "nev")),
        ("a/b/iov/v1/V1/nev", ("V1", "nev")),
        ("/iov/v1/V1/nev", ("V1", "nev")),
        ("//iov/v1/V1/nev", ("V1", "nev")),
        ("xiov/v1/V1/nev", None),
        ("iov/v1/rsu-7_b/ad-state", ("rsu-7_b", "ad-state")),
        ("iov/v1/V/no such", ("V", "no such")),
        ("iov/v1/" + "v" * 64 + "/nev", ("v" * 64, "nev")),
        ("iov/v1/" + "v" * 65 + "/nev", None),
        ("iov/v1/a b/nev", None),
        ("iov/v1/ä/nev", None),
        ("iov/v2/V/nev", None),
        ("iov/v1/V/nev/x", None),
        ("iov/v1//nev", None),
        ("iov/v1/V/", None),
        ("iov/v1/V/nev\n", ("V", "nev\n")),
    ],
)
def test_a_topic_is_device_and_stream_or_nothing(topic: str, found: tuple[str, str] | None) -> None:
    assert parse_topic(topic) == found


def test_an_object_is_one_sample_and_an_array_one_for_each_item() -> None:
    assert decode(b'{"ts":1}', None, LIMITS) == Decoded([{"ts": 1}], 8, may_hold_nul=False)
    assert decode(b'[{"ts":1},7]', None, LIMITS) == Decoded([{"ts": 1}, 7], 12, may_hold_nul=False)


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        (b"", Reason.BAD_JSON),
        (b"{", Reason.BAD_JSON),
        (b'"\xff"', Reason.BAD_JSON),
        (b'{"a":"\\ud800"}', Reason.BAD_JSON),
        (b'{"a":NaNa}', Reason.BAD_JSON),
        (b'{"a":1e400x}', Reason.BAD_JSON),
        (b"[" * 900, Reason.BAD_JSON),
        (b"7", Reason.BAD_ENVELOPE),
        (b"null", Reason.BAD_ENVELOPE),
        (b"[]", Reason.BAD_ENVELOPE),
        (b"[1,2,3,4]", Reason.TOO_LARGE),
        (b" " * 1_001, Reason.TOO_LARGE),
    ],
)
def test_what_cannot_be_split_has_its_reason(payload: bytes, wanted: Reason) -> None:
    assert reason(decode(payload, None, LIMITS)) is wanted


def test_the_size_is_looked_at_before_anything_else() -> None:
    assert reason(decode(b"\xff" * 1_001, "no such encoding", LIMITS)) is Reason.TOO_LARGE


def test_the_detail_never_quotes_the_payload() -> None:
    fault = decode(b'{"secret": s3cr3t}', None, LIMITS)
    assert isinstance(fault, Defect)
    assert "s3cr3t" not in fault.detail


def test_an_escaped_nul_is_noticed_and_an_escaped_backslash_does_no_harm() -> None:
    held = decode(b'{"a":"\\u0000"}', None, LIMITS)
    assert isinstance(held, Decoded)
    assert held.may_hold_nul
    other = decode(b'{"a":"\\n"}', None, LIMITS)
    assert isinstance(other, Decoded)
    assert not other.may_hold_nul


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZIP": lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:]),
    "deflate": zlib.compress,
    "Deflate": bare_deflate,
    "zstd": zstandard.ZstdCompressor().compress,
    "ZSTD": lambda data: (
        zstandard.ZstdCompressor(write_content_size=False).compress(data[:5])
        + zstandard.ZstdCompressor().compress(data[5:])
    ),
    "identity": lambda data: data,
}


@pytest.mark.parametrize("encoding", ENCODERS)
@given(data=st.binary(max_size=4_000))
def test_every_encoding_comes_back_as_it_was(encoding: str, data: bytes) -> None:
    assert inflate(ENCODERS[encoding](data), encoding, 4_000) == data


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_truncated_payload_is_bad_encoding(encoding: str, cut: int) -> None:
    packed = ENCODERS[encoding](orjson.dumps({"ts": 1, "text": "some text that is packed"}))
    assert reason(decode(packed[:-cut], encoding, LIMITS)) is Reason.BAD_ENCODING


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br", ""])
def test_what_is_not_so_encoded_or_unknown_is_bad_encoding(encoding: str) -> None:
    assert reason(decode(b'{"ts":1}', encoding, LIMITS)) is Reason.BAD_ENCODING


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_exactly_the_limit_passes_and_one_byte_more_does_not(encoding: str) -> None:
    assert inflate(ENCODERS[encoding](b"1" * 4_000), encoding, 4_000) == b"1" * 4_000
    assert inflate(ENCODERS[encoding](b"1" * 4_001), encoding, 4_000) == Defect(
        Reason.BAD_ENCODING, "more than 4000 bytes once inflated"
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_a_payload_bomb_is_refused_without_being_inflated(encoding: str) -> None:
    bomb = ENCODERS[encoding](bytes(250_000_000))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.process_time()
    assert reason(decode(bomb, encoding, DEFAULTS)) is Reason.BAD_ENCODING
    # Inflated whole it would take 250 MB and, with gzip, some 400 ms.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 60_000
    assert time.process_time() - started_s < 0.2


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_payload_in_thousands_of_parts_is_refused_at_once(encoding: str) -> None:
    started_s = time.process_time()
    many = ENCODERS[encoding](b"") * 10_000
    assert reason(decode(many, encoding, DEFAULTS)) is Reason.BAD_ENCODING
    assert time.process_time() - started_s < 0.1


def test_depth_is_measured_where_orjson_stops_writing() -> None:
    shallow, deep = orjson.loads("[" * 200 + "]" * 200), orjson.loads("[" * 300 + "]" * 300)
    assert not too_deep(shallow)
    assert too_deep(deep)


@given(st.binary(max_size=300), st.sampled_from([None, "gzip", "deflate", "zstd", "x"]))
def test_no_bytes_whatever_raise(payload: bytes, encoding: str | None) -> None:
    assert isinstance(decode(payload, encoding, LIMITS), Decoded | Defect)


@pytest.mark.parametrize(
    ("element", "fits"),
    [("-9", True), ("{}", False), ("[]", False), ('{"a":1}', False), ('",[{:"', True)],
)
def test_a_message_is_bounded_by_what_it_becomes(element: str, fits: Any) -> None:
    """Brackets in a text are no values."""
    text = f'[{{"x":[{",".join([element] * 50_000)}]}}]'.encode()
    found = decode(text, None, DEFAULTS._replace(payload_bytes=len(text), values=100_000))
    assert isinstance(found, Decoded) is fits
    if isinstance(found, Defect):
        assert found.reason is Reason.TOO_LARGE
        assert found.detail.startswith("more than 100000 values: about ")


def test_escaped_quotes_do_not_hide_values() -> None:
    text = b'{"x":"\\\\","y":["\\"",' + b"{}," * 50_000 + b"1]}"
    assert values(text, 100_000) == 50_000 * 5 + 4 + 4 + 2 + 1 + 1
    assert values(text, 300_000) == 0


@pytest.mark.parametrize(
    ("topic", "part"),
    [
        ("other/topic", "no levels iov/v1 in it"),
        ("iov/v2/V1/nev", "no levels iov/v1 in it"),
        ("siov/v1/V1/nev", "no levels iov/v1 in it"),
        ("iov/v1/V1", "after iov/v1 come 1 of the two levels device and stream"),
        ("iov/v1/V1/nev/more", "after iov/v1 come 3 of the two levels device and stream"),
        ("iov/v1/V 1/nev", "the device is not [A-Za-z0-9_-]{1,64}"),
        ("iov/v1//nev", "the device is not [A-Za-z0-9_-]{1,64}"),
        ("iov/v1/V1/", "the stream is empty"),
    ],
)
def test_a_bad_topic_says_which_part_is_bad(topic: str, part: str) -> None:
    assert parse_topic(topic) is None
    assert topic_fault(topic).detail == f"not iov/v1/{{device}}/{{stream}}: {part}"


def test_every_topic_that_is_none_has_a_bad_part() -> None:
    for topic in map("/".join, itertools.product(("", "iov", "v1", "a", "a b"), repeat=4)):
        assert parse_topic(topic) or topic_fault(topic).detail.count(":") == 1


@pytest.mark.parametrize(
    ("topic", "told"),
    [
        ("#", None),
        ("/iov/v1/+/+", None),
        ("region/+/+/+/+/nev", None),
        ("iov/v1/+/nev/#", None),
        ("iov/v1/V1/gbt32960", None),
        ("iov/v1/+", "matches no topic [prefix/]iov/v1/{device}/{stream}"),
        ("iov/v2/+/+", "matches no topic [prefix/]iov/v1/{device}/{stream}"),
        ("iov/v1/+/+/data", "matches no topic [prefix/]iov/v1/{device}/{stream}"),
        ("iov/v1/my car/nev", "matches no topic [prefix/]iov/v1/{device}/{stream}"),
        ("iov/v1/+/nevv", "matches one stream only, and that has no schema"),
    ],
)
def test_a_filter_that_brings_nothing_says_why(topic: str, told: str | None) -> None:
    assert filter_fault(topic, {"nev", "gbt32960"}) == told
