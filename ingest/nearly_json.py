"""Payloads that are nearly one JSON text, as software of vehicles writes them. Pure.

They are read here after orjson has refused them, so other messages pay nothing for it:

- a byte order mark in front, a NUL at the end (the end of a string in C);
- NaN, Infinity, and numbers above the range of a double: each becomes a text, so that a schema that
  wants a number refuses it, and it costs its field;
- several objects one after the other, as JSON lines or as a JSON text sequence (RFC 7464).
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF8
from typing import Any

import orjson

from ingest.model import Defect, Reason

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
# No lookahead inside these: Python 3.11.2 matches it wrongly inside a possessive quantifier.
_NO_NUMBER = re.compile(
    rb'((?:[^"NIniEetf]++|' + _STRING + rb"|null|true|false|[Ee]-\d++)*+)"
    rb"(NaN|nan|Infinity|inf|[Ee]\+?\d++)",
    re.DOTALL,
)
"""Pattern of a text up to and with the next NaN, Infinity, or positive exponent."""
_NUMBER = re.compile(rb"-?(?:0|[1-9]\d*)(?:\.\d+)?[Ee]\+?\d+")
"""Pattern of a number with a positive exponent (RFC 8259, 6)."""
_COLON = re.compile(rb"\s*:")
_MOST_NO_NUMBERS = 10_000
"""Number of values of one message that may become texts; each takes a microsecond."""
_MOST_BYTES = 1_048_576
"""Size of a text that is read here; the most hostile one takes 0.1 s (measured)."""
_OBJECT = re.compile(rb'(?:[^"}]++|' + _STRING + rb")*+\}[}\s\x1e]*+", re.DOTALL)
"""Pattern of a text up to and with the next braces that close, and what may be between objects.

If the next byte opens a brace, one object ends and another begins: no JSON text has two braces like
this, except inside a string.
"""
_MOST_BRACES = 100_000
"""Number of such places that are looked at in one message."""
_BETWEEN = b"\x1e \t\r\n"
"""Bytes between two objects: white space, and the record separator of RFC 7464, 2.2."""


def read(payload: bytes, *, at: int, most: int) -> Any | Defect:
    """Return the document of a payload that orjson refused at byte `at`, or a Defect.

    Several objects, at most `most`, become a list, as if the vehicle had sent an array.
    """
    if not payload:
        return Defect(Reason.BAD_JSON, "empty")
    refused = Defect(Reason.BAD_JSON, f"not JSON at byte {at}")
    if len(payload) > _MOST_BYTES:
        return refused
    text = payload.removeprefix(BOM_UTF8).removesuffix(b"\0").strip(_BETWEEN)
    text = _with_texts_for_numbers(text)
    parts = _parts(text, most)
    if len(parts) > most:
        return Defect(Reason.TOO_LARGE, f"more than {most} objects one after the other")
    documents = []
    for part in parts:
        try:
            documents.append(orjson.loads(part))
        except orjson.JSONDecodeError as exc:
            number = len(documents) + 1
            if number == 1:
                return refused
            return Defect(Reason.BAD_JSON, f"object {number} is not JSON at its byte {exc.pos}")
    return documents[0] if len(documents) == 1 else documents


def _with_texts_for_numbers(text: bytes) -> bytes:
    """Return the text with quotes around each number that JSON or a double cannot express."""
    parts: list[bytes] = []
    end = 0
    while len(parts) < _MOST_NO_NUMBERS and (found := _NO_NUMBER.match(text, end)):
        end = found.end()
        is_name = _COLON.match(text, end) is not None  # which JSON wants in quotes
        parts.append(found[0] if is_name else _quoted(found[1], found[2]))
    return b"".join((*parts, text[end:]))


def _quoted(before: bytes, told: bytes) -> bytes:
    """Return both, with quotes around the number that ends with `told`."""
    exponent = told[:1] in {b"e", b"E"}
    start = len(before.rstrip(b"-.0123456789" if exponent else b"-"))
    number = before[start:] + told
    if exponent and not (_NUMBER.fullmatch(number) and math.isinf(float(number))):
        return before + told
    return before[:start] + b'"' + number + b'"'


def _parts(text: bytes, most: int) -> list[bytes]:
    """Split a text where one object ends and the next begins, at the first `most` such places."""
    parts: list[bytes] = []
    start = end = 0
    for _ in range(_MOST_BRACES):
        found = _OBJECT.match(text, end)
        if found is None or len(parts) == most:
            break
        end = found.end()
        if text.startswith(b"{", end):
            parts.append(text[start:end].strip(_BETWEEN))
            start = end
    return [*parts, text[start:].strip(_BETWEEN)]
