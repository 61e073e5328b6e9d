"""Draws docs/house.svg from the code: the floors of pyproject.toml, and who imports whom.

An arrow is left out if others lead the same way. `python -m tests.draw_house FILE`.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import grimp

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


HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}"
 font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">
<rect width="{width}" height="{height:.0f}" fill="#ffffff"/>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6"
 orient="auto"><path d="M0 0L8 4L0 8z" fill="#7a7a7a"/></marker></defs>"""
BAND = """\
<rect x="{x}" y="{y:.0f}" width="{width}" height="{height:.0f}" rx="8" fill="#f7f7f7"
 stroke="#c8c8c8"/>
<text x="{x}" dx="12" y="{y:.0f}" dy="18" fill="#555555">ground: all may import these</text>"""


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


def draw() -> str:
    """Return the figure as SVG, without arrows to the ground, because everything stands on it."""
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
    band = boxes[ground[0]][1] - 30
    parts = [
        HEAD.format(width=WIDTH, height=top + GAP),
        BAND.format(x=MARGIN, y=band, width=WIDTH - 2 * MARGIN, height=top - band + 2),
    ]
    for one, other in sorted(arrows()):
        if other in ground:
            continue
        x, y, width = boxes[one]
        to_x, to_y, to_width = boxes[other]
        begin, end = x + width / 2, to_x + to_width / 2
        bend = (to_y - y - BOX) * 0.5
        parts.append(
            f'<path d="M{begin:.0f} {y + BOX:.0f}C{begin:.0f} {y + BOX + bend:.0f} {end:.0f} '
            f'{to_y - bend:.0f} {end:.0f} {to_y:.0f}" fill="none" stroke="#8a8a8a" '
            'marker-end="url(#tip)"/>'
        )
    for name, (x, y, width) in boxes.items():
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX}" rx="6" '
            f'fill="{WINGS.get(name, "#ffffff")}" stroke="#555555"/>'
            f'<text x="{x + width / 2:.0f}" y="{y + BOX / 2 + 4:.0f}" text-anchor="middle">'
            f"{name}</text>"
        )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw())
