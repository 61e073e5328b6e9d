from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ingest.config import Settings
from ingest.decode import Decoded, MessageLimits, decode
from ingest.model import Defect, Reason

LIMITS = MessageLimits.of(Settings())
TEXTS = st.text(st.sampled_from('aN"\\\\{} \n\x1e[],:e9-nif/')) | st.sampled_from(
    ["NaN", "-Infinity", "}{", '"NaN', "\\\\", "1e999", "null"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)


def samples(payload: bytes) -> list[Any]:
    found = decode(payload, None, LIMITS)
    assert isinstance(found, Decoded), found
    return found.samples


def refused(payload: bytes) -> str:
    found = decode(payload, None, LIMITS)
    assert isinstance(found, Defect)
    assert found.reason is Reason.BAD_JSON
    return found.detail


def as_kept(value: Any) -> Any:
    """Return a value as JSON can hold it: what is no number becomes a text."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, list):
        return [as_kept(item) for item in value]
    if isinstance(value, dict):
        return {name: as_kept(item) for name, item in value.items()}
    return value


@given(OBJECTS, st.sampled_from([None, 1]))
def test_what_is_no_number_becomes_a_text_and_nothing_else_changes(
    sample: dict[str, Any], indent: int | None
) -> None:
    text = json.dumps(sample, indent=indent).encode()
    assert samples(text) == [as_kept(sample)]


@given(
    st.lists(OBJECTS, min_size=1, max_size=5),
    st.sampled_from(["\n", "\r\n", "", " ", "\n\n"]),
    st.sampled_from(["", "\x1e"]),
    st.sampled_from([None, 1]),
)
def test_objects_one_after_the_other_are_samples_of_one_message(
    all_: list[dict[str, Any]], after: str, before: str, indent: int | None
) -> None:
    text = "".join(before + json.dumps(one, indent=indent) + after for one in all_)
    assert samples(text.encode()) == [as_kept(one) for one in all_]


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        (b'\xef\xbb\xbf{"a": 1}', [{"a": 1}]),
        (b'\xef\xbb\xbf[{"a": 1}, {"a": 2}]\n', [{"a": 1}, {"a": 2}]),
        (b'{"a": 1}\0', [{"a": 1}]),
        (b'{"a": NaN, "b": [Infinity, -Infinity]}', [{"a": "NaN", "b": ["Infinity", "-Infinity"]}]),
        (b'{"a": nan, "b": [inf, -inf, null]}', [{"a": "nan", "b": ["inf", "-inf", None]}]),
        (b'{"a": -1.5e400, "b": 1e+999, "c": 1e9}', [{"a": "-1.5e400", "b": "1e+999", "c": 1e9}]),
        (b'{"a": 1e100, "b": NaN}', [{"a": 1e100, "b": "NaN"}]),
        (b'[{"a": NaN}, {"a": 2}]', [{"a": "NaN"}, {"a": 2}]),
        (b'{"a": 1}\n{"a": NaN}\n\0', [{"a": 1}, {"a": "NaN"}]),
    ],
)  # fmt: skip
def test_what_vehicles_write_is_read(payload: bytes, wanted: list[Any]) -> None:
    assert samples(payload) == wanted


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"", "empty"),
        (b"\0", "not JSON at byte 0"),
        (b'{"a": 1}\0\0', "not JSON at byte 8"),
        (b'{"a": [{"b": 1} {"b": 2}]}', "not JSON at byte 16"),
        (b'{"a": 1}\n{"a": tru}', "object 2 is not JSON at its byte 6"),
        (b'{"a": 5NaN}', "not JSON at byte 7"),
        (b'{"a": 1.2.3e999}', "not JSON at byte 9"),
        (b"{NaN: 1}", "not JSON at byte 1"),
        (b"{Infinity : 1}", "not JSON at byte 1"),
        (b'{"a": 01e400}', "not JSON at byte 6"),
        (b'{"a": 1.e400}', "not JSON at byte 8"),
        (b'{"a": "NaN', "not JSON at byte 10"),
        (b'{"a": 1},{"a": 2}', "not JSON at byte 8"),
    ],
)
def test_what_is_broken_stays_refused(payload: bytes, told: str) -> None:
    assert refused(payload) == told


def test_more_objects_than_samples_allowed_are_too_large() -> None:
    found = decode(b"{}" * 4, None, LIMITS._replace(samples=3))
    assert found == Defect(Reason.TOO_LARGE, "more than 3 objects one after the other")


def test_a_text_that_would_take_long_is_not_tried() -> None:
    text = b'{"a": NaN, "b": "%s"}'
    assert len(samples(gzip.compress(text % (b"x" * 1_000_000)))) == 1
    assert isinstance(decode(gzip.compress(text % (b"x" * 1_100_000)), "gzip", LIMITS), Defect)


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        zstandard.ZstdCompressor().compress,
        *(lambda data, level=level: zlib.compress(data, level) for level in (0, 2, 6, 9)),
    ],
)
def test_a_compressed_payload_without_a_mark_is_recognised(pack: Any) -> None:
    text = orjson.dumps([{"a": n} for n in range(20)])
    assert samples(pack(text)) == orjson.loads(text)
    truncated = decode(pack(text)[:-3], None, LIMITS)
    assert isinstance(truncated, Defect)
    assert truncated.reason is Reason.BAD_ENCODING
