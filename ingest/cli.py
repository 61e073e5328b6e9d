"""`iov-ingest`: every command, its arguments, and how it ends.

Exit status 0 done, 1 failed, 2 wrong configuration or arguments. With `--json` the last line of
standard output is one JSON object; everything for people goes to standard error then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingest import log, service
from ingest.config import Settings, load
from ingest.errors import ConfigError, IngestError, SchemaError
from ingest.metrics import release
from ingest.schema import Catalogue, load_catalogue
from ingest.schema.docs import page
from ingest.schema.table import create_table
from ingest.store import meaning, migrate
from ingest.tools import bench as bench_tool
from ingest.tools import check as check_tool
from ingest.tools import demo as demo_tool
from ingest.tools.fleet import STREAMS, Fleet, Mischief
from ingest.tools.publisher import Publisher
from ingest.tools.replay import Replay
from ingest.tools.simulate import Simulation

app = typer.Typer(
    name="iov-ingest",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Vehicle telemetry from MQTT into PostgreSQL, acknowledged only after the commit.\n\n"
    "Settings come from the environment (`IOV_MQTT_URL`, `IOV_DATABASE_URL`, …) or from a TOML "
    "file with the same names. Begin with `iov-ingest demo`, then `check`, `migrate` and `run`.",
)
schema_app = typer.Typer(no_args_is_help=True, help="The streams and what follows from them.")
app.add_typer(schema_app, name="schema")

people = Console(stderr=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file with `IOV_*` settings.", metavar="FILE")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="The last line of output is one JSON object.")
]


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="iov-ingest")


@contextmanager
def _ending() -> Iterator[None]:
    """Turn our errors into a sentence for people and an exit status."""
    try:
        yield
    except* ConfigError as group:
        for problem in _leaves(group, ConfigError)[0].problems:
            people.print(f"[bold red]configuration:[/] {problem}", highlight=False)
        code = 2
    except* SchemaError as group:
        people.print(f"[bold red]schemas:[/] {_leaves(group, SchemaError)[0]}", highlight=False)
        code = 2
    except* IngestError as group:
        people.print(f"[bold red]failed:[/] {_leaves(group, IngestError)[0]}", highlight=False)
        code = 1
    else:
        return
    raise typer.Exit(code)


def _leaves(group: BaseExceptionGroup[Any], kind: type[Any]) -> list[Any]:
    """The errors of one kind in a group, however deep."""
    found: list[Any] = []
    for exc in group.exceptions:
        found += _leaves(exc, kind) if isinstance(exc, BaseExceptionGroup) else [exc]
    return [exc for exc in found if isinstance(exc, kind)]


def _run(main_: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main_)


def _settings(config: Path | None, *needs: str) -> Settings:
    settings = load(config, needs=needs)
    log.configure(settings.log_format, settings.log_level)
    return settings


def _say(account: dict[str, Any], *, as_json: bool) -> None:
    """The account of a command, for programs or for people."""
    if as_json:
        typer.echo(orjson.dumps(account).decode())
        return
    table = Table(show_header=False, box=None)
    for key, value in account.items():
        table.add_row(key, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(table)


@app.command()
def run(config: ConfigOption = None) -> None:
    """The service: reads, stores, acknowledges, until SIGTERM or SIGINT."""
    with _ending():
        settings = _settings(config, "IOV_MQTT_URL", "IOV_DATABASE_URL")
        _run(service.run(settings, load_catalogue(settings.schema_dir)))


@app.command(name="migrate")
def migrate_(
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL, change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the database to the current schemas; safe to run again and by several at once."""
    with _ending():
        settings = _settings(config, "IOV_DATABASE_URL")
        steps = _run(_migrate(settings, load_catalogue(settings.schema_dir), dry_run=dry_run))
        if dry_run:
            for step in steps:
                typer.echo(f"-- {step.what}")
                for statement in step.statements:
                    typer.echo(statement.rstrip().rstrip(";") + ";\n")
        if as_json:
            typer.echo(orjson.dumps({"applied": [] if dry_run else [s.what for s in steps]}).decode())
        elif not dry_run:
            for step in steps:
                typer.echo(step.what)
            typer.echo(f"{len(steps)} applied" if steps else "nothing to do")


async def _migrate(settings: Settings, catalogue: Catalogue, *, dry_run: bool) -> Any:
    try:
        return await migrate(settings, catalogue, dry_run=dry_run)
    except Exception as exc:
        failure = meaning(exc)
        if failure is None:
            raise
        raise failure from exc


@app.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at configuration, schemas, broker and database: what is wrong and how to mend it."""
    try:
        settings = _settings(config, "IOV_MQTT_URL", "IOV_DATABASE_URL")
    except ConfigError as exc:
        _say_check(exc.problems, as_json=as_json)
        raise typer.Exit(2) from exc
    with _ending():
        problems = _run(check_tool.check(settings))
        _say_check(problems, as_json=as_json)
        if problems:
            raise typer.Exit(1)


def _say_check(problems: list[str], *, as_json: bool) -> None:
    for problem in problems:
        people.print(f"[bold red]✗[/] {problem}", highlight=False)
    if as_json:
        typer.echo(orjson.dumps({"ok": not problems, "problems": problems}).decode())
    elif not problems:
        typer.echo("configuration, schemas, broker and database are fine")


@app.command()
def demo(
    duration: Annotated[float | None, typer.Option(help="Seconds; without it until Ctrl-C.", min=0.1)] = None,
    devices: Annotated[int, typer.Option(help="Vehicles.", min=1)] = 200,
    rate: Annotated[float, typer.Option(help="Messages per second.", min=0.1)] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed, the same fleet.", min=0)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Everything embedded: a database, a broker, a fleet and the service, in one command."""
    with _ending():
        log.configure("logfmt", "warning")
        account = _run(_demo(duration, devices, rate, seed))
        people.print("\nstored is counted in the database; lost = published - stored - rejected")
        _say(account, as_json=as_json)
        if account["lost"]:
            raise typer.Exit(1)


async def _demo(duration: float | None, devices: int, rate: float, seed: int) -> dict[str, Any]:
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
            live.console.print(f"broker    {show.broker} at {show.settings.mqtt_url}")
            live.console.print(f"database  {url}", soft_wrap=True)
            live.console.print(f"metrics   http://127.0.0.1:{show.service.http_port}/metrics")
            live.console.print(
                f'try       {show.postgres.psql} "{url}" -c "{query}"\n',
                soft_wrap=True, highlight=False,
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
    while True:
        stored = show.counted("iov_samples_stored")
        table = Table(box=None)
        for title in ("published", "stored", "stored/s", "in flight", "ready"):
            table.add_column(title, justify="right")
        ready = "no: " + show.service.problems()[0] if show.service.problems() else "yes"
        table.add_row(
            f"{show.simulation.samples:,}", f"{stored:,}", f"{stored - before:,}",
            f"{show.service.source.inbox.in_flight:,}", ready,
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
    with _ending():
        settings = _settings(config, "IOV_MQTT_URL")
        names = [name.strip() for name in streams.split(",") if name.strip()]
        if unknown := sorted(set(names) - set(STREAMS)) or not names:
            raise ConfigError([f"--streams: {unknown} not among {', '.join(STREAMS)}"])
        fleet = Fleet(devices, seed, names, samples_per_message, Mischief(bad, duplicate, late))
        simulation = Simulation(fleet, rate, duration)
        _run(_publish(settings, qos, simulation, round(rate * duration), simulation.stop))
        _say(simulation.account(), as_json=as_json)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help='Lines {"topic", "payload"}, plain or gzip.')],
    config: ConfigOption = None,
    speed: Annotated[float, typer.Option(help="1: as recorded; 0: as acknowledged.", min=0)] = 1,
    shift: Annotated[bool, typer.Option("--shift", help="Move the recording to end now.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a recording."""
    with _ending():
        settings = _settings(config, "IOV_MQTT_URL")
        recording = Replay(file, speed, shift=shift)
        recording.measure()
        _run(_publish(settings, 1, recording, recording.total, lambda: None))
        _say(recording.account(), as_json=as_json)


async def _publish(
    settings: Settings,
    qos: int,
    work: Simulation | Replay,
    total: int,
    stop: Callable[[], None],
) -> None:
    """Run a simulation or a replay with a bar; SIGINT and SIGTERM end it after what is begun."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with service.signals(stop), Progress(*columns, console=people, transient=True) as bar:
        task = bar.add_task("messages acknowledged", total=total)
        async with Publisher(settings, qos) as publisher:
            await work.run(publisher, lambda: bar.advance(task))


@app.command()
def bench(
    duration: Annotated[float, typer.Option(help="Seconds measured.", min=1)] = 15,
    warm_up: Annotated[float, typer.Option(help="Seconds before.", min=0)] = 5,
    source: Annotated[str, typer.Option(help="mqtt5 or aiomqtt.")] = "mqtt5",
    as_json: JsonOption = False,
) -> None:
    """Committed messages per second and CPU per message, all on this machine."""
    with _ending():
        log.configure("logfmt", "warning")
        if source not in {"mqtt5", "aiomqtt"}:
            raise ConfigError(["--source is mqtt5 or aiomqtt"])
        with people.status("starting PostgreSQL, mosquitto and the service …") as status:
            before: list[bench_tool.Sample] = []

            def progress(now: bench_tool.Sample, elapsed_s: float) -> None:
                if before and now.at_s - before[0].at_s >= 1:
                    rate = (now.committed - before[0].committed) / (now.at_s - before[0].at_s)
                    status.update(f"{elapsed_s:4.0f} s  {rate:9,.0f} committed/s  {now.rss_mb:4.0f} MB")
                    before.clear()
                if not before:
                    before.append(now)

            account = _run(bench_tool.bench(
                seconds=duration, warm_up_s=warm_up, source=source, progress=progress,  # type: ignore[arg-type]  # checked above
            ))  # fmt: skip
        _say(account, as_json=as_json)


@schema_app.command(name="list")
def schema_list(config: ConfigOption = None) -> None:
    """The streams, their tables and what they are."""
    with _ending():
        for stream in _catalogue(config).values():
            fields = len(stream.columns)
            typer.echo(f"{stream.name:12} iov.{stream.table:12} {fields:3} columns  {stream.schema['title']}")


@schema_app.command(name="show")
def schema_show(stream: str, config: ConfigOption = None) -> None:
    """One schema with every reference resolved."""
    with _ending():
        typer.echo(orjson.dumps(_one(stream, config).schema, option=orjson.OPT_INDENT_2).decode())


@schema_app.command(name="lint")
def schema_lint(config: ConfigOption = None) -> None:
    """Whether every schema becomes a table, a validator and an extractor."""
    with _ending():
        typer.echo(f"{len(_catalogue(config))} schemas are fine")


@schema_app.command(name="docs")
def schema_docs(stream: str, config: ConfigOption = None) -> None:
    """The page of a stream in Markdown."""
    with _ending():
        typer.echo(page(_one(stream, config)), nl=False)


@schema_app.command(name="sql")
def schema_sql(
    stream: str,
    config: ConfigOption = None,
    hypertable: Annotated[bool, typer.Option("--hypertable", help="For TimescaleDB.")] = False,
) -> None:
    """The statements that make the table of a stream."""
    with _ending():
        for statement in create_table(_one(stream, config), partitioned=not hypertable):
            typer.echo(f"{statement};")


def _catalogue(config: Path | None) -> Catalogue:
    return load_catalogue(load(config).schema_dir)


def _one(stream: str, config: Path | None) -> Any:
    catalogue = _catalogue(config)
    if stream not in catalogue:
        raise ConfigError([f"there is no stream {stream}; there are {', '.join(catalogue)}"])
    return catalogue[stream]
