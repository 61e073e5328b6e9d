"""Draws both dashboards into DIRECTORY, with the results of each panel's own queries.

A city of 200 devices, a worker, PostgreSQL and Prometheus run for a minute and a half. Grafana is
not needed. It draws the panels better; these pictures only show that the queries find data.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ingest.commands.message import Message
from ingest.commands.publisher import Publisher
from ingest.config import load
from ingest.lab.embedded import mosquitto, postgres
from ingest.lab.fleet import Fleet, Mischief
from ingest.lab.simulate import Simulation
from ingest.schema import load_catalogue
from ingest.store import migrate
from tests.grafana import FLEET, OPERATIONS, Panel, dashboard, panels, promql, sql
from tests.prometheus import ask_range, prometheus
from tests.support import environment, working

DEVICES, MESSAGES_PER_S, RUN_S = 200, 400.0, 75.0
PAST = timedelta(minutes=15)
PAST_MESSAGES = 12_000
STEP_S = 2.0
FACTORS = {"s": (1_000, " ms"), "percentunit": (100, " %"), "bytes": (1e-6, " MB")}
Series = list[tuple[str, list[float], list[float]]]
"""Name, instants as Unix seconds, values."""


def main(directory: Path) -> None:
    """Run the city, ask, and draw."""
    mpl.use("agg")
    plt.rcParams.update({"font.size": 7, "axes.spines.top": False, "axes.spines.right": False})
    asyncio.run(_run(directory))


async def _run(directory: Path) -> None:
    catalogue = load_catalogue()
    with postgres() as server, tempfile.TemporaryDirectory() as scratch:
        async with mosquitto() as broker:
            settings = load(environ=environment(broker.url, server.url))
            await migrate(settings, catalogue)
            fleet = Fleet(DEVICES, 7, mischief=Mischief(bad=0.01, duplicate=0.01, late=0.01))
            async with (
                working(broker.url, server.url, catalogue) as worker,
                prometheus(Path(scratch), worker.service.http_port or 0, every="1s") as url,
                Publisher(settings.broker) as publisher,
            ):
                sys.stdout.write(f"{PAST} of the past, then {RUN_S:.0f} s of the present\n")
                await publisher.publish_all(_past(fleet), lambda _: None)
                started = time.time()
                await Simulation(fleet, MESSAGES_PER_S, RUN_S).run(publisher)
                span = (started + 5, time.time())
                _draw(
                    OPERATIONS,
                    {p["id"]: await _from_prometheus(url, p, span) for p in panels(OPERATIONS)},
                    directory,
                )
                connection = await asyncpg.connect(server.url)
                chosen = {
                    variable["name"]: [row[0] for row in await connection.fetch(variable["query"])]
                    for variable in dashboard(FLEET)["templating"]["list"][1:]
                }
                now = datetime.now(UTC)
                rows = {
                    p["id"]: await connection.fetch(
                        sql(p["targets"][0]["rawSql"], now - PAST, now, 30, chosen)
                    )
                    for p in panels(FLEET)
                }
                await connection.close()
                _draw(FLEET, rows, directory)


async def _past(fleet: Fleet) -> AsyncIterator[Message]:
    start = datetime.now(UTC) - PAST
    for number in range(PAST_MESSAGES):
        yield fleet.message(start + PAST * number / PAST_MESSAGES)


async def _from_prometheus(url: str, panel: Panel, span: tuple[float, float]) -> Series:
    series: Series = []
    for target in panel["targets"]:
        expression = promql(target["expr"], "10s")
        for found in await ask_range(url, expression, *span, STEP_S):
            name = target.get("legendFormat", "")
            for label, value in found["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            instants, values = zip(*found["values"], strict=True)
            name = name or found["metric"].get("version") or found["metric"].get("__name__", "")
            series.append((name, list(map(float, instants)), list(map(float, values))))
    return series


def _draw(uid: str, found: dict[int, Any], directory: Path) -> None:
    document = dashboard(uid)
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in document["panels"])
    figure = plt.figure(figsize=(17, height * 0.34), dpi=90)
    figure.text(0.01, 0.995, document["title"], size=12, va="top")
    for panel in document["panels"]:
        at = panel["gridPos"]
        box = (
            at["x"] / 24 + 0.022,
            0.985 - (at["y"] + at["h"]) / height * 0.98 + 0.9 / height,
            at["w"] / 24 - 0.032,
            at["h"] / height * 0.98 - 2.1 / height,
        )
        if panel["type"] == "row":
            figure.text(box[0], 0.985 - (at["y"] + 0.8) / height * 0.98, panel["title"], size=10)
            continue
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], loc="left", fontsize=8, weight="bold")
        KINDS[panel["type"]](axes, panel, found[panel["id"]])
    figure.savefig(directory / f"{uid}.png", pil_kwargs={"optimize": True})
    plt.close(figure)
    sys.stdout.write(f"{directory / uid}.png\n")


def _shown(panel: Panel, value: float) -> str:
    factor, unit = FACTORS.get(panel["fieldConfig"]["defaults"].get("unit", ""), (1, ""))
    return f"{value * factor:,.4g}{unit}" if value < 1e4 else f"{value * factor:,.0f}{unit}"


def _series(panel: Panel, found: Any) -> Series:
    """Return one series per name in PostgreSQL's rows, or per column if they have no names."""
    if isinstance(found, list) and found and isinstance(found[0], tuple):
        return found
    by_name: dict[str, tuple[list[float], list[float]]] = {}
    for row in found:
        columns = dict(row)
        at = float(columns.pop("time"))
        name = columns.pop("metric", None)
        for column, value in columns.items():
            if value is not None:
                instants, values = by_name.setdefault(name or column, ([], []))
                instants.append(at)
                values.append(float(value))
    assert by_name, panel["title"]
    return [(name, *points) for name, points in by_name.items()]


def _timeseries(axes: Axes, panel: Panel, found: Any) -> None:
    series = _series(panel, found)
    factor, unit = FACTORS.get(panel["fieldConfig"]["defaults"].get("unit", ""), (1, ""))
    drawn = sorted(series, key=lambda each: -max(each[2], default=0))[:12]
    style = panel["fieldConfig"]["defaults"]["custom"]
    every = sorted({at for _, instants, _ in drawn for at in instants})
    lines = [
        [dict(zip(instants, values, strict=True)).get(at, 0.0) * factor for at in every]
        for _, instants, values in drawn
    ]
    if style.get("stacking", {}).get("mode") == "percent":
        sums = [sum(column) or 1 for column in zip(*lines, strict=True)]
        lines = [[v / s * 100 for v, s in zip(line, sums, strict=True)] for line in lines]
    names = [name for name, _, _ in drawn]
    passed = [(at - every[0]) / 60 for at in every]
    if "stacking" in style:
        axes.stackplot(passed, lines, labels=names, alpha=0.8)
    else:
        for name, line in zip(names, lines, strict=True):
            axes.plot(passed, line, label=name, linewidth=1)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_ylabel(unit.strip())
    axes.legend(fontsize=5, ncols=2, loc="upper left", framealpha=0.5)


def _stat(axes: Axes, panel: Panel, found: Any) -> None:
    axes.axis("off")
    if found and isinstance(found[0], tuple):
        words = [f"{name} {_shown(panel, values[-1])}" for name, _, values in found]
    else:
        words = [_shown(panel, float(found[0][0] or 0))]
    axes.text(0, 0.3, "  ".join(words), fontsize=14)


def _table(axes: Axes, panel: Panel, found: Any) -> None:
    axes.axis("off")
    if found and isinstance(found[0], tuple):
        cells = [[name or "value", _shown(panel, values[-1])] for name, _, values in found]
        head = ["what", "value"]
    else:
        head = list(found[0].keys())
        cells = [[_cell(value) for value in row.values()] for row in found[:9]]
    table = axes.table(cells, colLabels=head, loc="upper left", edges="horizontal", cellLoc="left")
    table.auto_set_font_size(value=False)
    table.set_fontsize(5.5)
    table.auto_set_column_width(range(len(head)))


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%H:%M:%S}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:28]


def _pie(axes: Axes, _: Panel, found: Any) -> None:
    parts = axes.pie([row[1] for row in found], wedgeprops={"width": 0.4})[0]
    names = [f"{row[0]}: {row[1]}" for row in found]
    axes.legend(parts, names, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=6, ncols=2)


def _bars(axes: Axes, _: Panel, found: Any) -> None:
    axes.barh(range(len(found)), [float(row[1]) for row in found][::-1], alpha=0.4)
    for place, row in enumerate(reversed(found)):
        axes.text(0, place, f" {row[0]}", va="center")
    axes.set_yticks([])


def _histogram(axes: Axes, panel: Panel, found: Any) -> None:
    axes.hist([row[0] for row in found], bins=panel["options"]["bucketCount"])


def _map(axes: Axes, _: Panel, found: Any) -> None:
    points = axes.scatter(
        [row["lon"] for row in found], [row["lat"] for row in found],
        c=[row["speed_kmh"] or 0 for row in found], s=9, cmap="RdYlGn_r",
    )  # fmt: skip
    axes.figure.colorbar(points, ax=axes, label="km/h")


def _timeline(axes: Axes, _: Panel, found: Any) -> None:
    for place, (name, instants, values) in enumerate(found):
        colours = ["tab:green" if value else "tab:red" for value in values]
        axes.scatter(instants, [place] * len(instants), c=colours, marker="s", s=60)
        axes.text(instants[0], place + 0.25, name)
    axes.set_ylim(-0.5, len(found))
    axes.set_xticks([])
    axes.set_yticks([])


KINDS: dict[str, Callable[[Axes, Panel, Any], None]] = {
    "timeseries": _timeseries,
    "stat": _stat,
    "table": _table,
    "piechart": _pie,
    "bargauge": _bars,
    "histogram": _histogram,
    "geomap": _map,
    "state-timeline": _timeline,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
