"""Fields of a vehicle's samples on each stream, from its state, without `ts` and `seq`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ingest.lab.fleet.battery import AMBIENT_C
from ingest.lab.fleet.device import text
from ingest.lab.fleet.vehicle import Vehicle, VehicleState

Fields = dict[str, Any]
_SOFTWARE = "4.2.1+build.20261101"
_CAR = "passenger_car"
_WHEELS = ("left_front", "left_rear", "right_front", "right_rear")
_MODEL = {"name": "lane-net", "version": "7.3.1"}


def nev(vehicle: Vehicle, state: VehicleState) -> Fields:
    """Return the fields of vehicle, motor and position."""
    moving, generating = state.speed_kmh > 0, state.current_a < 0 and not state.charging
    motor = "off" if state.parked else "generating" if generating else "consuming"
    return {
        "status": "off" if state.parked else "started",
        "charge_status": "parked_charging" if state.charging else "not_charging",
        "run_mode": vehicle.run_mode,
        "speed_kmh": round(state.speed_kmh, 1), "odometer_km": round(state.odometer_km, 1),
        "pack_voltage_v": round(state.voltage_v, 1), "pack_current_a": round(state.current_a, 1),
        "soc_pct": round(state.soc_pct), "dcdc": "off" if state.parked else "working",
        "gear": "P" if state.parked else "D",
        "drive_force": moving and not generating, "brake_force": moving and generating,
        "insulation_kohm": 6_200, "ambient_c": AMBIENT_C, "range_km": round(state.range_km),
        "aux_battery_v": 12.6 if state.parked else 13.9,
        "motors": [{
            "no": 1, "state": motor, "controller_temp_c": round(state.motor_c * 0.9),
            "temp_c": round(state.motor_c),
            "speed_rpm": round(state.speed_kmh / 3.6 / vehicle.wheel_m * vehicle.ratio * 9.55),
            "torque_nm": round(max(-1_900.0, min(4_500.0, state.torque_nm)), 1),
            "input_v": round(state.voltage_v, 1),
            "dc_current_a": 0.0 if state.parked else round(state.current_a, 1),
        }],
        "location": {
            "valid": True, "lon": round(state.position[0], 6), "lat": round(state.position[1], 6),
            "heading_deg": round(state.heading_deg, 1),
        },
        "crs": "WGS84", "trip_id": vehicle.trip_id, "sw_version": _SOFTWARE,
    }  # fmt: skip


def battery(vehicle: Vehicle) -> Fields:
    """Return the fields of the pack, its cells and charging."""
    pack, highest = vehicle.battery, vehicle.battery.cell_v
    one: Fields = {
        "no": 1, "voltage_v": round(pack.voltage_v, 1), "current_a": round(pack.current_a, 1),
        "total_cells": pack.cells, "start_index": 1, "chemistry_code": pack.chemistry.code,
        "cell_v": highest, "probe_temps_c": pack.probe_temps_c, "soh_pct": 96.5,
    }  # fmt: skip
    if pack.chemistry.code == "09":
        one |= {"pressure_kpa": 310, "gas_ppm": 0, "interface_resistance_mohm": 4.1}
    if vehicle.parked:
        one |= _passport(vehicle)
    fields: Fields = {"packs": [one]}
    if vehicle.charging:
        to_full_s = (100 - pack.soc_pct) * 36 * pack.capacity_ah / max(1.0, -pack.current_a)
        fields["charging"] = {
            "plug": "locked", "power_kw": vehicle.charge_kw, "voltage_v": round(pack.voltage_v, 1),
            "current_a": round(max(0.0, -pack.current_a), 1), "target_soc_pct": 80,
            "time_to_full_s": round(to_full_s), "inlet": "GBT_DC",
        }  # fmt: skip
        if vehicle.charges_slowly:
            fields["charging"] |= {"inlet": "GBT_AC", "voltage_v": 230.0, "phases": 3}
    return fields


def _passport(vehicle: Vehicle) -> Fields:
    """Return what a battery's passport is kept up with, sent while it is parked."""
    pack = vehicle.battery
    return {
        "code": f"001PE0A{vehicle.vin}", "rated_capacity_ah": pack.capacity_ah,
        "remaining_capacity_ah": round(pack.capacity_ah * 0.965, 1),
        "cycles": round(pack.drawn_ah / pack.capacity_ah, 1),
        "capacity_throughput_ah": round(2 * pack.drawn_ah),
        "energy_throughput_kwh": round(2 * pack.drawn_ah * pack.cells * pack.rest_v / 1000),
        "internal_resistance_mohm": round(pack.resistance_ohm * 1000, 1),
    }  # fmt: skip


def alarm(vehicle: Vehicle) -> Fields:
    """Return the highest alarm level and the active flags."""
    now = vehicle.alarm
    fields: Fields = {"max_level": now.level, "flags": list(now.flags)}
    if now.codes:
        fields["faults"] = {part: list(codes) for part, codes in now.codes.items()}
    if now.raised_at is not None:
        fields["raised_at"] = text(now.raised_at)
    return fields


def login(vehicle: Vehicle) -> Fields:
    """Return a login, with what kind of device it is."""
    return {
        "event": "login", "session_seq": vehicle.trips % 65_531 + 1, "bms_count": 1,
        "network": "cellular", "response": "command", "kind": vehicle.kind, "region": "cn",
        "fleet": "simulated", "vin": vehicle.vin, "model": f"simulated {vehicle.kind}",
        "battery_capacity_kwh": round(vehicle.capacity_ah * vehicle.cells * 3.7 / 1000),
        "load_capacity_kg": round(vehicle.mass_kg / 4), "consumption_kwh_per_100km": 15.4,
    }  # fmt: skip


def heartbeat(vehicle: Vehicle) -> Fields:
    """Return a heartbeat."""
    return {"event": "heartbeat", "network": "cellular", "kind": vehicle.kind, "region": "cn"}


def nav(vehicle: Vehicle, event: str) -> Fields:
    """Return an event of navigation: a trip begins or ends."""
    return {"event": event, "app": "navigation", "result": "ok", "trip_id": vehicle.trip_id}


def cockpit(vehicle: Vehicle) -> Fields:
    """Return the fields of cabin and attention."""
    seats = [vehicle.driven and not vehicle.parked, vehicle.trips % 2 == 1, False, False]
    fields: Fields = {}
    if vehicle.random.random() < 0.5:
        latency_ms = round(vehicle.random.uniform(20, 180))
        fields = {"event": "hmi_action", "app": "climate", "result": "ok", "latency_ms": latency_ms}
    return fields | {
        "cabin": {
            "temp_c": 22.5, "hvac_set_c": 22, "hvac_fan": 40, "occupancy": seats, "belted": seats,
            "doors": [False] * 4,
        },
        "driver": {"distraction_pct": 4, "fatigue_pct": 12, "eyes_on_road": True},
        "display": {"brightness": 70, "theme": "day", "language": "zh"}, "mem_pct": 58,
    }  # fmt: skip


def chassis(vehicle: Vehicle) -> Fields:
    """Return the fields of wheels, steering and brakes."""
    motion = vehicle.motion
    speed, lateral = motion.speed_mps * 3.6, motion.speed_mps * motion.yaw_dps / 57.3
    brake_n = min(0.0, vehicle.mass_kg * motion.accel_mps2)
    steering = max(-500.0, min(500.0, motion.yaw_dps * 14))
    return {
        "wheels": [
            {"pos": pos, "speed_kmh": round(speed, 1), "tyre_pressure_kpa": 242,
             "tyre_temp_c": round(24 + speed / 6), "pad_wear_pct": 21}
            for pos in ("FL", "FR", "RL", "RR")
        ],
        "steering": {
            "wheel_angle_deg": round(steering, 1), "front_angle_deg": round(steering / 15, 2),
        },
        "brake": {
            "pedal_pct": round(min(100.0, -brake_n / vehicle.mass_kg * 12)),
            "force_n": round(brake_n), "regen_force_n": round(brake_n * 0.65),
            "parking_engaged": vehicle.parked, "emergency_braking": False,
        },
        "accel": {"lon_mps2": round(motion.accel_mps2, 2), "lat_mps2": round(lateral, 2)},
        "rate": {"yaw_dps": round(motion.yaw_dps, 2)},
        "speed_kmh": round(speed, 1), "abs_active": False, "esc_active": False,
        "redundancy": {"steer": "full", "brake": "full"},
    }  # fmt: skip


def ad_state(vehicle: Vehicle) -> Fields:
    """Return the state of automated driving."""
    motion, stopping = vehicle.motion, vehicle.alarm.level >= 3
    lon, lat = motion.position
    return {
        "autonomy_level": vehicle.autonomy, "operation_mode": vehicle.operation,
        "in_transition": False, "autonomous_available": not stopping,
        "mrm_state": "operating" if stopping else "normal",
        "mrm_behavior": "comfortable_stop" if stopping else "none",
        "odd_status": "outside" if stopping else "inside",
        "odd_conditions": {
            "road_type": "urban", "weather": "clear",
            "illumination": "tunnel" if motion.in_tunnel else "day",
            "speed_limit_kmh": round(motion.limit_mps * 3.6),
        },
        "route_state": "unset" if vehicle.parked else "set",
        "motion_state": "moving" if motion.speed_mps > 0 else "stopped",
        "localization_state": "initialized",
        "position": {
            "lon": round(lon, 7), "lat": round(lat, 7), "heading_deg": round(motion.heading_deg, 2),
        },
        "crs": "WGS84", "speed_kmh": round(motion.speed_mps * 3.6, 1),
        "yaw_rate_dps": round(motion.yaw_dps, 2), "accel_lon_mps2": round(motion.accel_mps2, 2),
        "steering_deg": round(max(-500.0, min(500.0, motion.yaw_dps * 14)), 1),
        "model": {**_MODEL, "latency_ms_p50": 31.5, "latency_ms_p99": 48, "fps": 20},
        "hmi": {
            "hands_on": vehicle.driven, "hands_off_stage": 0, "eyes_off_stage": 0,
            "locked_out": stopping,
        },
        "warnings": ["forward_collision"] if motion.accel_mps2 < -2.5 else [],
        "exposure": _exposure(vehicle),
    }  # fmt: skip


def _exposure(vehicle: Vehicle) -> Fields:
    """Return how far and how long it drove itself: a third of its way, nearly all in the city."""
    far_km = vehicle.odometer_km / 3
    return {
        "automated_km": round(far_km), "automated_h": round(far_km / 30),
        "by_road_type": [{"road_type": "urban", "automated_km": round(far_km * 0.9)}],
    }  # fmt: skip


def ad_event(vehicle: Vehicle) -> Fields:
    """Return a reference to a recording that a model may learn from."""
    return capture(vehicle, "scheduled")


def capture(vehicle: Vehicle, trigger: str) -> Fields:
    """Return the event of a recording, by reference only."""
    number = vehicle.random.randrange(16**8)
    return _event(vehicle, "data_capture") | {
        "capture": {
            "clip_id": f"{vehicle.name}-{number:08x}", "trigger": trigger,
            "sensors": ["cam_front", "lidar_top"], "duration_s": 30, "bytes": 1_873_741_824,
            "sha256": f"{number:064x}", "storage_uri": f"clips/{vehicle.name}-{number:08x}",
            "anonymised": True, "upload_state": "queued",
        },
    }  # fmt: skip


def collision_warning(vehicle: Vehicle) -> Fields:
    """Return the event that the driver is warned of a collision."""
    return _event(vehicle, "forward_collision_warning")


def minimum_risk(vehicle: Vehicle) -> Fields:
    """Return the event that the vehicle brings itself to a stop."""
    more = {"reason": "system_fault", "initiator": "av_system", "ads_sw_version": "ads-7.3.1"}
    return _event(vehicle, "minimum_risk_manoeuvre") | more


def _event(vehicle: Vehicle, event: str) -> Fields:
    lon, lat = vehicle.motion.position
    return {
        "event": event, "occurred_at": text(vehicle.clock), "order": 0,
        "speed_kmh": round(vehicle.motion.speed_mps * 3.6, 1),
        "position": {"lon": round(lon, 6), "lat": round(lat, 6)}, "crs": "WGS84", "model": _MODEL,
    }  # fmt: skip


def health(vehicle: Vehicle) -> Fields:
    """Return the state of chips and sensors; chips are busier at higher speed."""
    busy = 35 + vehicle.motion.speed_mps * 1.6
    return {
        "ecus": [
            {"name": name, "slot": "Central", "temperature_c": round(40 + busy / 2, 1),
             "cpu_pct": round(busy, 1), "mem_pct": 61, "npu_pct": round(min(100, busy * 1.2), 1),
             "can_ok": True, "alive_ok": True, "watchdog_ok": True, "throttled": False}
            for name in ("ad-soc-0", "cockpit-soc")
        ],
        "sensors": [
            {"id": "cam_front", "kind": "camera", "state": "ok", "rate_hz": 30, "drop_pct": 0},
            {"id": "gnss_0", "kind": "gnss", "rate_hz": 10, "snr_db": 41,
             "state": "blocked" if vehicle.motion.in_tunnel else "ok"},
        ],
        "os": {"name": "vehicle-os", "version": "3.2.0", "security_patch": "2026-10-05"},
        "ota": {"state": "idle", "progress_pct": 0},
    }  # fmt: skip


def safety(vehicle: Vehicle) -> Fields:
    """Return a safety message: nearly always a BSM; a bus also asks for its lights."""
    count = vehicle.next_seq("bsm")
    if vehicle.kind == "bus" and count % 4 == 1:
        return _head(vehicle, "SRM") | {"requests": [{
            "region": 31, "intersection_id": 101, "request_id": count % 256,
            "requester_id": vehicle.pseudonym, "kind": "request",
        }]}  # fmt: skip
    if count % 16 == 1:
        return _head(vehicle, "CAM") | {"road_user": "bus" if vehicle.kind == "bus" else _CAR}
    return _head(vehicle, "BSM") | _bsm(vehicle, count)


def hazard(vehicle: Vehicle) -> Fields:
    """Return the warning that it stands where nobody expects it (cause 94: stationary vehicle)."""
    return _head(vehicle, "DENM") | {"hazard": {"cause_code": 94, "validity_s": 60}}


def _head(vehicle: Vehicle, msg_type: str) -> Fields:
    """Return what safety messages have in common."""
    motion = vehicle.motion
    lon, lat = motion.position
    return {
        "msg_type": msg_type, "id": vehicle.pseudonym, "crs": "WGS84",
        "lat": round(lat, 7), "lon": round(lon, 7), "speed_mps": round(motion.speed_mps, 2),
        "heading_deg": round(motion.heading_deg, 4) % 360,
    }  # fmt: skip


def _bsm(vehicle: Vehicle, count: int) -> Fields:
    motion = vehicle.motion
    braking = motion.accel_mps2 < -0.5
    return {
        "msg_cnt": count % 128, "elevation_m": 4.0,
        "sec_mark_ms": vehicle.clock.second * 1000 + vehicle.clock.microsecond // 1000,
        "accel": {"lon": round(motion.accel_mps2, 2)}, "yaw_rate_dps": round(motion.yaw_dps, 2),
        "size": {"width_cm": 189, "length_cm": 468, "height_cm": 145},
        "transmission": "P" if vehicle.parked else "fwd", "vehicle_class": vehicle.vehicle_class,
        "events": [0] if vehicle.alarm.level >= 3 else [],
        "accuracy": {"semi_major_m": 1.5, "semi_minor_m": 1.1, "orientation_deg": 0.0},
        "brakes": {"applied": list(_WHEELS) if braking else [], "abs": "on", "scs": "on"},
        "path_prediction": {"radius_m": _radius_m(vehicle), "confidence_pct": 80},
    }  # fmt: skip


def _radius_m(vehicle: Vehicle) -> float:
    """Return the radius of the curve that it drives; 0 is straight on."""
    turning = abs(vehicle.motion.yaw_dps) > 1
    radius = vehicle.motion.speed_mps / vehicle.motion.yaw_dps * 57.3 if turning else 0.0
    return round(max(-3_276.7, min(3_276.7, radius)), 1)


SAY: dict[str, Callable[[Vehicle], Fields]] = {
    "battery": battery, "alarm": alarm, "session": heartbeat, "cockpit": cockpit,
    "chassis": chassis, "ad-state": ad_state, "ad-event": ad_event, "health": health, "v2x": safety,
}  # fmt: skip
