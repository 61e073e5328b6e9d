from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any

import orjson
import pytest

from ingest import gbt32960
from ingest.check import Checker
from ingest.commands.message import Message
from ingest.config import Settings
from ingest.lab.fleet import STREAMS, Fleet, Mischief, city
from ingest.lab.fleet.car import Car
from ingest.lab.fleet.kinds import Bus, DeliveryRobot, Robotaxi, Truck
from ingest.lab.fleet.mischief import garbled
from ingest.lab.fleet.roadside import RoadsideUnit
from ingest.lab.fleet.vehicle import BURST_S, Vehicle
from ingest.model import Defect, Rejected, Row
from tests.support import (
    CATALOGUE,
    column,
    delivery,
)

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
HOUR_S = 3_600


def messages(fleet: Fleet, count: int, every_s: float = 0.1) -> Iterator[tuple[datetime, Message]]:
    for number in range(count):
        at = NOW + timedelta(seconds=every_s * number)
        yield at, fleet.message(at)


def test_the_same_seed_says_the_same() -> None:
    assert list(messages(Fleet(20, 7), 300)) == list(messages(Fleet(20, 7), 300))
    assert list(messages(Fleet(20, 7), 50)) != list(messages(Fleet(20, 8), 50))


def test_what_the_fleet_says_is_accepted_plausible_and_of_all_streams() -> None:
    checker, fleet = Checker.of(CATALOGUE, Settings()), Fleet(20, 1)
    streams: Counter[str] = Counter()
    keys: set[Any] = set()
    for at, message in messages(fleet, 6_000):
        checked = checker.check(delivery(message.payload, message.topic, at=at))
        assert len(checked.outcomes) == message.samples
        for row in checked.outcomes:
            assert isinstance(row, Row), row
            # A frame has no place for some of what a car says: it writes "invalid" there.
            assert set(row.flags) <= ({"invalid"} if checked.stream == "gbt32960" else set())
            assert row.unknown_fields == 0
            streams[row.stream] += 1
            keys.add((row.stream, row.device, row.ts, column(row, CATALOGUE, "seq")))
    assert set(streams) == set(CATALOGUE)
    assert len(keys) == streams.total(), "no sample is taken for another"
    assert fleet.said["gbt32960"] > 0


@pytest.mark.slow
def test_the_fleet_says_what_the_schemas_have_a_place_for() -> None:
    """All but what vehicles of these kinds do not have, or send in frames only."""
    said: set[str] = set()

    def walk(node: Any, path: str) -> None:
        if isinstance(node, list):
            for item in node:
                walk(item, path)
        elif isinstance(node, dict):
            for name, value in node.items():
                if value is not None:
                    said.add(f"{path}.{name}")
                    walk(value, f"{path}.{name}")
        elif path == "v2x.msg_type":
            said.add(node)

    streams = [name for name in STREAMS if name != "gbt32960"]
    for _, message in messages(Fleet(60, 5, streams), 40_000):
        walk(orjson.loads(message.payload), message.topic.split("/")[-1])
    assert {
        *("nev.ambient_c", "nev.range_km", "nev.aux_battery_v", "chassis.speed_kmh"),
        *("battery.charging.voltage_v", "battery.charging.phases", "battery.packs.code"),
        *("battery.packs.cycles", "battery.packs.rated_capacity_ah"),
        *("battery.packs.remaining_capacity_ah", "battery.packs.energy_throughput_kwh"),
        *("battery.packs.capacity_throughput_ah", "battery.packs.internal_resistance_mohm"),
        *("truck.powertrain.engine_load_pct", "truck.powertrain.dpf_state"),
        *("ad-state.hmi.hands_off_stage", "ad-state.hmi.locked_out", "ad-state.warnings"),
        *("ad-state.exposure.by_road_type.automated_km", "mobility.events"),
        *("v2x.accuracy.semi_major_m", "v2x.brakes.applied", "v2x.path_prediction.radius_m"),
        *("v2x.road_user", "v2x.hazard.cause_code", "v2x.requests.request_id"),
        *("v2x.request_states.state", "v2x.rtes.event_types", "v2x.nodes.links.lanes.points"),
        *("BSM", "RSM", "RSI", "SPAT", "MAP", "STATUS", "PSM", "SRM", "SSM", "CAM", "DENM", "CPM"),
    } <= said


def test_what_the_fleet_says_wrong_is_rejected_and_nothing_else() -> None:
    checker = Checker.of(CATALOGUE, Settings())
    fleet = Fleet(10, 1, STREAMS, 2, Mischief(bad=0.2, duplicate=0.1, late=0.1))
    kinds: Counter[str] = Counter()
    first: set[bytes] = set()
    for at, message in messages(fleet, 1_500):
        checked = checker.check(delivery(message.payload, message.topic, at=at))
        assert len(checked.outcomes) == message.samples
        wrong = [outcome for outcome in checked.outcomes if isinstance(outcome, Rejected)]
        assert bool(wrong) == (message.kind == "bad")
        rows = [outcome for outcome in checked.outcomes if isinstance(outcome, Row)]
        assert all(len(row.refused_fields) == (message.kind == "dirty") for row in rows)
        if message.kind == "late":
            assert all(o.resend for o in checked.outcomes if isinstance(o, Row)), "resend"
        kinds[message.kind] += 1
        first.add(message.payload[:1] if message.kind == "dirty" else b"")
    assert first == {b"", b"{", b"[", b"\xef", b"\x1e", b"\x1f"}
    assert set(kinds) == {"good", "bad", "dirty", "duplicate", "late"}
    assert 80 < kinds["dirty"] < 220
    assert 80 < kinds["bad"] < 220


def test_a_garbled_frame_is_refused_for_what_it_is() -> None:
    fleet = Fleet(10, 1, ["gbt32960"], 1)
    _, message = next(messages(fleet, 1))
    why = set()
    for seed in range(40):
        found = gbt32960.decode(garbled(message.payload, Random(seed)))
        assert isinstance(found, Defect)
        why.add(found.detail)
    assert why == {
        "wrong check byte",
        "no GB/T 32960 frame: it looks like hexadecimal text of one; its bytes are wanted",
        "more than one frame in one message",
        "answer of a platform to command 0x02: 0x01, ok",
    }


def test_sequence_numbers_count_per_device_and_stream() -> None:
    seen: dict[str, list[int]] = {}
    for _, message in messages(Fleet(5, 1), 600):
        if not message.topic.endswith("/gbt32960"):
            found = orjson.loads(message.payload)
            for sample in found if isinstance(found, list) else [found]:
                seen.setdefault(message.topic, []).append(sample["seq"])
    assert len(seen) > 12
    for topic, numbers in seen.items():
        assert numbers == sorted(numbers), topic
        # Numbers may be missing (what a car counted in a tunnel comes later), none comes twice.
        assert len(set(numbers)) == len(numbers), topic


@pytest.mark.parametrize("streams", [["truck"], ["mobility", "v2x"], ["gbt32960"], ["cockpit"]])
def test_a_fleet_of_few_streams_has_devices_that_speak_on_them(streams: list[str]) -> None:
    fleet = Fleet(3, 1, streams)
    assert {m.topic.rsplit("/", 1)[1] for _, m in messages(fleet, 60, 1.1)} == set(streams)


def test_frames_are_of_both_editions_and_say_who_sends_them() -> None:
    found = {}
    for _, message in messages(Fleet(20, 1, ["gbt32960"]), 60, 1.1):
        frame = gbt32960.decode(message.payload)
        assert isinstance(frame, gbt32960.Frame)
        found[frame.edition] = frame
    assert set(found) == {2016, 2025}
    assert found[2016].vin != found[2025].vin
    assert found[2025].samples["nev"]["crs"] == "WGS84"


def test_a_device_sends_one_frame_a_second_for_frames_have_whole_seconds() -> None:
    checker, keys = Checker.of(CATALOGUE, Settings()), []
    for at, message in messages(Fleet(1, 1, ["gbt32960", "chassis"]), 600, 0.05):
        for row in checker.check(delivery(message.payload, message.topic, at=at)).outcomes:
            assert isinstance(row, Row)
            keys.append((row.stream, row.ts, column(row, CATALOGUE, "seq")))
    assert len(set(keys)) == len(keys)
    assert len([key for key in keys if key[0] == "nev"]) > 20


def lived(vehicle: Vehicle, seconds: int = HOUR_S) -> Iterator[Vehicle]:
    for second in range(1, seconds + 1):
        vehicle.advance(NOW + timedelta(seconds=second))
        yield vehicle


def metres(a: tuple[float, float], b: tuple[float, float]) -> float:
    east = (b[0] - a[0]) * 111_320 * math.cos(math.radians(31.23))
    return math.hypot(east, (b[1] - a[1]) * 111_320)


@pytest.mark.parametrize("kind", [Car, Bus, Robotaxi])
def test_position_speed_energy_and_cells_of_a_vehicle_belong_together(kind: type[Vehicle]) -> None:
    vehicle = kind("sim-1-000001", Random(6), NOW)
    before = vehicle.state
    moved_s = charged = 0
    for _ in lived(vehicle):
        now, battery = vehicle.state, vehicle.battery
        mean_kmh = (now.speed_kmh + before.speed_kmh) / 2
        assert now.odometer_km - before.odometer_km == pytest.approx(mean_kmh / HOUR_S, abs=1e-9)
        # Round a corner the way is shorter than the street.
        assert metres(before.position, now.position) <= mean_kmh / 3.6 + 0.01
        assert now.speed_kmh <= vehicle.motion.limit_mps * 3.6 + 25
        assert sum(battery.cell_v) == pytest.approx(battery.voltage_v, rel=0.01)
        if now.current_a > 0:
            assert now.soc_pct < before.soc_pct
        if now.torque_nm < -50 and now.speed_kmh > 10:
            assert now.current_a < 0, "braking gives energy back"
        if now.charging:
            assert now.parked
            assert now.current_a < 0
            assert now.soc_pct > before.soc_pct
            charged += 1
        assert not (now.parked and now.speed_kmh), "what is parked stands"
        moved_s += now.speed_kmh > 0
        before = now
    assert moved_s > 600
    assert vehicle.trips > 0


def test_red_lights_are_kept_and_the_river_is_crossed_below_it() -> None:
    stood_at_red = 0
    for seed in range(4):
        vehicle = Car("V", Random(seed), NOW)
        for _ in lived(vehicle, 1_800):
            motion = vehicle.motion
            if city.is_tunnel(motion.start, motion.end):
                assert city.is_arterial(motion.start, motion.end)
            along_x = motion.start[1] == motion.end[1]
            light = city.signal(motion.end, along_x, vehicle.clock.timestamp())
            if motion.speed_mps == 0 and light.state == "stop_and_remain" and motion.goes:
                stood_at_red += 1
    assert stood_at_red > 100


def test_two_directions_of_a_crossing_are_never_both_free() -> None:
    for second in range(240):
        for node in ((0, 0), (3, 5), (15, 8)):
            states = {city.signal(node, along_x, second).state for along_x in (True, False)}
            assert "stop_and_remain" in states


def samples_of(vehicle: Vehicle, stream: str) -> list[dict[str, Any]]:
    found = [sample for name, samples in vehicle.outbox for sample in samples if name == stream]
    vehicle.outbox.clear()
    return found


def test_an_alarm_of_level_3_sends_30_seconds_before_it_again_and_30_after_it() -> None:
    vehicle = Car("V", Random(1), NOW)
    list(lived(vehicle, 60))
    vehicle.outbox.clear()
    vehicle.raise_alarm(3, ["battery_high_temp"], {"ress": ["0x00000A21"]})
    at = vehicle.clock
    messages_ = list(vehicle.outbox)
    assert [stream for stream, _ in messages_] == ["alarm", "nev", "ad-event", "v2x"]
    before = messages_[1][1]
    ages = [round((at - datetime.fromisoformat(s["ts"])).total_seconds()) for s in before]
    assert ages == list(range(BURST_S - 1, -1, -1))
    assert all(s["resend"] is True and s["trigger"] == "alarm_pre" for s in before)
    vehicle.outbox.clear()
    for second in range(61, 61 + 90):
        vehicle.advance(NOW + timedelta(seconds=second))
    after = [s for s in samples_of(vehicle, "nev") if s.get("trigger") == "alarm"]
    assert len(after) == BURST_S
    instants = [datetime.fromisoformat(s["ts"]) for s in after]
    assert all(b - a == timedelta(seconds=1) for a, b in pairwise(instants))
    assert not any("resend" in s for s in after)
    assert after[-1]["speed_kmh"] == 0, "level 3: stop now"
    for second in range(151, 151 + 120):
        vehicle.advance(NOW + timedelta(seconds=second))
    assert vehicle.alarm.level < 3


def test_in_a_tunnel_a_car_is_silent_and_tells_all_of_it_later() -> None:
    vehicle = Car("V", Random(6), NOW)
    silent_s = 0
    for _ in lived(vehicle):
        silent_s += not vehicle.reachable
        if vehicle.reachable and silent_s:
            break
        vehicle.outbox.clear()
    assert silent_s > 15
    held = [s for s in samples_of(vehicle, "nev") if s.get("trigger") == "resend"]
    assert silent_s - 1 <= len(held) <= silent_s + 1
    assert all(s["resend"] is True and s["sent_at"] > s["ts"] for s in held)
    instants = [datetime.fromisoformat(s["ts"]) for s in held]
    assert all(b - a == timedelta(seconds=1) for a, b in pairwise(instants))


def test_trucks_and_robots_are_silent_in_tunnels_too() -> None:
    for kind, stream in ((Truck, "truck"), (DeliveryRobot, "mobility")):
        device = kind("D", Random(1), NOW)
        device.motion.start, device.motion.end = (city.RIVER, 3), (city.RIVER + 1, 3)
        device.motion.after, device.motion.along_m = (city.RIVER + 2, 3), 380.0
        assert not device.reachable
        for second in range(1, 60):
            device.advance(NOW + timedelta(seconds=second))
        held = [s for name, found in device.outbox for s in found if name == stream]
        assert len(held) > 3
        assert all(s["resend"] and s["sent_at"] > s["ts"] for s in held if "event" not in s)


def test_nobody_publishes_from_a_tunnel() -> None:
    fleet = Fleet(20, 3)
    by_name = {device.name: device for device in fleet.devices(NOW)}
    hidden = 0
    for _, message in messages(fleet, 4_000, 0.2):
        assert by_name[message.topic.split("/")[2]].reachable
        hidden += sum(not device.reachable for device in by_name.values())
    assert hidden > 100


def test_a_trip_has_a_login_a_logout_and_one_name() -> None:
    vehicle = Car("V", Random(6), NOW)
    list(lived(vehicle))
    sessions = [s for name, found in vehicle.outbox for s in found if name == "session"]
    trips = [s for name, found in vehicle.outbox for s in found if name == "cockpit"]
    open_: dict[str, Any] = {}
    for session, trip in zip(sessions, trips, strict=True):
        if session["event"] == "login":
            assert (session["kind"], len(session["vin"])) == ("car", 17)
            open_ = {"seq": session["session_seq"], "trip": trip["trip_id"]}
        elif open_:
            assert (session["session_seq"], trip["trip_id"]) == (open_["seq"], open_["trip"])
    assert open_


def test_a_truck_burns_fuel_keeps_its_tachograph_and_rests() -> None:
    truck = Truck("T", Random(2), NOW)
    said = []
    for second in range(1, HOUR_S, 5):
        truck.advance(NOW + timedelta(seconds=second))
        said.append(truck.say("truck"))
    for before, after in pairwise(said):
        assert after["total_distance_m"] >= before["total_distance_m"]
        assert after["fuel_used_ml"] >= before["fuel_used_ml"]
        assert after["speed_kmh"] == after["tacho_speed_kmh"] <= 80
        assert after["speed_kmh"] - before["speed_kmh"] <= 0.5 * 5 * 3.6 + 0.2, "it is heavy"
    assert {s["driver_state"] for s in said} == {"drive", "rest"}
    used_l = (said[-1]["fuel_used_ml"] - said[0]["fuel_used_ml"]) / 1000
    km = (said[-1]["total_distance_m"] - said[0]["total_distance_m"]) / 1000
    assert 15 < used_l / km * 100 < 90, "litres per 100 km in a city"


def test_a_robot_walks_and_delivers() -> None:
    robot = DeliveryRobot("R", Random(2), NOW)
    for second in range(1, HOUR_S):
        robot.advance(NOW + timedelta(seconds=second))
        assert robot.motion.speed_mps <= 1.7
    drops = [s for name, found in robot.outbox for s in found if name == "mobility"]
    assert {s["event"] for s in drops} == {"order_drop_off"}
    assert len(drops) == robot.deliveries > 1


def test_a_roadside_unit_stays_and_tells_the_lights_cars_obey() -> None:
    unit = RoadsideUnit("U", Random(2), NOW)
    seen = {}
    for second in range(1, 60):
        unit.advance(NOW + timedelta(seconds=second))
        said = unit.say("v2x")
        seen[said["msg_type"]] = said
        if said["msg_type"] == "SPAT":
            phases = said["intersections"][0]["phases"]
            light = city.signal(unit.node, True, unit.clock.timestamp())  # noqa: FBT003  along x
            assert phases[0]["state"] == light.state
            assert "stop_and_remain" in {phase["state"] for phase in phases}
    assert set(seen) == {"RSM", "SPAT", "MAP", "RSI", "STATUS", "CPM", "PSM", "SSM"}
    assert all(metres((seen["RSM"]["lon"], seen["RSM"]["lat"]),
                      (p["pos"]["lon"], p["pos"]["lat"])) < 130
               for p in seen["RSM"]["participants"])  # fmt: skip
