from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.gbt32960 import Command, Frame, decode, encode
from ingest.gbt32960.bits import BrakePedal, FlagLevels, Flags, Gear, HexCodes, Location
from ingest.gbt32960.items import Choice, Item, Number
from ingest.gbt32960.lists import Numbers, Repeat
from ingest.gbt32960.tables import UNITS, Edition
from ingest.model import Row
from tests.frames import (
    EDITIONS,
    TIME,
    TS,
    VIN,
    frame,
    outcomes,
)

pytestmark = pytest.mark.slow


def raw(size: int, low: int, high: int) -> st.SearchStrategy[bytes]:
    """A count in its range, a sentinel, or anything."""
    most = (1 << 8 * size) - 1
    counts = st.integers(low, high) | st.sampled_from([most, most - 1]) | st.integers(0, most)
    return counts.map(lambda count: count.to_bytes(size, "big"))


def several(count_size: int, item: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    lists = st.lists(item, max_size=2).map(
        lambda parts: len(parts).to_bytes(count_size, "big") + b"".join(parts)
    )
    return lists | st.sampled_from([0xFE, 0xFF]).map(
        lambda end: b"\xff" * (count_size - 1) + bytes([end])
    )


def wire(item: Item) -> st.SearchStrategy[bytes]:
    """Bytes that an item can read."""
    match item:
        case Number():
            return raw(item.size, item.low, item.high)
        case Choice():
            return raw(item.size, min(item.values), max(item.values))
        case Numbers():
            return several(item.count_size, wire(item.item))
        case Repeat():
            entry = st.tuples(*map(wire, item.items)).map(b"".join)
            return several(item.count_size, entry) if item.count_size else entry
        case Gear() | BrakePedal():
            return raw(1, 0, 101)
        case Location():
            size = 10 if item.with_crs else 9
            return st.binary(min_size=size, max_size=size)
        case Flags():
            return raw(4, 0, (1 << item.count) - 1)
        case FlagLevels():
            return several(1, st.tuples(raw(1, 0, 27), raw(1, 0, 4)).map(b"".join))
        case HexCodes():
            return several(1, st.binary(min_size=4, max_size=4))
    raise AssertionError(item)


@st.composite
def reports(draw: st.DrawFn, edition: Edition) -> bytes:
    """Time and units of a report, in any order, each at most twice, at least one."""
    numbers = draw(st.lists(st.sampled_from(sorted(UNITS[edition])), max_size=4))
    units = [
        bytes([number]) + b"".join(draw(st.tuples(*map(wire, UNITS[edition][number].items))))
        for number in numbers
    ]
    one = st.tuples(st.integers(0x80, 0xFE), st.binary(max_size=4))
    custom = draw(st.lists(one, min_size=0 if numbers else 1, max_size=2))
    units += [bytes([n]) + len(data).to_bytes(2, "big") + data for n, data in custom]
    # Temperatures after voltages: packs stand in the order they were first heard of, and writing
    # puts voltages first.
    after = {n for n, unit in UNITS[edition].items() if not getattr(unit.items[0], "leads", True)}
    shuffled: list[bytes] = draw(st.permutations(units))
    ordered: list[bytes] = sorted(shuffled, key=lambda unit: unit[0] in after)
    return TIME + b"".join(ordered)


@pytest.mark.parametrize("edition", EDITIONS)
@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_what_was_read_and_written_again_reads_the_same(edition: Edition, data: Any) -> None:
    command = data.draw(st.sampled_from([Command.REALTIME, Command.RESEND]))
    first = decode(frame(data.draw(reports(edition)), edition=edition, command=command))
    assert isinstance(first, Frame)
    written = encode(first)
    again = decode(written)
    assert again == first
    assert encode(again) == written


@pytest.mark.parametrize("edition", EDITIONS)
@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_whatever_a_report_says_the_schemas_accept_it(edition: Edition, data: Any) -> None:
    payload = frame(data.draw(reports(edition)), edition=edition)
    for outcome in outcomes(payload):
        assert isinstance(outcome, Row), outcome


@pytest.mark.parametrize("edition", EDITIONS)
@settings(max_examples=100, deadline=None)
@given(serial=st.integers(1, 65_531), packs=st.lists(st.integers(0, 3), max_size=3))
def test_sessions_go_round_too(edition: Edition, serial: int, packs: list[int]) -> None:
    session: dict[str, Any] = {
        "ts": TS, "event": "login", "vin": VIN, "response": "command", "session_seq": serial,
        "iccid": "89860000000000000001", "bms_count": len(packs),
        "pack_codes": ["001PE0AA0000AA0000000001"]
        * (len(packs) if edition == 2016 else sum(packs)),
    }  # fmt: skip
    if edition == 2025:
        session["packs_per_bms"] = packs
    logout = {k: session[k] for k in ("ts", "vin", "response", "session_seq")}
    heartbeat = {"event": "heartbeat", "vin": VIN, "response": "command"}
    for command, sample in (
        (Command.LOGIN, session),
        (Command.LOGOUT, logout | {"event": "logout"}),
        (Command.HEARTBEAT, heartbeat),
    ):
        whole = Frame(edition, command, VIN, {"session": sample})
        assert decode(encode(whole)) == whole


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.sampled_from(EDITIONS), st.integers(0, 12))
def test_no_bytes_whatever_raise(data: bytes, edition: Edition, command: int) -> None:
    for payload in (data, frame(data, edition=edition, command=command)):
        assert outcomes(payload)
