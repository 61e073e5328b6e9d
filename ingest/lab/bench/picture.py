"""The bench's figures as pictures: one for each part that has a curve or a comparison."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ingest.lab.bench.figures import Figures

_COLOUR, _LIGHT = "#1f4e79", "#9bb8d3"
_LATENCIES = {"p50_ms": _LIGHT, "p99_ms": _COLOUR, "p999_ms": "#c98a3a"}
_LEAST_SHARE = 0.002
_CHARACTERS, _SHORTEST = 270, 3
"""Number of characters on the whole width; number up to which a text is left out."""
_COMPARED = ("sources", "stores", "peer")


def draw(found: Figures, directory: Path) -> None:
    """Draw what was measured into PNG files."""
    parts = found["parts"]
    if "scale" in parts:
        _save(directory / "scale.png", parts["scale"], _throughput)
    if "stages" in parts:
        _save(directory / "stages.png", {"stages": parts["stages"]}, _stages)
    if "latency" in parts:
        _save(directory / "latency.png", {"latency": parts["latency"]}, _latency)
    if _measured(parts.get("profile")):
        flame(parts["profile"]["stacks"], directory / "flame.png")
    compared = {name: parts[name] for name in _COMPARED if _measured(parts.get(name))}
    if compared:
        _save(directory / "compared.png", compared, _throughput)


def flame(stacks: dict[str, int], file: Path) -> None:
    """Draw every function as wide as its share of the samples, above its caller."""
    root = _Frame("")
    for stack, number in stacks.items():
        frame = root
        frame.number += number
        for name in stack.split(";"):
            frame = frame.inner.setdefault(name, _Frame(name))
            frame.number += number
    figure = Figure(figsize=(15, 9), layout="constrained")
    axes = figure.subplots()
    _stack(axes, root, 0.0, 0, root.number)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_axis_off()
    figure.savefig(file, dpi=110)


class _Frame:
    """One function as called from one place."""

    def __init__(self, name: str) -> None:
        self.name, self.number = name, 0
        self.inner: dict[str, _Frame] = {}


def _stack(axes: Axes, frame: _Frame, left: float, depth: int, total: int) -> None:
    for inner in sorted(frame.inner.values(), key=lambda found: found.name):
        width = inner.number / total
        if width < _LEAST_SHARE:
            continue
        library = ".py" not in inner.name and "<string>" not in inner.name
        axes.barh(
            depth, width, 0.94, left, align="edge",
            color=_LIGHT if library else "#e8b36b", edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        text = f"{inner.name} {width:.1%}"[: int(width * _CHARACTERS)]
        if len(text) > _SHORTEST:
            axes.text(left + 0.001, depth + 0.5, text, va="center", fontsize=6, clip_on=True)
        _stack(axes, inner, left, depth + 1, total)
        left += width


def _measured(figures: Figures | None) -> bool:
    return figures is not None and "left_out" not in figures


def _save(file: Path, panels: dict[str, Figures], draw_one: Any) -> None:
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(6, 3.4 * len(panels)), 3.6), layout="constrained")
        for axes, (name, figures) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            axes.set_title(name, loc="left", fontsize=9)
            draw_one(axes, figures)
        figure.savefig(file, dpi=110)


def _throughput(axes: Axes, figures: Figures) -> None:
    """Draw committed samples per second, with the spread."""
    compared = {name: found for name, found in figures.items() if isinstance(found, dict)}
    rates = [found["committed_per_s"] for found in compared.values()]
    _bars(axes, [_short(name) for name in compared], rates)
    axes.set_ylabel("committed samples per second")


def _stages(axes: Axes, figures: Figures) -> None:
    _bars(axes, list(figures), list(figures.values()))
    axes.set_ylabel("µs of CPU per message")


def _bars(axes: Axes, names: list[str], values: list[Figures]) -> None:
    heights = [value["median"] for value in values]
    spread = [
        [value["median"] - value["low"] for value in values],
        [value["high"] - value["median"] for value in values],
    ]
    axes.bar(names, heights, color=_LIGHT, yerr=spread, ecolor=_COLOUR, capsize=3)
    axes.set_ylim(bottom=0)


def _short(name: str) -> str:
    return f"{int(name):,}" if name.isdigit() else name


def _latency(axes: Axes, figures: Figures) -> None:
    points = sorted(
        (found for found in figures.values() if isinstance(found, dict)),
        key=itemgetter("rate_per_s"),
    )
    rates = [point["rate_per_s"] for point in points]
    for name, colour in _LATENCIES.items():
        found = [point[name] for point in points]
        axes.plot(rates, [f["median"] for f in found], "o-", color=colour, label=name[:-3])
        low, high = [f["low"] for f in found], [f["high"] for f in found]
        axes.fill_between(rates, low, high, color=colour, alpha=0.2, lw=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("messages per second")
    axes.set_ylabel("ms from publish to acknowledgement")
    axes.legend(fontsize=8)
