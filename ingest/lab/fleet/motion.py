"""Motion through the city: along streets, slower at turns, stopping at red lights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

from ingest.lab.fleet import city

_TURN_MPS = 4.5
_BRAKE_MPS2 = 2.0
_LINE_M, _COMMITTED_M = 8.0, 4.0
"""Metres before a crossing: the stop line, and the point after which it no longer stops."""
_CREEP_MPS = 0.4
"""Speed below which it stands still."""
_HEADING_DPS = 30.0


@dataclass
class Motion:
    """Position and movement; `step` lets time pass."""

    random: Random
    top_mps: float
    """Highest speed, whatever the limit."""
    pull_mps2: float
    """Highest acceleration."""
    goes: bool = True
    """False while it stays where it is, or comes to a stop."""
    speed_mps: float = 0.0
    accel_mps2: float = 0.0
    yaw_dps: float = 0.0
    """Positive to the left."""
    travelled_m: float = 0.0
    start: city.Node = field(init=False)
    end: city.Node = field(init=False)
    after: city.Node = field(init=False)
    along_m: float = 0.0
    heading_deg: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = (self.random.randrange(city.SIZE), self.random.randrange(city.SIZE))
        self.end = self.random.choice(city.neighbours(self.start))
        self.after = city.next_node(self.random, self.start, self.end)
        self.along_m = self.random.uniform(0, city.BLOCK_M * 0.8)
        self.heading_deg = self._street_deg()

    @property
    def in_tunnel(self) -> bool:
        """True while it is in a tunnel, where there is no radio."""
        return city.is_tunnel(self.start, self.end)

    @property
    def metres(self) -> tuple[float, float]:
        """Metres east and north of the first crossing."""
        share = self.along_m / city.BLOCK_M
        (ax, ay), (bx, by) = self.start, self.end
        return (ax + (bx - ax) * share) * city.BLOCK_M, (ay + (by - ay) * share) * city.BLOCK_M

    @property
    def position(self) -> tuple[float, float]:
        """(longitude, latitude)."""
        return city.position(*self.metres)

    @property
    def limit_mps(self) -> float:
        """Speed limit of the street, or `top_mps` if that is lower."""
        return min(self.top_mps, city.limit_mps(self.start, self.end))

    def step(self, seconds: float, at_s: float) -> None:
        """Move on for up to a second or so; `at_s` is the clock of the lights."""
        before = self.speed_mps
        wish = self._wish_mps(at_s)
        change = max(-3.0 * seconds, min(self.pull_mps2 * seconds, wish - before))
        self.speed_mps = max(0.0, before + change)
        self.accel_mps2 = (self.speed_mps - before) / seconds
        moved = (before + self.speed_mps) / 2 * seconds
        self.travelled_m += moved
        self.along_m += moved
        while self.along_m >= city.BLOCK_M:
            self.along_m -= city.BLOCK_M
            self.start, self.end = self.end, self.after
            self.after = city.next_node(self.random, self.start, self.end)
        self._turn(seconds)

    def _wish_mps(self, at_s: float) -> float:
        if not self.goes:
            return 0.0
        left_m = max(0.0, city.BLOCK_M - _LINE_M - self.along_m)
        along_x = self.start[1] == self.end[1]
        straight = self._street_deg() == _bearing(self.end, self.after)
        at_line = self.limit_mps if straight else min(self.limit_mps, _TURN_MPS)
        # Within _COMMITTED_M of the crossing it drives on; at yellow, within 25 m of the line.
        light = city.signal(self.end, along_x, at_s).state
        stops = light == "stop_and_remain" or (light == "clearance_prot" and left_m > 25)
        if stops and self.along_m < city.BLOCK_M - _COMMITTED_M:
            at_line = 0.0
            # A step is up to a second: stop before the line, not with the step that crosses it.
            left_m = max(0.0, left_m - self.speed_mps)
        wish = min(self.limit_mps, math.sqrt(at_line**2 + 2 * _BRAKE_MPS2 * left_m))
        return wish if wish >= _CREEP_MPS else 0.0

    def _street_deg(self) -> float:
        return _bearing(self.start, self.end)

    def _turn(self, seconds: float) -> None:
        off = (self._street_deg() - self.heading_deg + 180) % 360 - 180
        turned = max(-_HEADING_DPS * seconds, min(_HEADING_DPS * seconds, off))
        if self.speed_mps == 0:
            turned = 0.0
        self.heading_deg = (self.heading_deg + turned) % 360
        self.yaw_dps = -turned / seconds


def _bearing(start: city.Node, end: city.Node) -> float:
    """Return the direction in degrees clockwise from north."""
    return {(1, 0): 90.0, (0, 1): 0.0, (-1, 0): 270.0, (0, -1): 180.0}[
        end[0] - start[0], end[1] - start[1]
    ]
