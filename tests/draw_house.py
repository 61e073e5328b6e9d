"""Draws docs/house.png from the code: the floors of pyproject.toml, and who imports whom.

An arrow is left out if others lead the same way. `python -m tests.draw_house FILE`.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import grimp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as MplPath

ROOT = Path(__file__).parents[1]
WIDTH, FLOOR, BOX, GAP, MARGIN = 860, 68, 32, 14, 16
CHARACTER = 7.4
"""Width of a character of the font at its size, roughly."""
GROUND = "metrics"
"""Module on the highest floor of the ground; the floors below belong to it too."""
WINGS = {
    "lab": "#e8d9f3", "cli": "#dbe7f6", "commands": "#dbe7f6", "worker": "#cfe8d5",
    "pipeline": "#ffe9b8", "web": "#cfe8d5", "source": "#ffe9b8", "store": "#ffe9b8",
    "check": "#ffe9b8", "decode": "#ffe9b8", "batch": "#ffe9b8",
}  # fmt: skip
"""Colours: laboratory, what an operator types, a worker, and the way of a message."""


def floors() -> list[list[str]]:
    """Return the modules and packages of `ingest`, floor by floor, as import-linter has them."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = document["tool"]["importlinter"]["contracts"][0]["layers"]
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def arrows() -> set[tuple[str, str]]:
    """Return (importer, imported) directly below `ingest`, without pairs that others imply."""
    graph = grimp.build_graph("ingest", cache_dir=None)
    found: dict[str, set[str]] = {}
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            one, other = importer.split(".")[1:2], imported.split(".")[1:2]
            if one and other and one != other:
                found.setdefault(one[0], set()).add(other[0])

    def below(name: str) -> set[str]:
        direct = found.get(name, set())
        return direct.union(*map(below, direct))

    return {
        (one, other)
        for one, others in found.items()
        for other in others
        if not any(other in below(third) for third in others - {other})
    }


def said() -> str:
    """Return what the figure says, as text; the file holds it too, so that a test can compare."""
    lines = [" | ".join(floor) for floor in floors()]
    return "\n".join([*lines, *(f"{one} -> {other}" for one, other in sorted(arrows()))])


def draw(file: Path) -> None:
    """Draw a PNG; arrows to the ground are left out, because everything stands on it."""
    every = floors()
    first = next(number for number, floor in enumerate(every) if GROUND in floor)
    ground = [name for floor in every[first:] for name in floor]
    rows = [*every[:first], ground[: len(ground) // 2], ground[len(ground) // 2 :]]
    boxes: dict[str, tuple[float, float, float]] = {}
    top = float(MARGIN)
    for number, row in enumerate(rows):
        widths = [len(name) * CHARACTER + 18 for name in row]
        apart = GAP if number >= first else 2.5 * GAP
        left = (WIDTH - sum(widths) - apart * (len(row) - 1)) / 2
        for name, width in zip(row, widths, strict=True):
            boxes[name] = (left, top, width)
            left += width + apart
        top += FLOOR if number < first else BOX + GAP
    figure = Figure(figsize=(WIDTH / 100, top / 100), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(top, 0))
    axes.axis("off")
    band = boxes[ground[0]][1] - 30
    _box(axes, (MARGIN, band, WIDTH - 2 * MARGIN, top - band - 4), "#f7f7f7", "#c8c8c8")
    axes.text(MARGIN + 12, band + 14, "ground: all may import these", size=8, color="#555555")
    for one, other in sorted(arrows()):
        if other not in ground:
            _arrow(axes, boxes[one], boxes[other])
    for name, (x, y, width) in boxes.items():
        _box(axes, (x, y, width, BOX), WINGS.get(name, "#ffffff"), "#555555")
        axes.text(x + width / 2, y + BOX / 2, name, size=8, ha="center", va="center")
    figure.savefig(file, metadata={"Description": said()})


def _box(axes: Axes, at: tuple[float, float, float, float], colour: str, edge: str) -> None:
    x, y, width, height = at
    style = "round,pad=0,rounding_size=6"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=edge)
    )


def _arrow(axes: Axes, one: tuple[float, float, float], other: tuple[float, float, float]) -> None:
    begin, end = one[0] + one[2] / 2, other[0] + other[2] / 2
    from_y, to_y = one[1] + BOX, other[1]
    bend = (to_y - from_y) / 2
    points = [(begin, from_y), (begin, from_y + bend), (end, to_y - bend), (end, to_y)]
    codes = [MplPath.MOVETO, *[MplPath.CURVE4] * 3]
    way = MplPath(points, codes)
    axes.add_patch(FancyArrowPatch(path=way, arrowstyle="-|>", mutation_scale=8, color="#8a8a8a"))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
