"""`bench`: measures what the service can do on this machine."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from ingest import log
from ingest.commands.common import JsonOption, ending, people, run_async, say
from ingest.errors import ConfigError
from ingest.lab import bench as bench_tool

_ALL = "all"

app = typer.Typer()


@app.command()
def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help=f"{_ALL}, or some of: {', '.join(bench_tool.PARTS)}.", metavar="PART"),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds of one run: 15, with parts 3.", min=0.5)
    ] = None,
    warm_up: Annotated[
        float | None, typer.Option(help="Seconds before it: 5, with parts 1.", min=0)
    ] = None,
    runs: Annotated[int, typer.Option(help="Runs per figure; the median is reported.", min=1)] = 5,
    source: Annotated[str, typer.Option(help="mqtt5 or aiomqtt; without parts.")] = "mqtt5",
    outage: Annotated[float, typer.Option(help="Seconds, for `memory`.", min=1)] = 60,
    full: Annotated[
        bool, typer.Option("--full", help="A million devices, 50 million rows: 15 min, 13 GB.")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(help="URL of a PostgreSQL whose user may create databases.", metavar="URL"),
    ] = None,
    peer_command: Annotated[
        str | None,
        typer.Option(help="Reads {mqtt_url}, writes into {database_url}.", metavar="COMMAND"),
    ] = None,
    peer_table: Annotated[str | None, typer.Option(help="Where the peer's rows are.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Directory for the JSON and its plots.", metavar="DIR")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure committed messages per second and the cost of one, all on this machine.

    Without a part, it does one run of one worker. With parts, or with `all` (a quarter of an hour),
    it reports the median of several runs of each part with its spread, and the conditions. --report
    adds a plot of each curve (needs the extra `plot`). Figures are not worth much if the machine
    does other work at the same time.
    """
    with ending():
        log.configure("logfmt", "warning")
        chosen = _chosen(parts or [])
        problems = [f"{name}: no such part" for name in chosen if name not in bench_tool.PARTS]
        if source not in {"mqtt5", "aiomqtt"}:
            problems.append("--source is mqtt5 or aiomqtt")
        if (peer_command is None) != (peer_table is None):
            problems.append("--peer-command and --peer-table go together")
        if problems:
            raise ConfigError(problems)
        peer = bench_tool.Peer(peer_command, peer_table) if peer_command and peer_table else None
        draw = _drawing() if report else None
        with people.status("starting PostgreSQL and mosquitto …") as status:
            plan = bench_tool.BenchPlan(
                status.update,
                runs=runs,
                seconds=duration or (3 if chosen else 15),
                warm_up_s=warm_up if warm_up is not None else (1 if chosen else 5),
                outage_s=outage,
                peer=peer,
            )
            if full:
                plan = replace(plan, devices=1_000_000, rows=50_000_000)
            if not chosen:
                one = bench_tool.bench(bench_tool.Load(source=source), plan)
                say(run_async(one), as_json=as_json)
                return
            found = run_async(bench_tool.measure(chosen, plan, server))
        if report and draw:
            report.mkdir(parents=True, exist_ok=True)
            draw(found, report)
        # Thousands of lines that only the picture has a use for.
        found["parts"].get("profile", {}).pop("stacks", None)
        if report:
            (report / "bench.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
        _tell(found, as_json=as_json)


def _chosen(parts: list[str]) -> list[str]:
    return list(bench_tool.PARTS) if _ALL in parts else parts


def _drawing() -> Any:
    try:
        return import_module("ingest.lab.bench.picture").draw
    except ModuleNotFoundError as exc:
        raise ConfigError([f"no {exc.name}: pip install 'iov-ingest[plot]'"]) from exc


def _tell(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(found).decode())
        return
    for name, figures in found["parts"].items():
        typer.echo(name)
        for line in _lines(figures, 1):
            typer.echo(line)


def _lines(figures: dict[str, Any], depth: int) -> list[str]:
    lines = []
    for name, value in figures.items():
        indent = "  " * depth
        if isinstance(value, dict) and "median" in value:
            spread = f"{value['low']:,} to {value['high']:,}, {value['runs']} runs"
            lines.append(f"{indent}{name:28} {value['median']:>12,}   ({spread})")
        elif isinstance(value, dict):
            lines += [f"{indent}{name}", *_lines(value, depth + 1)]
        else:
            text = f"{value:,}" if isinstance(value, int | float) else str(value)
            lines.append(f"{indent}{name:28} {text:>12}")
    return lines
