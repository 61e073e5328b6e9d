"""One bad field costs one field: what a schema refuses is set aside, and the rest is stored."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.check import Checker
from ingest.config import Settings
from ingest.model import Reason, Rejected, Row, Why
from ingest.schema.stream import Stream, stream
from tests.instances import instances
from tests.support import CATALOGUE, delivery, every_column

CHECKER = Checker.of(CATALOGUE, Settings())
NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc/~", max_size=3), inner)
    ),
    max_leaves=8,
)


def checked(stream_name: str, checker: Checker = CHECKER, **fields: Any) -> Row | Rejected:
    payload = {"ts": NOW.isoformat(), "seq": 1, **fields}
    (outcome,) = checker.check(delivery(payload, f"iov/v1/V1/{stream_name}", at=NOW)).outcomes
    return outcome


def stored(stream_name: str, **fields: Any) -> dict[str, Any]:
    """Columns of the row, with `quality` and `refused` read."""
    row = checked(stream_name, **fields)
    assert isinstance(row, Row), row
    found = every_column(CATALOGUE[stream_name], row.record, row.present)
    found["quality"] = orjson.loads(found["quality"] or b"{}")
    found["refused"] = orjson.loads(found["extra"] or b"{}").get("refused", {})
    return found


@pytest.mark.parametrize(
    ("name", "fields", "pointer", "why"),
    [
        ("nev", {"location": {"lon": 1555.6, "lat": 34.0}}, "/location/lon", Why.RANGE),
        ("nev", {"location": {"lon": "east", "lat": 34.0}}, "/location/lon", Why.TYPE),
        ("nev", {"location": [1, 2]}, "/location", Why.TYPE),
        ("nev", {"trip_id": "x" * 65}, "/trip_id", Why.LENGTH),
        ("nev", {"run_mode": "steam"}, "/run_mode", Why.ENUMERATION),
        ("nev", {"sent_at": "yesterday"}, "/sent_at", Why.FORMAT),
        ("nev", {"resend": "yes"}, "/resend", Why.TYPE),
        ("nev", {"motors": [{"no": 1}, {"temp_c": 1e9}]}, "/motors/1/temp_c", Why.RANGE),
        ("nev", {"quality": {"/speed_kmh": "stale", "/x": 7}}, "/quality//x", Why.TYPE),
        ("nev", {"quality": {"speed": "stale"}}, "/quality/speed", Why.PATTERN),
        ("battery", {"packs": [{"cell_v": [3.1, "x"]}]}, "/packs/0/cell_v/1", Why.TYPE),
        ("v2x", {"msg_type": "BSM", "path": [{}] * 1_001}, "/path", Why.ITEMS),
        ("ad-event", {"event": "activation", "capture": {"sha256": "?"}}, "/capture/sha256",
         Why.PATTERN),
        ("alarm", {"flag_levels": [{"flag": "soc_low"}]}, "/flag_levels/0", Why.REQUIRED),
    ],
)  # fmt: skip
def test_a_refused_value_costs_its_own_field(
    name: str, fields: dict[str, Any], pointer: str, why: Why
) -> None:
    row = checked(name, sw_version="1.2", **fields)
    assert isinstance(row, Row), row
    assert row.refused_fields == [why]
    assert row.unknown_fields == 0
    found = stored(name, sw_version="1.2", **fields)
    assert found["sw_version"] == "1.2"
    assert list(found["refused"]) == [pointer.replace("//", "/~1")]
    assert found["quality"][pointer.replace("//", "/~1")] == why.mark


def test_what_was_sent_is_kept_and_what_is_good_beside_it_too() -> None:
    found = stored(
        "nev",
        soc_pct=51, speed_kmh=6_553.4, cabin="warm",
        location={"lon": 1555.6, "lat": 33.99}, motors=[{"no": 1, "temp_c": 900, "torque_nm": 5}],
        quality={"/soc_pct": "stale", "/speed_kmh": "abnormal"},
    )  # fmt: skip
    assert found["soc_pct"] == 51
    assert found["speed_kmh"] is found["location_lon"] is None
    assert found["location_lat"] == 33.99
    assert orjson.loads(found["motors"]) == [{"no": 1, "temp_c": None, "torque_nm": 5}]
    assert orjson.loads(found["extra"])["cabin"] == "warm"
    assert found["refused"] == {
        "/speed_kmh": 6_553.4, "/location/lon": 1555.6, "/motors/0/temp_c": 900,
    }  # fmt: skip
    # What the vehicle says itself about a value is more than we know.
    assert found["quality"] == {
        "/soc_pct": "stale", "/speed_kmh": "abnormal",
        "/location/lon": "out_of_range", "/motors/0/temp_c": "out_of_range",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("ad-event", {"event": "tea_time", "speed_kmh": 5}, "/event is not one of the values"),
        ("ad-event", {"speed_kmh": 5}, "/event is required"),
        ("v2x", {"msg_type": 7, "id": "a"}, "/msg_type is not"),
        ("v2x", {"msg_type": "BSM", "rtes": [{}]}, "/rtes is not of type null"),
        ("nev", {"speed_kmh": -900}, "/speed_kmh is refused (range), and nothing else is left"),
        ("nev", {"location": {"lon": 999, "lat": None}}, "/location/lon is refused (range)"),
    ],
)
def test_a_sample_is_rejected_only_for_what_it_cannot_do_without(
    name: str, fields: dict[str, Any], words: str
) -> None:
    outcome = checked(name, **fields)
    assert isinstance(outcome, Rejected)
    assert outcome.reason is Reason.SCHEMA
    assert outcome.detail.startswith(words)
    assert orjson.loads(outcome.payload).items() >= fields.items()


def test_an_operator_may_have_the_whole_sample_rejected() -> None:
    strict = Checker.of(CATALOGUE, Settings(refused_fields="reject"))
    outcome = checked("nev", strict, soc_pct=50, speed_kmh=-900)
    assert isinstance(outcome, Rejected)
    assert outcome.detail == "/speed_kmh is below the minimum -100"


def test_letter_case_never_decides() -> None:
    found = stored("nev", run_mode="EV", crs="wgs84", soc_pct=50)
    assert (found["run_mode"], found["crs"]) == ("ev", "WGS84")
    assert not found["quality"]
    assert not found["refused"]


def test_a_field_that_the_vehicle_calls_refused_is_kept_beside_ours() -> None:
    assert stored("nev", soc_pct=5, refused=1)["refused"] == 1
    assert stored("nev", soc_pct=5, speed_kmh="x", refused=1)["refused"] == {
        "/speed_kmh": "x", "/refused": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("nev", {"soc_pct": 101}),
        ("nev", {"speed_kmh": -0.4}),
        ("nev", {"odometer_km": 1_000_000.4}),
        ("nev", {"gear": "L"}),
        ("nev", {"location": {"heading_deg": -0.3, "lon": 1, "lat": 2}}),
        ("nev", {"location": {"heading_deg": 360, "lon": 1, "lat": 2}}),
        ("nev", {"motors": [{"no": 1, "dc_current_a": 1_450}]}),
        ("battery", {"packs": [{"no": 1, "soh_pct": 101.71}]}),
        ("battery", {"charging": {"current_a": -16.2}}),
        ("ad-event", {"event": "collision", "road_type": "intersection"}),
        ("ad-event", {"event": "collision", "description": "x" * 10_000}),
        ("ad-state", {"motion_state": "unknown", "objects": [{"class": "van"}] * 255}),
        ("health", {"sensors": [{"id": "m1", "kind": "magnetometer"}]}),
        ("mobility", {"event": "trip_pause"}),
        ("truck", {"tell_tales": [{"name": "engine_oil", "state": "reserved_4"}]}),
        ("alarm", {"dtcs": ["SPN639-FMI9", "P0A80-00", {"spn": 639, "fmi": 9}, "spn 639 fmi 9"]}),
        ("alarm", {"flags": ["soc_low", "soc_low"]}),
        ("v2x", {"msg_type": "RSM", "participants": [{"ptc_id": 4_000_000_000}] * 255}),
        ("v2x", {"msg_type": "SPAT", "intersections": [{"phases": [{"id": 1}] * 255}]}),
        ("v2x", {"msg_type": "BSM", "elevation_m": -430.5, "heading_deg": -0.3}),
    ],
)
def test_true_values_pass(name: str, fields: dict[str, Any]) -> None:
    row = checked(name, **fields)
    assert isinstance(row, Row), row
    assert not row.refused_fields


@pytest.mark.parametrize(
    ("name", "fields", "pointer"),
    [
        ("nev", {"speed_kmh": 6_553.5}, "/speed_kmh"),
        ("nev", {"extremes": {"max_cell": {"v": 65.535}}}, "/extremes/max_cell/v"),
        ("nev", {"insulation_kohm": 65_535}, "/insulation_kohm"),
        ("nev", {"motors": [{"no": 1, "temp_c": 215}]}, "/motors/0/temp_c"),
        ("battery", {"packs": [{"cell_v": [3.2, 65.535]}]}, "/packs/0/cell_v/1"),
        ("truck", {"gross_weight_kg": 655_350}, "/gross_weight_kg"),
        ("truck", {"axles": [{"position": 1, "load_kg": 32_767.5}]}, "/axles/0/load_kg"),
        ("truck", {"fuel_level_1_pct": 102}, "/fuel_level_1_pct"),
        ("v2x", {"msg_type": "BSM", "heading_deg": 360.0}, "/heading_deg"),
        ("v2x", {"msg_type": "BSM", "elevation_m": -409.6}, "/elevation_m"),
        ("v2x", {"msg_type": "BSM", "size": {"width_cm": 0, "length_cm": 9}}, "/size/width_cm"),
        ("v2x", {"msg_type": "RSM", "participants": [{"pos": {"elevation_m": -409.6}}]},
         "/participants/0/pos/elevation_m"),
    ],
)  # fmt: skip
def test_what_stands_for_no_value_becomes_none(
    name: str, fields: dict[str, Any], pointer: str
) -> None:
    found = stored(name, sw_version="1", **fields)
    assert found["quality"] == {pointer: "invalid"}
    assert list(found["refused"]) == [pointer]
    row = checked(name, sw_version="1", **fields)
    assert isinstance(row, Row)
    assert row.refused_fields == [Why.SENTINEL]


def test_a_trouble_code_of_a_truck_is_stored_as_text() -> None:
    codes = [
        {"spn": 639, "fmi": 9}, {"spn": 1, "fmi": 2, "oc": 3, "sa": 0},
        {"spn": 5, "fmi": 6, "x": 7},
    ]  # fmt: skip
    assert stored("alarm", dtcs=codes)["dtcs"] == [
        "SPN639-FMI9", "SPN1-FMI2-OC3-SA0", '{"spn":5,"fmi":6,"x":7}',
    ]  # fmt: skip


def made(**properties: Any) -> Stream:
    return stream("s", {"type": "object", "properties": properties}, hashed_elsewhere=["card"])


def test_a_number_that_stands_for_no_value_is_invalid() -> None:
    field = {
        "type": ["number", "null"],
        "minimum": -9,
        "maximum": 400,
        "x-sentinels": [360, 6553.5],
    }
    one = made(heading=field, inner={"type": "object", "properties": {"heading": field}})
    for number in (360, 360.0, 6553.5):
        sample = {"heading": number, "inner": {"heading": 5}}
        assert one.known(NOW, 1, NOW, sample) is None
        divided = one.set_aside(sample)
        assert divided.fault is None
        kept, refused, *_ = divided
        assert kept == {"heading": None, "inner": {"heading": 5}, "refused": {"/heading": number}}
        assert [(r.why, r.why.mark) for r in refused] == [(Why.SENTINEL, "invalid")]
        assert one.known(NOW, 1, NOW, kept) is not None
    deep = one.set_aside({"heading": 359.9, "inner": {"heading": 360}})
    assert deep.refused[0].pointer == "/inner/heading"
    assert one.known(NOW, 1, NOW, {"inner": {"heading": 360}}) is None


def test_nothing_private_is_kept_of_what_is_refused() -> None:
    text = {"type": ["string", "null"], "maxLength": 5}
    holder = {"type": ["object", "null"], "properties": {"card": text | {"x-hash": "sha256"}}}
    one = made(vin=text | {"x-device": True}, holder=holder, tag=text, n={"type": "boolean"})
    sample = {
        "n": True, "vin": "LSVNV2182E2100001", "tag": {"card": "secret", "x": 1},
        "holder": {"card": "much too long"},
    }  # fmt: skip
    divided = one.set_aside(sample)
    assert divided.fault is None
    assert divided.kept["refused"] == {"/vin": None, "/tag": {"x": 1}, "/holder/card": None}
    divided = one.set_aside({"n": True, "holder": "much too long"})
    assert divided.fault is None
    assert divided.kept["refused"] == {"/holder": None}


def test_of_one_member_so_many_values_are_listed_and_then_the_whole() -> None:
    some = [{"no": 1, "temp_c": 900}] * 200
    assert len(stored("nev", soc_pct=5, motors=some)["refused"]) == 200
    many = [{"no": 1, "temp_c": 900, "torque_nm": 1e9}] * 200
    found = stored("nev", soc_pct=5, motors=many, speed_kmh=-900)
    assert found["refused"] == {"/motors": many, "/speed_kmh": -900}
    assert (found["motors"], found["soc_pct"]) == (None, 5)


def test_of_one_message_so_many_values_are_set_aside_and_then_samples_are_rejected() -> None:
    motors = [{"no": 1, "temp_c": 900}] * 200
    head = {"ts": NOW.isoformat(), "soc_pct": 5, "motors": motors}
    samples = [head | {"seq": n} for n in range(40)]
    for _ in range(2):  # each message has its own
        outcomes = CHECKER.check(delivery(samples, "iov/v1/V1/nev", at=NOW)).outcomes
        assert [isinstance(outcome, Row) for outcome in outcomes] == [True] * 25 + [False] * 15
        last = outcomes[-1]
        assert isinstance(last, Rejected)
        assert last.detail == "/motors/0/temp_c is above the maximum 210"


def replaced(node: Any, steps: list[Any], value: Any) -> Any:
    """Put a value at a path of a copy of `node`."""
    if not steps:
        return value
    node = copy.copy(node)
    step = steps[0]
    node[step] = replaced(node[step], steps[1:], value)
    return node


def paths(node: Any) -> list[list[Any]]:
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    return [[]] + [[step, *rest] for step, inner in items for rest in paths(inner)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
@settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_whatever_comes_a_stored_row_holds_only_what_its_schema_allows_and_nothing_is_lost(
    name: str, data: st.DataObject
) -> None:
    one = CATALOGUE[name]
    sent = data.draw(instances(one.schema))
    sent.pop("refused", None)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in paths(sent) if path]))
        sent = replaced(sent, path, data.draw(ANYTHING))
    sent = one.never_stored.without(sent)
    before = copy.deepcopy(sent)
    divided = one.set_aside(sent)
    assert sent == before, "the dead letter keeps it"
    if divided.fault is not None:
        assert one.fault(sent) is not None
        return
    kept, refused, *_ = divided
    again = {k: v for k, v in kept.items() if k != "refused"}
    if one.fault(again) is not None:
        # Only what concerns several fields at once is left: fields of another variant.
        assert name == "v2x"
        return
    row = one.row(NOW, 1, NOW, kept)
    assert not isinstance(row, str)
    for value in refused:
        place: Any = again
        there: Any = sent
        *outer, last = [
            step.replace("~1", "/").replace("~0", "~") for step in value.pointer[1:].split("/")
        ]
        for step in outer:
            key = int(step) if isinstance(there, list) else step
            place, there = place[key], there[key]
        key = int(last) if isinstance(there, list) else last
        if value.value is not None:
            assert value.value == there[key]
        place[key] = there[key]
    assert orjson.dumps(lower(again)) == orjson.dumps(lower(sent))


def lower(node: Any) -> Any:
    """Return it without letter case, and with members in order."""
    if isinstance(node, dict):
        return {name: lower(node[name]) for name in sorted(node)}
    if isinstance(node, list):
        return list(map(lower, node))
    return node.casefold() if isinstance(node, str) else node
