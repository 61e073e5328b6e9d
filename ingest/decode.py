"""Steps from a payload to its samples: inflate, parse, split. Pure, with output of bounded size.

For a payload that cannot be read, a function returns a `Defect` instead of raising an exception;
the caller rejects the message.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple, Self

import orjson
import zstandard
from msgspec import Struct

from ingest import nearly_json
from ingest.config import Settings
from ingest.model import Defect, Reason

_DEVICE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_LEVELS = 2
_TOPIC = re.compile(rf"iov/v1/({_DEVICE.pattern})/([^/]+)", re.ASCII)
_BRIDGED = re.compile(r".*/" + _TOPIC.pattern, re.ASCII | re.DOTALL)
"""Topic with levels in front, as a bridge or a mount point of the broker adds them.

Any such levels are accepted, also an empty one (a leading `/`), because a worker receives only
topics that match `IOV_MQTT_TOPIC`.
"""
_BACKSLASH = ord("\\")
_MOST_PARTS = 64
"""Number of members of a gzip file or frames of a zstd stream; senders usually write one."""
_ZSTD_SLICE_BYTES = 256
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""Most bytes of memory for reading a zstd frame; see RFC 8878, 3.1.1.1.2.

A frame that needs more is refused.
"""


_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""First bytes of RFC 1952, 2.3.1 and RFC 8878, 3.1.1."""
_ZLIB = tuple(bytes([0x78, level]) for level in (0x01, 0x5E, 0x9C, 0xDA))
"""First bytes of RFC 1950, 2.2: a window of 32 KiB, without a dictionary, four levels."""
_STRING = re.compile(rb'"[^"]*"')
_MOST_STRINGS = 100_000
"""Number of strings that are removed before the second count; removing them takes 20 ms."""
_NESTED = frozenset({dict, list})
_LONGEST_NAME_CHARACTERS = 1_000
"""Number of characters that the name of a member may have.

A name of four megabytes took 97 MB as part of a JSON pointer.
"""
_SHORT_STRINGS = re.compile(
    rb'[^"]{0,%(most)d}+(?:"[^"]{0,%(most)d}+)*+' % {b"most": _LONGEST_NAME_CHARACTERS}
)
"""Pattern of a JSON text with at most that many characters between one quote and the next.

Matching takes 3 ms per megabyte; checking each name takes 50 ms.
"""
_WEIGHTS = {b",": 1, b":": 1, b"[": 4, b"{": 4}
_MOST_WEIGHT = max(_WEIGHTS.values())


class MessageLimits(NamedTuple):
    """Limits of one message, before and after decoding."""

    payload_bytes: int
    inflated_bytes: int
    samples: int
    values: int
    """Number of values, weighted by about the time that each takes.

    A value counts as 1 in an array, as 2 in an object; if it is itself an array or object, 4 more.
    """
    sample_values: int
    """The same number for one sample, whose check takes a kilobyte for each object (measured)."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits from the settings."""
        return cls(
            settings.max_payload_bytes,
            settings.max_inflated_bytes,
            settings.max_samples,
            settings.max_values,
            settings.max_sample_values,
        )


class Decoded(Struct):
    """Samples of one message, not checked yet."""

    samples: list[Any]
    size_bytes: int
    """Number of bytes of the JSON text, after inflating."""
    may_hold_nul: bool
    """True if the text has the escape of U+0000, a character that PostgreSQL cannot store."""


def parse_topic(topic: str) -> tuple[str, str] | None:
    """Return (device, stream) of a topic `[prefix/]iov/v1/{device}/{stream}`; otherwise None."""
    match = _TOPIC.fullmatch(topic) or _BRIDGED.fullmatch(topic)
    return (match[1], match[2]) if match else None


def filter_fault(topic_filter: str, streams: Collection[str]) -> str | None:
    """Return why no topic that a filter matches (MQTT 5, 4.7) can be taken; None if some can."""
    *levels, last = topic_filter.split("/")
    if last == "#":
        return None  # it stands for any levels, so also for iov/v1/{device}/{stream}
    wanted = (re.compile("iov"), re.compile("v1"), _DEVICE)
    fits = len(levels) >= len(wanted) and all(
        level == "+" or form.fullmatch(level)
        for level, form in zip(levels[-len(wanted) :], wanted, strict=True)
    )
    if not fits:
        return "matches no topic [prefix/]iov/v1/{device}/{stream}"
    if last != "+" and last not in streams:
        return "matches one stream only, and that has no schema"
    return None


def topic_fault(topic: str) -> Defect:
    """Return the defect of a topic: the part that does not fit `iov/v1/{device}/{stream}`."""
    before, found, after = topic.rpartition("iov/v1/")
    levels = after.split("/")
    if not found or (before and not before.endswith("/")):
        part = "no levels iov/v1 in it"
    elif len(levels) != _LEVELS:
        part = f"after iov/v1 come {len(levels)} of the two levels device and stream"
    elif not _DEVICE.fullmatch(levels[0]):
        part = "the device is not [A-Za-z0-9_-]{1,64}"
    else:
        part = "the stream is empty"
    return Defect(Reason.BAD_TOPIC, f"not iov/v1/{{device}}/{{stream}}: {part}")


def unpack(payload: bytes, encoding: str | None, limits: MessageLimits) -> bytes | Defect:
    """Return the payload inflated; a Defect if it is broken or too large.

    `encoding` is its `content-encoding`. Without one, its first bytes tell.
    """
    if len(payload) > limits.payload_bytes:
        return Defect(Reason.TOO_LARGE, f"{len(payload)} bytes, at most {limits.payload_bytes}")
    if encoding is None:
        encoding = _packed_as(payload)
    return payload if encoding is None else inflate(payload, encoding, limits.inflated_bytes)


def decode(payload: bytes, encoding: str | None, limits: MessageLimits) -> Decoded | Defect:
    """Return the samples of a payload: the object itself, or each item of an array."""
    if encoding is not None or len(payload) > limits.payload_bytes:
        unpacked = unpack(payload, encoding, limits)
        if isinstance(unpacked, Defect):
            return unpacked
        payload = unpacked
    large = len(payload) * _MOST_WEIGHT > limits.values
    if large and (number := values(payload, limits.values)):
        return Defect(Reason.TOO_LARGE, f"more than {limits.values} values: about {number}")
    try:
        document = orjson.loads(payload)
    except orjson.JSONDecodeError as exc:
        if encoding is None and (packed := _packed_as(payload)):
            return decode(payload, packed, limits)
        document = nearly_json.read(payload, at=exc.pos, most=limits.samples)
    # Looking for the backslash by its number takes 0.04 µs, for all six bytes 0.4 µs.
    may_hold_nul = _BACKSLASH in payload and b"\\u0000" in payload
    if type(document) is dict:
        return Decoded([document], len(payload), may_hold_nul)
    fault = _no_samples(document, limits)
    return fault or Decoded(document, len(payload), may_hold_nul)


def _no_samples(document: Any, limits: MessageLimits) -> Defect | None:
    """Return why a document that is no object is no array of samples either."""
    if isinstance(document, Defect):
        return document
    if not isinstance(document, list):
        return Defect(Reason.BAD_ENVELOPE, "neither an object nor an array of objects")
    if not document:
        return Defect(Reason.BAD_ENVELOPE, "an array without samples")
    if len(document) > limits.samples:
        return Defect(Reason.TOO_LARGE, f"{len(document)} samples, at most {limits.samples}")
    return None


def most_bytes(values: int) -> int:
    """Return the size up to which a JSON text cannot have more than this many values."""
    return values // _MOST_WEIGHT


def too_much(sample: Any, limits: MessageLimits) -> Defect | None:
    """Return the defect of a sample that is too large; None if it is not too large."""
    text = orjson.dumps(sample)
    if not _surely_short_names(text) and _has_long_name(sample):
        told = f"a name of more than {_LONGEST_NAME_CHARACTERS} characters"
        return Defect(Reason.TOO_LARGE, told)
    number = values(text, limits.sample_values)
    if not number:
        return None
    told = f"more than {limits.sample_values} values in one sample: about {number}"
    return Defect(Reason.TOO_LARGE, told)


def _surely_short_names(text: bytes) -> bool:
    return b'\\"' not in text and _SHORT_STRINGS.fullmatch(text) is not None


def _has_long_name(sample: Any) -> bool:
    """Return whether a member's name is too long for a JSON pointer to it."""
    nodes, most = [sample], _LONGEST_NAME_CHARACTERS
    while nodes:
        node = nodes.pop()
        if type(node) is dict:
            if node and max(map(len, node)) > most:
                return True
            nodes += [value for value in node.values() if type(value) in _NESTED]
        elif type(node) is list and not _NESTED.isdisjoint(map(type, node)):
            nodes += node
    return False


def values(text: bytes, most: int) -> int:
    """Return the weighted number of values in a JSON text if it is above `most`; otherwise 0.

    The size in bytes says little about this number: an array of empty objects takes thirty times
    the size of its text in memory, but only a thousandth of that size when it is compressed.
    """
    number = _count(text)
    if number > most:
        # Count again without the strings.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        number = _count(_STRING.sub(b"", text, _MOST_STRINGS))
    return number if number > most else 0


def _count(text: bytes) -> int:
    return sum(text.count(mark) * weight for mark, weight in _WEIGHTS.items())


def too_deep(document: Any) -> bool:
    """Return whether a document that orjson has read is nested too deep for orjson to write."""
    try:
        orjson.dumps(document)
    except orjson.JSONEncodeError:  # nothing else can be wrong with what orjson itself made
        return True
    return False


def inflate(payload: bytes, encoding: str, limit_bytes: int) -> bytes | Defect:
    """Return the payload without its `content-encoding`; a Defect if it exceeds `limit_bytes`."""
    try:
        match encoding.lower():
            case "identity":
                return payload
            case "gzip" | "x-gzip":
                inflated = _gunzip(payload, limit_bytes)
            case "deflate":
                inflated = _inflate_one(payload, _deflate_bits(payload), limit_bytes)[0]
            case "zstd":
                inflated = _unzstd(payload, limit_bytes)
            case _:
                return Defect(Reason.BAD_ENCODING, "unknown content-encoding")
    except (zlib.error, zstandard.ZstdError, ValueError):
        return Defect(Reason.BAD_ENCODING, f"broken or truncated {encoding.lower()}")
    if len(inflated) > limit_bytes:
        return Defect(Reason.BAD_ENCODING, f"more than {limit_bytes} bytes once inflated")
    return inflated


def _packed_as(payload: bytes) -> str | None:
    """Return the encoding that the first bytes of a payload tell; None if they tell none.

    Neither JSON nor a GB/T 32960 frame begins like this. A raw deflate stream has no such mark.
    """
    if payload.startswith(_GZIP):
        return "gzip"
    if payload.startswith(_ZSTD):
        return "zstd"
    return "deflate" if payload.startswith(_ZLIB) else None


def _gunzip(payload: bytes, limit_bytes: int) -> bytes:
    """Return all members of a gzip file (RFC 1952, 2.2), cut off just above the limit."""
    inflated, parts = b"", 0
    while payload and len(inflated) <= limit_bytes:
        parts += 1
        if parts > _MOST_PARTS:
            raise ValueError("too many members")
        member, payload = _inflate_one(payload, 31, limit_bytes - len(inflated))
        inflated += member
    return inflated


def _inflate_one(payload: bytes, window_bits: int, limit_bytes: int) -> tuple[bytes, bytes]:
    """Return one deflate stream, up to one byte above the limit, and the bytes after it."""
    inflater = zlib.decompressobj(window_bits)
    inflated = inflater.decompress(payload, limit_bytes + 1)
    if not inflater.eof and len(inflated) <= limit_bytes:
        raise ValueError("truncated")
    return inflated, inflater.unused_data


def _deflate_bits(payload: bytes) -> int:
    """Return the window bits of zlib's format (RFC 9110, 8.4.1.2), or of a raw deflate stream.

    Many senders send the raw stream.
    """
    wrapped = (
        len(payload) > 1
        and payload[0] & 0x0F == zlib.DEFLATED
        and int.from_bytes(payload[:2], "big") % 31 == 0
    )
    return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS


def _unzstd(payload: bytes, limit_bytes: int) -> bytes:
    """Return all frames of a zstd stream (RFC 8878, 3.1), cut off a little above the limit.

    The library has no limit for its output per call, so it is fed in slices. One slice yields at
    most 8 MiB (a block of 4 bytes stands for up to 128 KiB).
    """
    inflated, parts = bytearray(), 0
    while payload:
        parts += 1
        if parts > _MOST_PARTS:
            raise ValueError("too many frames")
        frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        end = 0
        while not frame.eof and end < len(payload):
            inflated += frame.decompress(payload[end : end + _ZSTD_SLICE_BYTES])
            end += _ZSTD_SLICE_BYTES
            if len(inflated) > limit_bytes:
                return bytes(inflated)
        if not frame.eof:
            raise ValueError("truncated")
        payload = frame.unused_data + payload[end:]
    return bytes(inflated)
