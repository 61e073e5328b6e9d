"""A seeded fleet of new energy vehicles: the same seed, the same vehicles, the same messages.

What a vehicle says belongs together: speed moves it and drains the battery, cells follow the state
of charge, torque follows acceleration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

import orjson

STREAMS = ("nev", "battery", "alarm", "session")
_WEIGHTS = {"nev": 80, "battery": 12, "alarm": 4, "session": 4}
"""Messages of each stream in a hundred; vehicles report `nev` far more often than the rest."""
_CELLS = 96
_METRES_PER_DEGREE = 111_320.0
_KWH_PER_KM = 0.16
_PACK_KWH = 60.0
_CENTRE = (121.4737, 31.2304)
_LATE = timedelta(hours=6)


class Message(NamedTuple):
    """One PUBLISH to come."""

    topic: str
    payload: bytes
    samples: int
    kind: str = "good"
    """`good`, `bad`, `duplicate` or `late`."""


class Mischief(NamedTuple):
    """Shares of the messages, from 0 to 1, that are not as they should be."""

    bad: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0


@dataclass
class Vehicle:
    """One car; `step` lets time pass for it."""

    device: str
    random: Random
    speed_kmh: float = 0.0
    odometer_km: float = 0.0
    soc_pct: float = 0.0
    lon: float = 0.0
    lat: float = 0.0
    heading_deg: float = 0.0
    accel_mps2: float = 0.0
    clock: datetime = field(default_factory=lambda: datetime.now(UTC))
    seq: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chance = self.random
        self.odometer_km = chance.uniform(500, 150_000)
        self.soc_pct = chance.uniform(30, 95)
        self.lon = _CENTRE[0] + chance.gauss(0, 0.12)
        self.lat = _CENTRE[1] + chance.gauss(0, 0.09)
        self.heading_deg = chance.uniform(0, 360)

    def step(self, seconds: float) -> None:
        """Drive on for a while."""
        before = self.speed_kmh
        wish = self.random.choice((0, 30, 50, 80, 110))
        self.speed_kmh = max(0.0, before + (wish - before) * 0.2 + self.random.gauss(0, 1.5))
        self.accel_mps2 = (self.speed_kmh - before) / 3.6 / max(seconds, 0.1)
        self.heading_deg = (self.heading_deg + self.random.gauss(0, 6)) % 360
        metres = self.speed_kmh / 3.6 * seconds
        angle = math.radians(self.heading_deg)
        self.lat += metres * math.cos(angle) / _METRES_PER_DEGREE
        self.lon += metres * math.sin(angle) / _METRES_PER_DEGREE / math.cos(math.radians(self.lat))
        self.odometer_km += metres / 1000
        self.soc_pct -= metres / 1000 * _KWH_PER_KM / _PACK_KWH * 100
        if self.soc_pct < 10:  # noqa: PLR2004  it was charged over night
            self.soc_pct = 90.0

    def sample(self, stream: str, ts: datetime) -> dict[str, Any]:
        """What it says on a stream at `ts`."""
        self.seq[stream] = seq = self.seq.get(stream, -1) + 1
        head = {"ts": ts.isoformat(timespec="milliseconds").replace("+00:00", "Z"), "seq": seq}
        match stream:
            case "nev":
                return head | self._nev()
            case "battery":
                return head | self._battery()
            case "alarm":
                low = self.soc_pct < 15  # noqa: PLR2004
                return head | {"max_level": int(low), "flags": ["soc_low"] if low else []}
            case _:
                return head | {"event": "heartbeat", "network": "cellular"}

    def _power(self) -> tuple[float, float]:
        """Pack voltage and current; the current is positive while it discharges."""
        volts = 320 + self.soc_pct * 0.6
        kilowatts = self.speed_kmh * _KWH_PER_KM + self.accel_mps2 * self.speed_kmh * 0.45
        return volts, max(-300.0, min(400.0, kilowatts * 1000 / volts))

    def _nev(self) -> dict[str, Any]:
        volts, amperes = self._power()
        generating = amperes < 0
        return {
            "status": "started", "charge_status": "not_charging", "run_mode": "ev",
            "speed_kmh": round(self.speed_kmh, 1), "odometer_km": round(self.odometer_km, 1),
            "pack_voltage_v": round(volts, 1), "pack_current_a": round(amperes, 1),
            "soc_pct": round(self.soc_pct), "dcdc": "working",
            "gear": "D" if self.speed_kmh > 0 else "P",
            "drive_force": not generating, "brake_force": generating, "insulation_kohm": 8000,
            "motors": [{
                "no": 1, "state": "generating" if generating else "consuming",
                "controller_temp_c": round(35 + self.speed_kmh / 8),
                "temp_c": round(40 + self.speed_kmh / 6),
                "speed_rpm": round(self.speed_kmh * 90),
                "torque_nm": round(amperes * 0.9, 1),
                "input_v": round(volts, 1), "dc_current_a": round(amperes, 1),
            }],
            "location": {
                "valid": True, "lon": round(self.lon, 6), "lat": round(self.lat, 6),
                "heading_deg": round(self.heading_deg, 1),
            },
            "crs": "WGS84",
        }  # fmt: skip

    def _battery(self) -> dict[str, Any]:
        volts, amperes = self._power()
        cell = volts / _CELLS
        return {
            "packs": [{
                "no": 1, "voltage_v": round(volts, 1), "current_a": round(amperes, 1),
                "total_cells": _CELLS, "start_index": 1, "chemistry_code": "04",
                "cell_v": [round(cell + self.random.gauss(0, 0.004), 3) for _ in range(_CELLS)],
                "probe_temps_c": [round(27 + self.random.gauss(0, 1)) for _ in range(8)],
                "soh_pct": 96.5,
            }],
        }  # fmt: skip


_BAD = (
    lambda sample: sample | {"ts": "2032-90-02T12:00:00Z"},
    lambda sample: {k: v for k, v in sample.items() if k != "ts"},
    lambda sample: sample | {"seq": -1},
    lambda sample: sample | {"quality": "good"},
)


class Fleet:
    """Devices that take turns; `message` is the next thing any of them says."""

    def __init__(
        self,
        devices: int,
        seed: int,
        streams: Sequence[str] = STREAMS,
        samples_per_message: int = 1,
        mischief: Mischief | None = None,
    ) -> None:
        self._random = Random(seed)
        self._vehicles = [
            Vehicle(f"sim-{seed}-{number:06d}", Random(seed * 1_000_003 + number))
            for number in range(devices)
        ]
        self._turn = 0
        self._streams = tuple(streams)
        self._weights = [_WEIGHTS[stream] for stream in streams]
        self._samples = samples_per_message
        self._mischief = mischief or Mischief()
        self._last: Message | None = None

    def message(self, now: datetime) -> Message:
        """The next message, its samples up to `now`."""
        chance, mischief = self._random.random(), self._mischief
        if self._last is not None and chance < mischief.duplicate:
            return self._last._replace(kind="duplicate")
        bad = chance < mischief.duplicate + mischief.bad
        late = not bad and self._random.random() < mischief.late
        vehicle = self._vehicles[self._turn]
        self._turn = (self._turn + 1) % len(self._vehicles)
        stream = self._random.choices(self._streams, self._weights)[0]
        samples = self._drive(vehicle, stream, now - _LATE if late else now)
        if bad:
            samples = [self._random.choice(_BAD)(sample) for sample in samples]
        if late:
            samples = [sample | {"resend": True} for sample in samples]
        payload = orjson.dumps(samples[0] if self._samples == 1 else samples)
        kind = "bad" if bad else "late" if late else "good"
        message = Message(f"iov/v1/{vehicle.device}/{stream}", payload, self._samples, kind)
        if not bad:
            self._last = message
        return message

    def _drive(self, vehicle: Vehicle, stream: str, until: datetime) -> list[dict[str, Any]]:
        vehicle.step(max(0.1, min(10.0, (until - vehicle.clock).total_seconds())))
        vehicle.clock = until
        step = timedelta(milliseconds=100)
        count = self._samples
        return [vehicle.sample(stream, until - step * (count - 1 - n)) for n in range(count)]
