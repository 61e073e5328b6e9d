"""One simulated hour as a picture: the map, and four signals of one vehicle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ingest.lab.fleet import city
from ingest.lab.fleet.car import Car
from ingest.lab.fleet.device import Device
from ingest.lab.fleet.kinds import Bus, DeliveryRobot, Robotaxi, Truck
from ingest.lab.fleet.roadside import RoadsideUnit
from ingest.lab.fleet.vehicle import Vehicle, VehicleState

HOUR = timedelta(hours=1)
_BEGIN = datetime(2026, 11, 22, 8, tzinfo=UTC)
_KINDS: tuple[type[Device], ...] = (Car, Robotaxi, Bus, Truck, DeliveryRobot, RoadsideUnit)
_LEVEL_3 = 3
_GAP_MIN = 1.5 / 60
_SIGNALS: tuple[tuple[str, Callable[[VehicleState], float]], ...] = (
    ("speed, km/h", lambda state: state.speed_kmh),
    ("state of charge, %", lambda state: state.soc_pct),
    ("pack current, A (discharge +)", lambda state: state.current_a),
    ("motor torque, N·m", lambda state: state.torque_nm),
)


class Hour:
    """One simulated hour of one device of each kind."""

    def __init__(self, seed: int) -> None:
        self.tracks: dict[str, list[tuple[float, float]]] = {}
        self.states: list[VehicleState] = []
        self.alarms: list[tuple[datetime, int]] = []
        self.tunnels: list[datetime] = []
        for number, kind in enumerate(_KINDS):
            name = f"sim-{seed}-{number:06d}"
            self._live(kind(name, Random(seed * 1_000_003 + number), _BEGIN), first=number == 0)

    def _live(self, device: Device, *, first: bool) -> None:
        track = self.tracks.setdefault(device.kind, [])
        for second in range(1, int(HOUR.total_seconds()) + 1):
            device.advance(_BEGIN + timedelta(seconds=second))
            device.outbox.clear()
            if isinstance(device, RoadsideUnit):
                track[:] = [city.position(*(n * city.BLOCK_M for n in device.node))]
            elif isinstance(device, Vehicle | Truck | DeliveryRobot):
                track.append(device.motion.position)
            if first and isinstance(device, Vehicle):
                self.states.append(device.state)
                self.alarms.append((device.clock, device.alarm.level))
                if not device.reachable:
                    self.tunnels.append(device.clock)


def draw(file: Path, seed: int) -> dict[str, Any]:
    """Draw the hour of a seed into a PNG or SVG file; return the keys of `--json`."""
    hour = Hour(seed)
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "iov", "axes.spines.top": False,
                         "axes.spines.right": False}):  # fmt: skip
        figure = Figure(figsize=(13, 7), layout="constrained")
        grid = figure.add_gridspec(4, 2, width_ratios=(1.05, 1))
        _map(figure.add_subplot(grid[:, 0]), hour)
        for row, (title, value) in enumerate(_SIGNALS):
            axes = figure.add_subplot(grid[row, 1])
            _signal(axes, hour, title, [value(state) for state in hour.states])
        axes.set_xlabel("minutes")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=4, fontsize=8)
        figure.suptitle(
            f"One simulated hour, seed {seed}: six devices, and four signals of the car"
        )
        dated = {} if file.suffix == ".png" else {"Date": None}
        figure.savefig(file, dpi=110, metadata=dated)
    return {
        "file": str(file),
        "km": round(hour.states[-1].odometer_km - hour.states[0].odometer_km, 2),
        "alarm_s": sum(1 for _, level in hour.alarms if level),
        "tunnel_s": len(hour.tunnels),
    }


def _map(axes: Axes, hour: Hour) -> None:
    west, south = city.position(city.RIVER * city.BLOCK_M, -city.BLOCK_M / 2)
    east, north = city.position((city.RIVER + 1) * city.BLOCK_M, (city.SIZE - 0.5) * city.BLOCK_M)
    middle, width = (west + east) / 2, (east - west) * 0.3
    axes.fill_betweenx([south, north], middle - width, middle + width, color="#cfe3f2", zorder=0)
    for x in range(city.SIZE):
        for y in range(city.SIZE):
            for end in city.neighbours((x, y)):
                a, b = (city.position(n[0] * city.BLOCK_M, n[1] * city.BLOCK_M)
                        for n in ((x, y), end))  # fmt: skip
                wide = city.is_arterial((x, y), end)
                style = ":" if city.is_tunnel((x, y), end) else "-"
                axes.plot(*zip(a, b, strict=True), style, color="#c9c9c9", lw=1.6 if wide else 0.7,
                          zorder=1)  # fmt: skip
    for kind, track in hour.tracks.items():
        lons, lats = zip(*track, strict=True)
        mark = "^" if len(track) == 1 else None
        axes.plot(lons, lats, marker=mark, lw=1.6, alpha=0.8, label=kind.replace("_", " "))
    axes.set_aspect(1 / 0.855)  # a degree of longitude is shorter at this latitude
    axes.set_xlabel("longitude (tunnels below the river are dotted)")
    axes.set_ylabel("latitude")
    axes.ticklabel_format(useOffset=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=6, fontsize=8)


def _signal(axes: Axes, hour: Hour, title: str, values: Sequence[float]) -> None:
    minutes = [_minute(state.at) for state in hour.states]
    axes.plot(minutes, values, lw=0.9, color="#1f4e79")
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlim(0, HOUR.total_seconds() / 60)
    for name, colour, moments in _bands(hour):
        label = name
        for begin, end in _spans(moments):
            axes.axvspan(begin, end, color=colour, alpha=0.55, lw=0, zorder=0, label=label)
            label = "_"  # once in the legend


def _bands(hour: Hour) -> list[tuple[str, str, list[datetime]]]:
    """Return (label, colour, seconds) of each background: charging, alarms, tunnel."""
    return [
        ("charging", "#cfe8cf", [state.at for state in hour.states if state.charging]),
        ("alarm, level 3", "#ef9a9a", [at for at, level in hour.alarms if level >= _LEVEL_3]),
        ("alarm, lower", "#ffd99b", [at for at, level in hour.alarms if 0 < level < _LEVEL_3]),
        ("tunnel: sent later", "#c4c4c4", hour.tunnels),
    ]


def _spans(moments: Sequence[datetime]) -> list[tuple[float, float]]:
    """Join seconds that follow each other without a gap into (begin, end), in minutes."""
    spans: list[tuple[float, float]] = []
    for at in map(_minute, moments):
        if spans and at - spans[-1][1] < _GAP_MIN:
            spans[-1] = (spans[-1][0], at)
        else:
            spans.append((at - 1 / 60, at))
    return spans


def _minute(at: datetime) -> float:
    return (at - _BEGIN).total_seconds() / 60
