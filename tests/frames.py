"""GB/T 32960 frames written out by hand, and what the service makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import reduce
from operator import xor
from typing import Any

from ingest.check import Checker
from ingest.config import Settings
from ingest.gbt32960 import Frame, decode
from ingest.gbt32960.tables import Edition
from ingest.model import Outcome, Row
from ingest.schema import load_catalogue
from tests.support import delivery, every_column

VIN = "LTEST0000TEST0001"
CATALOGUE = load_catalogue()
CHECKER = Checker.of(CATALOGUE, Settings())
AT = datetime(2026, 11, 22, 8, 0, 5, tzinfo=UTC)
TIME = bytes([26, 11, 22, 16, 0, 3])
TS = "2026-11-22T16:00:03+08:00"
EDITIONS: tuple[Edition, ...] = (2016, 2025)


def frame(
    data: bytes,
    *,
    edition: Edition = 2016,
    command: int = 2,
    encryption: int = 1,
    response: int = 0xFE,
) -> bytes:
    """Return a frame written out by hand, not by the code under test."""
    body = bytes([command, response]) + VIN.encode() + bytes([encryption])
    body += len(data).to_bytes(2, "big") + data
    return (b"##" if edition == 2016 else b"$$") + body + bytes([reduce(xor, body)])


def samples(data: bytes, **more: Any) -> Mapping[str, Any]:
    found = decode(frame(TIME + data, **more))
    assert isinstance(found, Frame), found
    return found.samples


def outcomes(payload: bytes, topic: str = "iov/v1/V1/gbt32960", **more: Any) -> list[Outcome]:
    return CHECKER.check(delivery(payload, topic, at=AT, **more)).outcomes


def rows(payload: bytes, **more: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for outcome in outcomes(payload, **more):
        assert isinstance(outcome, Row), outcome
        stream = CATALOGUE[outcome.stream]
        found[outcome.stream] = every_column(stream, outcome.record, outcome.present)
    return found
