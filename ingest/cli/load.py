"""`demo`, `simulate`, `picture`, `replay`: a fleet, recorded or made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingest import log, service
from ingest.cli.common import (
    ConfigOption,
    JsonOption,
    ending,
    people,
    run_async,
    say,
    settings_of,
)
from ingest.config import Settings
from ingest.errors import ConfigError
from ingest.tools import demo as demo_tool
from ingest.tools.fleet import STREAMS, Fleet, Mischief
from ingest.tools.publisher import Publisher
from ingest.tools.replay import Replay
from ingest.tools.simulate import Simulation

app = typer.Typer()


@app.command()
def demo(
    duration: Annotated[
        float | None, typer.Option(help="Seconds; without it until Ctrl-C.", min=0.1)
    ] = None,
    devices: Annotated[int, typer.Option(help="Vehicles.", min=1)] = 200,
    rate: Annotated[
        float | None,
        typer.Option(help="Messages per second; 1,000, and 100 without mosquitto.", min=0.1),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same fleet.", min=0)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Everything embedded: a database, a broker, a fleet and the service, in one command.

    Says first where its live page is; Ctrl-C ends it with its account. It keeps nothing.
    """
    with ending():
        log.configure("logfmt", "warning")
        account = run_async(_demo(duration, devices, rate, seed))
        people.print("\nstored is counted in the database; lost = published - stored - rejected")
        people.print("next: docs/start.md sets up a database, a broker and two workers that stay\n")
        say(account, as_json=as_json)
        if account["lost"]:
            raise typer.Exit(1)


async def _demo(
    duration: float | None, devices: int, rate: float | None, seed: int
) -> dict[str, Any]:
    stop = asyncio.Event()
    people.print("Starting PostgreSQL, a broker and the service …")
    with service.signals(stop.set), Live(console=people, refresh_per_second=4) as live:
        showing: list[asyncio.Task[None]] = []

        def started(show: demo_tool.Demo) -> None:
            url = show.postgres.url
            query = (
                "SELECT device, ts, speed_kmh, soc_pct FROM iov.nev JOIN iov.device "
                "USING (device_id) ORDER BY ts DESC LIMIT 5"
            )
            live.console.print(f"page      http://127.0.0.1:{show.service.http_port}/")
            slow = "" if show.broker == "mosquitto" else ", for mosquitto is not here: it is slow"
            live.console.print(f"broker    {show.broker} at {show.settings.mqtt_url}{slow}")
            live.console.print(f"database  {url}", soft_wrap=True)
            live.console.print(
                f'try       {show.postgres.psql} "{url}" -c "{query}"\n',
                soft_wrap=True,
                highlight=False,
            )
            showing.append(asyncio.create_task(_show(show, live), name="screen"))

        account = await demo_tool.demo(
            devices=devices, rate=rate, duration_s=duration, seed=seed, started=started, stop=stop
        )
        for task in showing:
            task.cancel()
    return account


async def _show(show: demo_tool.Demo, live: Live) -> None:
    """Throughput while it runs, once a second."""
    before = 0
    while not show.over:
        stored = show.counted("iov_samples_stored")
        table = Table(box=None)
        for title in ("published", "stored", "stored/s", "in flight", "ready"):
            table.add_column(title, justify="right")
        ready = "no: " + show.service.problems()[0] if show.service.problems() else "yes"
        table.add_row(
            f"{show.simulation.samples:,}",
            f"{stored:,}",
            f"{stored - before:,}",
            f"{show.service.source.inbox.in_flight:,}",
            ready,
        )
        live.update(table)
        before = stored
        await asyncio.sleep(1)


@app.command()
def simulate(
    config: ConfigOption = None,
    devices: Annotated[int, typer.Option(help="Vehicles.", min=1)] = 100,
    rate: Annotated[float, typer.Option(help="Messages per second.", min=0.001)] = 100,
    duration: Annotated[float, typer.Option(help="Seconds.", min=0.1)] = 10,
    seed: Annotated[int, typer.Option(help="The same seed, the same fleet.", min=0)] = 1,
    streams: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(STREAMS),
    samples_per_message: Annotated[int, typer.Option(help="Above 1: arrays.", min=1)] = 1,
    bad: Annotated[float, typer.Option(help="Share of bad messages.", min=0, max=1)] = 0,
    duplicate: Annotated[float, typer.Option(help="Share sent twice.", min=0, max=1)] = 0,
    late: Annotated[float, typer.Option(help="Share sent hours late.", min=0, max=1)] = 0,
    qos: Annotated[int, typer.Option(help="QoS to publish with.", min=0, max=2)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Publish as a seeded fleet of vehicles; bad, duplicates and late are counted in samples."""
    with ending():
        settings = settings_of(config, "IOV_MQTT_URL")
        names = [name.strip() for name in streams.split(",") if name.strip()]
        if unknown := sorted(set(names) - set(STREAMS)) or not names:
            raise ConfigError([f"--streams: {unknown} not among {', '.join(STREAMS)}"])
        fleet = Fleet(devices, seed, names, samples_per_message, Mischief(bad, duplicate, late))
        simulation = Simulation(fleet, rate, duration)
        run_async(_publish(settings, qos, simulation, round(rate * duration), simulation.stop))
        say(simulation.account(), as_json=as_json)


@app.command()
def picture(
    output: Annotated[Path, typer.Option(help="PNG or SVG.")] = Path("simulated-hour.png"),
    seed: Annotated[int, typer.Option(help="The same seed, the same hour.", min=0)] = 14,
    as_json: JsonOption = False,
) -> None:
    """Draw one simulated hour: the map, and four signals of one car with what happened to it.

    Needs the extra `plot`: `pip install 'iov-ingest[plot]'`.
    """
    with ending():
        try:
            picture_tool = import_module("ingest.tools.picture")
        except ModuleNotFoundError as exc:
            raise ConfigError([f"no {exc.name}: pip install 'iov-ingest[plot]'"]) from exc
        if output.suffix not in {".png", ".svg"}:
            raise ConfigError(["--output ends in .png or .svg"])
        say(picture_tool.draw(output, seed), as_json=as_json)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help='Lines {"topic", "payload"}, plain or gzip.')],
    config: ConfigOption = None,
    speed: Annotated[float, typer.Option(help="1: as recorded; 0: as acknowledged.", min=0)] = 1,
    shift: Annotated[bool, typer.Option("--shift", help="Move the recording to end now.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a recording."""
    with ending():
        settings = settings_of(config, "IOV_MQTT_URL")
        recording = Replay(file, speed, shift=shift)
        recording.measure()
        run_async(_publish(settings, 1, recording, recording.total, lambda: None))
        say(recording.account(), as_json=as_json)


async def _publish(
    settings: Settings,
    qos: int,
    work: Simulation | Replay,
    total: int,
    stop: Callable[[], None],
) -> None:
    """Run a simulation or a replay with a bar; SIGINT and SIGTERM end it after what is begun."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with service.signals(stop), Progress(*columns, console=people, transient=True) as bar:
        task = bar.add_task("messages acknowledged", total=total)

        def waiting(whom: str) -> None:
            bar.console.print(f"waiting for {escape(whom)}", soft_wrap=True)

        async with Publisher(settings, qos, waiting=waiting) as publisher:
            await work.run(publisher, lambda: bar.advance(task))
