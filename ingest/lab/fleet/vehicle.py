"""A battery-electric vehicle: motion, battery, trips and alarms that belong together.

It knows physics only. When something happens it calls a hook; a subclass (`car`) publishes there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import ClassVar, NamedTuple
from zlib import crc32

from ingest.lab.fleet.battery import CHEMISTRIES, Battery
from ingest.lab.fleet.device import Device
from ingest.lab.fleet.motion import Motion
from ingest.schema.vin import check_digit_agrees

BURST_S = 30
"""Seconds before and after a level 3 alarm that are sent once a second (GB/T 32960.3, 5.2)."""
_AIR_DENSITY, _GRAVITY, _ROLLING = 1.2, 9.81, 0.010
_LEVEL_2_PER_S, _LEVEL_3_PER_S = 1 / 1800, 1 / 3600
_CHARGE_BELOW_PCT = 60
_CHARGED_PCT = 80
_SOC_LOW_PCT = 15
_RANGE_KM = 400.0
"""Distance that a full battery is good for."""
_HARD_BRAKING_MPS2 = -2.9


class VehicleState(NamedTuple):
    """State of a vehicle at one moment: everything that its `nev` samples contain."""

    at: datetime
    speed_kmh: float
    accel_mps2: float
    odometer_km: float
    position: tuple[float, float]
    heading_deg: float
    soc_pct: float
    range_km: float
    voltage_v: float
    current_a: float
    torque_nm: float
    motor_c: float
    charging: bool
    parked: bool


@dataclass
class Alarm:
    """Alarm of a vehicle right now; level 0 is no alarm."""

    level: int = 0
    flags: list[str] = field(default_factory=list)
    codes: dict[str, list[str]] = field(default_factory=dict)
    raised_at: datetime | None = None
    until: datetime | None = None
    """Time when its condition clears."""


def _vin(name: str) -> str:
    """Return a Chinese VIN that no vehicle has, with a correct check digit."""
    number = int("".join(filter(str.isdigit, name)) or 0) % 10**8
    plain = f"LZZSM000{{}}{number:08d}"
    return next(v for d in "0123456789X" if check_digit_agrees(v := plain.format(d)))


class Vehicle(Device):
    """A battery-electric vehicle; a subclass publishes for it."""

    kind: ClassVar[str] = "car"
    weights: ClassVar[dict[str, int]] = {
        "nev": 58, "battery": 8, "alarm": 3, "session": 3, "ad-state": 6, "ad-event": 1,
        "health": 3, "chassis": 6, "cockpit": 3, "v2x": 5, "gbt32960": 4,
    }  # fmt: skip
    held_stream: ClassVar[str | None] = "nev"
    driven: ClassVar[bool] = True
    """True if a person drives it."""
    run_mode: ClassVar[str] = "ev"
    autonomy: ClassVar[str] = "SAE_2"
    operation: ClassVar[str] = "local"
    vehicle_class: ClassVar[int] = 10
    mass_kg: ClassVar[float] = 1_900.0
    drag_m2: ClassVar[float] = 0.62
    wheel_m: ClassVar[float] = 0.33
    ratio: ClassVar[float] = 9.0
    cells: ClassVar[int] = 96
    capacity_ah: ClassVar[float] = 160.0
    top_mps: ClassVar[float] = 33.0
    pull_mps2: ClassVar[float] = 2.2

    def __init__(self, name: str, random: Random, now: datetime) -> None:
        super().__init__(name, random, now)
        self.motion = Motion(random, self.top_mps, self.pull_mps2)
        chemistry = random.choice(CHEMISTRIES)
        soc = random.uniform(25, 95)
        self.battery = Battery(random, chemistry, self.cells, self.capacity_ah, soc)
        self.odometer_km = random.uniform(500, 150_000)
        self.battery.drawn_ah = self.odometer_km * self.capacity_ah / _RANGE_KM
        self.motor_c = 30.0
        self.charging = False
        self.alarm = Alarm()
        self.trips = 0
        self.trip_left_m = random.uniform(1_000, 10_000)
        self.parked_until: datetime | None = None
        self.history: deque[VehicleState] = deque(maxlen=BURST_S)
        self.burst_until: datetime | None = None
        self.vin = _vin(name)
        self.charges_slowly = crc32(self.vin.encode()) % 3 == 0
        """True if it is charged with alternating current."""
        self.state: VehicleState = self._state(0.0)

    @property
    def pseudonym(self) -> str:
        """Identifier in its safety messages, a new one on every trip."""
        return f"{crc32(self.trip_id.encode()):08x}{crc32(self.vin.encode(), self.trips):08x}"

    @property
    def trip_id(self) -> str:
        """Identifier of the current trip, or of the last one."""
        return f"{self.name}-{self.trips}"

    @property
    def charge_kw(self) -> float:
        """Power with which it is charged."""
        return 11.0 if self.charges_slowly else 55.0

    @property
    def parked(self) -> bool:
        """True while it stands, switched off."""
        return self.parked_until is not None

    @property
    def reachable(self) -> bool:
        """See Device."""
        return not self.motion.in_tunnel

    def step(self, seconds: float) -> None:
        """See Device."""
        in_tunnel = self.motion.in_tunnel
        arrives = self.trip_left_m <= 0 and not in_tunnel
        self.motion.goes = not (self.parked or arrives or self.alarm.level >= 3)
        before_m = self.motion.travelled_m
        self.motion.step(seconds, self.clock.timestamp())
        moved_m = self.motion.travelled_m - before_m
        self.odometer_km += moved_m / 1000
        torque = self._drive(seconds)
        self._trip(moved_m)
        self.state = self._state(torque)
        self._watch_alarms(seconds)

    def each_second(self) -> None:
        """See Device; also call the hooks for a burst that goes on and for hard braking."""
        super().each_second()
        self.history.append(self.state)
        if self.burst_until is not None:
            if self.reachable:
                self.alarm_goes_on()
            if self.clock >= self.burst_until:
                self.burst_until = None
        if self.motion.accel_mps2 < _HARD_BRAKING_MPS2:
            self.braked_hard()

    def trip_began(self) -> None:
        """Take note (a hook) of a new destination."""

    def trip_ended(self) -> None:
        """Take note (a hook) that it has arrived, and is switched off."""

    def alarm_raised(self, before: list[VehicleState]) -> None:
        """Take note (a hook) of an alarm; of level 3, with the states `before` it."""

    def alarm_goes_on(self) -> None:
        """Take note (a hook) of one more second of the burst after a level 3 alarm."""

    def alarm_cleared(self) -> None:
        """Take note (a hook) that the current alarm is over."""

    def braked_hard(self) -> None:
        """Take note (a hook) that it is braking hard."""

    def _drive(self, seconds: float) -> float:
        """Draw power from the battery, or charge it; return the motor's torque in N·m."""
        motion, speed = self.motion, self.motion.speed_mps
        force = self.mass_kg * motion.accel_mps2
        if speed > 0:
            force += self.mass_kg * _GRAVITY * _ROLLING
            force += 0.5 * _AIR_DENSITY * self.drag_m2 * speed**2
        watts = force * speed
        watts = watts / 0.9 if watts > 0 else watts * 0.65
        heat_w = 60_000.0 if self.alarm.level >= 3 else 0.0
        if self.charging:
            self.battery.step(seconds, -1_000 * self.charge_kw, heat_w)
        else:
            self.battery.step(seconds, watts + (150 if self.parked else 900), heat_w)
        self.motor_c += (25 + abs(watts) / 1200 - self.motor_c) * min(1.0, seconds / 240)
        return force * self.wheel_m / self.ratio if speed > 0 else 0.0

    def _trip(self, moved_m: float) -> None:
        """End a trip, charge, begin the next."""
        self.trip_left_m -= moved_m
        if self.parked_until is not None:
            if self.charging and self.battery.soc_pct >= _CHARGED_PCT:
                self.charging = False
            if self.clock >= self.parked_until and not self.charging:
                self.parked_until = None
                self.trip_left_m = self.random.uniform(2_000, 12_000)
                self.trips += 1
                self.trip_began()
        elif self.trip_left_m <= 0 and self.motion.speed_mps == 0 and self.reachable:
            self.parked_until = self.clock + timedelta(seconds=self.random.uniform(120, 480))
            self.charging = self.battery.soc_pct < _CHARGE_BELOW_PCT
            self.trip_ended()

    def _watch_alarms(self, seconds: float) -> None:
        if self.alarm.until is not None and self.clock >= self.alarm.until:
            self.alarm_cleared()
            self.alarm = Alarm()
        if self.alarm.level == 0:
            chance = self.random.random()
            if chance < _LEVEL_3_PER_S * seconds:
                self.raise_alarm(3, ["battery_high_temp"], {"ress": ["0x00000A21"]})
            elif chance < (_LEVEL_3_PER_S + _LEVEL_2_PER_S) * seconds:
                self.raise_alarm(2, [self.random.choice(["brake_system", "insulation"])], {})
            elif self.battery.soc_pct < _SOC_LOW_PCT:
                self.raise_alarm(1, ["soc_low"], {})

    def raise_alarm(self, level: int, flags: list[str], codes: dict[str, list[str]]) -> None:
        """Raise an alarm; at level 3, the `BURST_S` seconds before and after it are sent too."""
        until = self.clock + timedelta(seconds=self.random.uniform(40, 120))
        self.alarm = Alarm(level, flags, codes, self.clock, until)
        if level >= 3:
            self.burst_until = self.clock + timedelta(seconds=BURST_S)
        self.alarm_raised(list(self.history) if level >= 3 else [])

    def _state(self, torque_nm: float) -> VehicleState:
        motion, battery = self.motion, self.battery
        return VehicleState(
            self.clock, motion.speed_mps * 3.6, motion.accel_mps2, self.odometer_km,
            motion.position, motion.heading_deg, battery.soc_pct, battery.soc_pct * _RANGE_KM / 100,
            battery.voltage_v, battery.current_a, torque_nm, self.motor_c,
            self.charging, self.parked,
        )  # fmt: skip
