"""A roadside unit: it does not move, sees who passes, and reports what the lights show."""

from __future__ import annotations

from datetime import datetime
from random import Random
from typing import Any, ClassVar

from ingest.lab.fleet import city
from ingest.lab.fleet.device import Device

_TYPES = (
    "RSM", "SPAT", "SPAT", "RSM", "STATUS", "MAP", "RSI", "SPAT", "CPM", "SPAT", "PSM", "SSM",
)  # fmt: skip


class RoadsideUnit(Device):
    """A roadside unit at a crossing."""

    kind = "rsu"
    weights: ClassVar[dict[str, int]] = {"v2x": 90, "session": 3, "health": 3}

    def __init__(self, name: str, random: Random, now: datetime) -> None:
        super().__init__(name, random, now)
        self.node = (random.randrange(1, city.SIZE - 1), random.randrange(1, city.SIZE - 1))
        self.began = now
        self._turn = random.randrange(len(_TYPES))
        # [metres along the street, metres per second]; a passer past 60 m goes on at -60 m.
        self._passers = [[random.uniform(-60, 60), random.choice([1.3, 8.0, 12.0])]
                         for _ in range(random.randint(2, 9))]  # fmt: skip

    def step(self, seconds: float) -> None:
        """See Device."""
        for passer in self._passers:
            passer[0] += passer[1] * seconds
            if passer[0] > 60:
                passer[0] -= 120

    def say(self, stream: str) -> dict[str, Any]:
        """See Device."""
        if stream == "session":
            return {"event": "heartbeat", "network": "ethernet", "kind": self.kind, "region": "cn"}
        if stream == "health":
            return {"sensors": [{"id": "radar_n", "kind": "radar", "state": "ok", "rate_hz": 20}]}
        self._turn = (self._turn + 1) % len(_TYPES)
        msg_type = _TYPES[self._turn]
        head = {"msg_type": msg_type, "rsu_id": self.name, "crs": "WGS84"}
        say = {
            "RSM": self._rsm, "SPAT": self._spat, "MAP": self._map, "RSI": self._rsi,
            "CPM": self._rsm, "PSM": self._psm, "SSM": self._ssm,
        }  # fmt: skip
        return head | say.get(msg_type, self._status)()

    def _at(self, east_m: float = 0.0, north_m: float = 0.0) -> dict[str, float]:
        x, y = self.node[0] * city.BLOCK_M, self.node[1] * city.BLOCK_M
        lon, lat = city.position(x + east_m, y + north_m)
        return {"lat": round(lat, 7), "lon": round(lon, 7)}

    def _rsm(self) -> dict[str, Any]:
        return self._at() | {"participants": [
            {"ptc_type": 3 if speed < 2 else 1, "ptc_id": number, "source": 3,
             "pos": self._at(east_m=along, north_m=4 if speed < 2 else -2),
             "speed_mps": speed, "heading_deg": 90, "confidence": 12}
            for number, (along, speed) in enumerate(self._passers)
        ]}  # fmt: skip

    def _spat(self) -> dict[str, Any]:
        now_s = self.clock.timestamp()
        phases = []
        for number, along_x in enumerate((True, False), 1):
            light = city.signal(self.node, along_x, now_s)
            phases.append({"id": number, "state": light.state, "min_end_s": round(light.left_s, 1),
                           "likely_end_s": round(light.left_s, 1)})  # fmt: skip
        minute = self.clock.timetuple().tm_yday - 1
        moy = (minute * 24 + self.clock.hour) * 60 + self.clock.minute
        return {"moy": moy, "sec_mark_ms": self.clock.second * 1000, "intersections": [
            {"region": 31, "id": self.node[0] * 100 + self.node[1], "phases": phases}
        ]}  # fmt: skip

    def _map(self) -> dict[str, Any]:
        links = [
            {"name": f"{x}-{y}", "upstream_id": x * 100 + y, "width_cm": 350,
             "speed_limit_mps": round(city.limit_mps((x, y), self.node), 2),
             "points": [self._at((x - self.node[0]) * 100, (y - self.node[1]) * 100), self._at()],
             "lanes": [{"id": 1, "phase_id": 1 if y == self.node[1] else 2, "maneuvers": 7,
                        "width_cm": 350, "points": [
                            self._at((x - self.node[0]) * 100, (y - self.node[1]) * 100 + 2),
                            self._at(north_m=2)]}]}
            for x, y in city.neighbours(self.node)
        ]  # fmt: skip
        number = self.node[0] * 100 + self.node[1]
        return {"nodes": [{"region": 31, "id": number, "name": f"{self.node[0]}-{self.node[1]}",
                           "pos": self._at(), "links": links}]}  # fmt: skip

    def _rsi(self) -> dict[str, Any]:
        works = {"rte_id": 1, "event_type": 513, "event_types": [513, 770], "source": 1}
        return {
            "rtss": [{"rts_id": 1, "sign_type": 38, "pos": self._at(east_m=-40)}],
            "rtes": [works | {"pos": self._at(east_m=80)}],
        }

    def _psm(self) -> dict[str, Any]:
        """Say where a pedestrian is, who carries no device."""
        along, speed = min(self._passers, key=lambda passer: passer[1])
        return self._at(east_m=along, north_m=4) | {
            "id": f"ped-{self.name}", "road_user": "pedestrian", "speed_mps": speed,
            "heading_deg": 90.0,
            "accuracy": {"semi_major_m": 1.0, "semi_minor_m": 0.6, "orientation_deg": 0.0},
        }  # fmt: skip

    def _ssm(self) -> dict[str, Any]:
        """Answer a bus that asked for its light."""
        number = self.node[0] * 100 + self.node[1]
        return {"request_states": [
            {"region": 31, "intersection_id": number, "request_id": 1, "state": "granted"}
        ]}  # fmt: skip

    def _status(self) -> dict[str, Any]:
        uptime = (self.clock - self.began).total_seconds()
        return {
            "cpu": 31, "mem": 48, "disk": 20, "temp": 41.5, "online": True, "uptime": round(uptime),
            "fw": "2.8.1", "gnss_fix": "rtk_fixed", "sync_ns": round(self.random.gauss(0, 30)),
            "devices": [{"id": "cam-1", "kind": "camera", "state": "ok"}],
        }  # fmt: skip
