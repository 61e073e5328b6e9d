"""The kinds of devices besides cars and roadside units: buses, robotaxis, trucks, robots."""

from __future__ import annotations

from datetime import datetime
from random import Random
from typing import Any, ClassVar

from ingest.lab.fleet.battery import CHEMISTRIES, Battery
from ingest.lab.fleet.car import Car
from ingest.lab.fleet.device import Device
from ingest.lab.fleet.motion import Motion
from ingest.lab.fleet.vehicle import VehicleState


class Bus(Car):
    """A city bus with a fuel cell beside its battery."""

    kind = "bus"
    mass_kg = 14_500.0
    drag_m2 = 5.2
    wheel_m = 0.48
    cells = 168
    capacity_ah = 120.0
    top_mps = 19.0
    pull_mps2 = 1.1
    vehicle_class = 54

    run_mode = "hybrid"

    def nev(self, state: VehicleState) -> dict[str, Any]:
        """Say what a car says, and how its fuel cell is now."""
        amperes = round(0.0 if self.parked else 60 + max(0.0, self.battery.current_a) / 4, 1)
        return super().nev(state) | {"fuel_cell": {
            "voltage_v": 312.4, "current_a": amperes, "h2_rate_kg_100km": 5.6,
            "probe_temps_c": [61, 62, 60], "h2_max_temp_c": 38.0, "h2_max_temp_probe": 1,
            "h2_max_conc_mgkg": 12, "h2_max_conc_sensor": 2, "h2_max_pressure_mpa": 33.1,
            "h2_max_pressure_sensor": 1, "hv_dcdc": "off" if self.parked else "working",
        }}  # fmt: skip


class Robotaxi(Car):
    """A taxi without a driver."""

    kind = "robotaxi"
    weights: ClassVar[dict[str, int]] = {**Car.weights, "mobility": 12, "ad-state": 14}
    autonomy = "SAE_4"
    operation = "autonomous"
    driven = False

    def say(self, stream: str) -> dict[str, Any]:
        """See Device."""
        return self.mobility() if stream == "mobility" else super().say(stream)

    def mobility(self, event: str | None = None) -> dict[str, Any]:
        """Return state, trip and telemetry."""
        motion, riding = self.motion, not self.parked
        lon, lat = motion.position
        stopped = riding and motion.speed_mps == 0 and self.alarm.level >= 3
        fields: dict[str, Any] = {
            "service": "robotaxi",
            "state": "stopped" if stopped else "on_trip" if riding else "available",
            "position": {
                "lat": round(lat, 6), "lon": round(lon, 6), "speed_mps": round(motion.speed_mps, 2),
                "heading_deg": round(motion.heading_deg, 1), "horizontal_accuracy_m": 0.6,
                "satellites": 19,
            },
            "battery_pct": round(self.battery.soc_pct), "passengers": 2 if riding else 0,
            "door_state": "closed", "remote_assist": {"active": stopped}, "crs": "WGS84",
        }  # fmt: skip
        if riding or event == "trip_end":
            fields["trip"] = {"id": self.trip_id, "type": "private", "driver_type": "autonomous"}
        if event == "trip_start":
            fields["events"] = [event, "trip_enter_jurisdiction"]
        return fields | ({"event": event} if event else {})

    def trip_began(self) -> None:
        """See Vehicle."""
        super().trip_began()
        self.say_now("mobility", self.mobility("trip_start"))

    def trip_ended(self) -> None:
        """See Vehicle."""
        super().trip_ended()
        self.say_now("mobility", self.mobility("trip_end"))


class Truck(Device):
    """A diesel truck with a trailer: heavy, slow to accelerate, and with fuel instead of cells."""

    kind = "truck"
    held_stream = "truck"
    weights: ClassVar[dict[str, int]] = {"truck": 70, "session": 5, "health": 5}

    def __init__(self, name: str, random: Random, now: datetime) -> None:
        super().__init__(name, random, now)
        self.motion = Motion(random, 22.0, 0.5)
        self.mass_kg = random.uniform(16_000, 39_000)
        self.fuel_pct = random.uniform(30, 95)
        self.distance_m = random.uniform(2e7, 6e8)
        self.engine_h = self.distance_m / 55_000
        self.fuel_ml = self.distance_m * 0.31
        self.coolant_c = 70.0
        self.air_kpa = 850.0
        self.rested_at = now

    def step(self, seconds: float) -> None:
        """See Device."""
        motion, before = self.motion, self.motion.travelled_m
        # It drives nine minutes of every ten: the rest that driving-time laws demand, sped up.
        driven = (self.clock - self.rested_at).total_seconds() % 600
        motion.goes = driven < 540
        motion.step(seconds, self.clock.timestamp())
        moved = motion.travelled_m - before
        self.distance_m += moved
        self.engine_h += seconds / 3600
        work_j = max(0.0, self.mass_kg * (motion.accel_mps2 + 0.07)) * moved
        # A millilitre of diesel has 36 kJ, 40 % of it reach the wheels; idling takes 0.6 ml/s.
        used_ml = work_j / 14_400 + seconds * 0.6
        self.fuel_ml += used_ml
        self.fuel_pct = max(2.0, self.fuel_pct - used_ml / 6_000)
        self.coolant_c += (86 - self.coolant_c) * seconds / 300
        braking = motion.accel_mps2 < -0.5
        self.air_kpa = max(620.0, min(860.0, self.air_kpa + (-9 if braking else 4) * seconds))

    @property
    def reachable(self) -> bool:
        """See Device."""
        return not self.motion.in_tunnel

    @property
    def engine_rpm(self) -> float:
        """Engine speed within the band that a twelve-speed gearbox keeps."""
        speed = self.motion.speed_mps
        return 600.0 if speed < 1 else 950 + (speed * 137) % 550

    def say(self, stream: str) -> dict[str, Any]:
        """See Device."""
        if stream == "session":
            return {"event": "heartbeat", "network": "cellular", "kind": self.kind, "region": "cn"}
        if stream == "health":
            return {"sensors": [{"id": "radar_front", "kind": "radar", "state": "ok"}]}
        motion, kmh = self.motion, round(self.motion.speed_mps * 3.6, 1)
        lon, lat = motion.position
        return {
            "trigger": "timer", "total_distance_m": round(self.distance_m),
            "engine_hours": round(self.engine_h, 2), "fuel_used_ml": round(self.fuel_ml),
            "gross_weight_kg": round(self.mass_kg), "speed_kmh": kmh, "tacho_speed_kmh": kmh,
            "engine_rpm": round(self.engine_rpm), "fuel_level_1_pct": round(self.fuel_pct, 1),
            "def_level_pct": 63, "driver_state": "drive" if motion.goes else "rest",
            "ambient_c": 24, "parking_brake": not motion.goes and motion.speed_mps == 0,
            "coolant_c": round(self.coolant_c), "air_circuit_1_kpa": round(self.air_kpa),
            "air_circuit_2_kpa": round(self.air_kpa - 6),
            "axles": [{"position": 1, "load_kg": round(self.mass_kg * 0.25)},
                      {"position": 2, "load_kg": round(self.mass_kg * 0.33)}],
            "powertrain": self._powertrain(),
            "trailers": [{"no": 1, "id": f"{self.name}-T", "type": "semitrailer"}],
            "tell_tales": [{"name": "fuel_level", "state": "yellow"}] if self.fuel_pct < 10 else [],
            "position": {"lon": round(lon, 6), "lat": round(lat, 6), "speed_kmh": kmh,
                         "heading_deg": round(motion.heading_deg, 1)},
            "crs": "WGS84", "sw_version": "tgw-2.8",
        }  # fmt: skip

    def _powertrain(self) -> dict[str, Any]:
        """Return what the engine's control unit broadcasts (SAE J1939-71)."""
        motion = self.motion
        load = max(0.0, min(1.0, 0.15 + motion.accel_mps2 * self.mass_kg / 20_000))
        moving = motion.speed_mps > 1
        return {
            "engine_load_pct": round(load * 100), "engine_torque_pct": round(load * 90),
            "fuel_rate_l_h": round(2.2 + load * 55, 2), "accel_pedal_pct": round(load * 80, 1),
            "brake_pedal_pct": 30.0 if motion.accel_mps2 < -0.5 else 0.0,
            "gear": min(12, 1 + int(motion.speed_mps / 1.8)) if moving else 0,
            "oil_pressure_kpa": 380 if moving else 180, "oil_temp_c": round(self.coolant_c + 8),
            "supply_v": 27.9, "cruise_active": moving and abs(motion.accel_mps2) < 0.05,
            "cruise_set_kmh": 80, "dpf_state": "not_active",
            "dpf_soot_pct": round(self.distance_m / 5_000 % 90),
        }  # fmt: skip


class DeliveryRobot(Device):
    """A robot on the pavement, with a small battery and something to deliver."""

    kind = "delivery_robot"
    held_stream = "mobility"
    weights: ClassVar[dict[str, int]] = {"mobility": 80, "battery": 8, "session": 4, "health": 4}

    def __init__(self, name: str, random: Random, now: datetime) -> None:
        super().__init__(name, random, now)
        self.motion = Motion(random, 1.7, 0.8)
        self.battery = Battery(random, random.choice(CHEMISTRIES), 13, 40.0, random.uniform(30, 95))
        self.deliveries = 0
        self.kilograms = random.uniform(0.5, 12)

    @property
    def reachable(self) -> bool:
        """See Device."""
        return not self.motion.in_tunnel

    def step(self, seconds: float) -> None:
        """See Device."""
        before = self.motion.travelled_m // 900
        self.motion.step(seconds, self.clock.timestamp())
        self.battery.step(seconds, 45 + 120 * self.motion.speed_mps)
        if self.battery.soc_pct < 12:
            self.battery.soc_pct = 95.0
        if self.motion.travelled_m // 900 > before:
            self.deliveries += 1
            self.say_now("mobility", self.say("mobility") | {"event": "order_drop_off"})
            self.kilograms = self.random.uniform(0.5, 12)

    def say(self, stream: str) -> dict[str, Any]:
        """See Device."""
        pack = self.battery
        match stream:
            case "session":
                return {"event": "heartbeat", "network": "cellular", "kind": self.kind}
            case "health":
                return {"sensors": [{"id": "lidar_0", "kind": "lidar", "state": "ok"}]}
            case "battery":
                return {"packs": [{
                    "no": 1, "voltage_v": round(pack.voltage_v, 1), "total_cells": pack.cells,
                    "current_a": round(pack.current_a, 1), "cell_v": pack.cell_v,
                    "probe_temps_c": pack.probe_temps_c, "chemistry_code": pack.chemistry.code,
                }]}  # fmt: skip
        lon, lat = self.motion.position
        return {
            "service": "delivery_robot", "state": "on_trip", "location_type": "sidewalk",
            "trip": {"id": f"{self.name}-{self.deliveries}", "type": "delivery",
                     "driver_type": "autonomous"},
            "position": {"lat": round(lat, 6), "lon": round(lon, 6), "satellites": 14,
                         "speed_mps": round(self.motion.speed_mps, 2),
                         "heading_deg": round(self.motion.heading_deg, 1)},
            "battery_pct": round(pack.soc_pct), "tipped_over": False, "crs": "WGS84",
            "cargo": {"locked": True, "temp_c": 4.5, "mass_kg": round(self.kilograms, 1)},
        }  # fmt: skip
