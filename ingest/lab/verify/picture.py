"""A run as a picture: what was published and acknowledged, memory, file descriptors, faults."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ingest.lab.verify.plan import Result

_MOST_MARKS = 40
"""Largest number of faults whose names are written; with more, only their times are marked."""
_POINTS = 400


def draw(result: Result, file: Path) -> None:
    """Draw the run into a PNG or SVG file."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13, 8), layout="constrained")
        rates, debt, memory, descriptors = figure.subplots(4, 1, sharex=True)
        _rates(rates, result)
        _debt(debt, result)
        for number in range(result.plan.workers):
            _resources(memory, descriptors, result, number)
        memory.set_title("resident memory, MB", loc="left", fontsize=9)
        descriptors.set_title("open file descriptors", loc="left", fontsize=9)
        descriptors.set_xlabel("minutes")
        for axes in (rates, debt, memory, descriptors):
            axes.set_ylim(bottom=0)
            axes.set_xlim(0, result.moments[-1].at_s / 60)
            _faults(axes, result)
        memory.legend(loc="lower right", fontsize=8, ncols=4)
        account = result.account
        figure.suptitle(
            f"{account.published:,} samples, {len(result.events)} faults: "
            f"lost {account.lost:,}, stored twice {account.duplicated:,}, "
            f"altered {account.altered:,}, acknowledged too early {account.early_acks}"
        )
        figure.savefig(file, dpi=110)


def _step(result: Result) -> int:
    return max(1, len(result.moments) // _POINTS)


def _rates(axes: Axes, result: Result) -> None:
    step = _step(result)
    moments = result.moments[::step]
    pairs = list(pairwise(moments))
    minutes = [after.at_s / 60 for _, after in pairs]
    for what, colour in (("published", "#9bb8d3"), ("settled", "#1f4e79")):
        values = [
            (getattr(after, what) - getattr(before, what)) / (after.at_s - before.at_s)
            for before, after in pairs
        ]
        label = {"published": "acknowledged to the publisher", "settled": "acknowledged by us"}
        axes.plot(minutes, values, lw=0.9, color=colour, label=label[what])
    axes.set_title("messages per second", loc="left", fontsize=9)
    axes.legend(loc="lower right", fontsize=8, ncols=2)


def _debt(axes: Axes, result: Result) -> None:
    minutes = [moment.at_s / 60 for moment in result.moments]
    owed = [max(0, moment.published - moment.settled) for moment in result.moments]
    axes.fill_between(minutes, owed, color="#c98a3a", lw=0)
    axes.set_title("owed: acknowledged to the publisher, not yet by us", loc="left", fontsize=9)


def _resources(memory: Axes, descriptors: Axes, result: Result, number: int) -> None:
    seen = [(m.at_s / 60, m.resources[number]) for m in result.moments]
    minutes = [at for at, found in seen if found]
    label = f"worker {number + 1}" + (" (never killed)" if not number else "")
    memory.plot(minutes, [found[0] for _, found in seen if found], ".", ms=2, label=label)
    descriptors.plot(minutes, [found[1] for _, found in seen if found], ".", ms=2)


def _faults(axes: Axes, result: Result) -> None:
    for event in result.events:
        axes.axvspan(event.began_s / 60, event.mended_s / 60, color="#ef9a9a", alpha=0.4, lw=0)
        if len(result.events) <= _MOST_MARKS and axes.get_subplotspec().is_first_row():  # type: ignore[union-attr]  # one of subplots()
            axes.text(
                event.began_s / 60,
                axes.get_ylim()[1],
                event.name,
                rotation=90,
                fontsize=6,
                va="top",
            )
