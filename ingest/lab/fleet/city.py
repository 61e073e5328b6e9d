"""The map: a grid of streets with lights, a river, and tunnels under it."""

from __future__ import annotations

import math
from random import Random
from typing import Literal, NamedTuple

BLOCK_M = 400.0
SIZE = 16
"""Number of crossings in each direction."""
CENTRE = (121.4737, 31.2304)
RIVER = 7
"""Column of crossings west of the river, which runs between `RIVER` and `RIVER + 1`."""
_ARTERIAL = 3
"""One street in this many is an arterial; only arterials pass below the river."""
_METRES_PER_DEGREE = 111_320.0
_CYCLE_S, _GREEN_S, _YELLOW_S = 60.0, 27.0, 3.0

Node = tuple[int, int]
"""(column, row) of a crossing."""
Light = Literal["protected", "clearance_prot", "stop_and_remain"]


class Signal(NamedTuple):
    """State of a light, and the seconds until it changes."""

    state: Light
    left_s: float


def position(x_m: float, y_m: float) -> tuple[float, float]:
    """Return (longitude, latitude), WGS84, of a point in metres from the first crossing."""
    half = (SIZE - 1) * BLOCK_M / 2
    lat = CENTRE[1] + (y_m - half) / _METRES_PER_DEGREE
    return CENTRE[0] + (x_m - half) / _METRES_PER_DEGREE / math.cos(math.radians(CENTRE[1])), lat


def is_arterial(start: Node, end: Node) -> bool:
    """Return whether the street between two neighbouring crossings is an arterial."""
    return (start[1] if start[1] == end[1] else start[0]) % _ARTERIAL == 0


def is_tunnel(start: Node, end: Node) -> bool:
    """Return whether the street passes below the river."""
    return start[1] == end[1] and {start[0], end[0]} == {RIVER, RIVER + 1}


def limit_mps(start: Node, end: Node) -> float:
    """Return the speed limit of a street."""
    return (60 if is_arterial(start, end) else 40) / 3.6


def neighbours(node: Node) -> list[Node]:
    """Return the crossings one street away; only arterials cross the river."""
    x, y = node
    near = [(x + 1, y), (x, y + 1), (x - 1, y), (x, y - 1)]
    return [
        n for n in near
        if 0 <= n[0] < SIZE and 0 <= n[1] < SIZE
        and (not is_tunnel(node, n) or is_arterial(node, n))
    ]  # fmt: skip


def next_node(random: Random, before: Node, node: Node) -> Node:
    """Return a driver's next crossing: mostly straight on, back only if there is no other way."""
    straight = (2 * node[0] - before[0], 2 * node[1] - before[1])
    near = [n for n in neighbours(node) if n != before] or [before]
    return random.choices(near, [5 if n == straight else 1 for n in near])[0]


def signal(node: Node, along_x: bool, at_s: float) -> Signal:  # noqa: FBT001  one of two directions
    """Return the light of a crossing in one direction; the other is half a cycle apart."""
    offset = (node[0] * 7 + node[1] * 13) % _CYCLE_S + (0 if along_x else _CYCLE_S / 2)
    into = (at_s + offset) % _CYCLE_S
    if into < _GREEN_S:
        return Signal("protected", _GREEN_S - into)
    if into < _GREEN_S + _YELLOW_S:
        return Signal("clearance_prot", _GREEN_S + _YELLOW_S - into)
    return Signal("stop_and_remain", _CYCLE_S - into)
