"""`verify`: tests under faults whether the service keeps its promise."""

from __future__ import annotations

import logging
import tempfile
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from ingest import log
from ingest.commands.common import (
    ConfigOption,
    JsonOption,
    ending,
    people,
    run_async,
    say,
    settings_of,
)
from ingest.errors import ConfigError
from ingest.lab.verify import (
    FAULTS,
    Fault,
    FaultPlan,
    Result,
    Servers,
    World,
    configured,
    embedded,
    report,
    run,
)

app = typer.Typer()
_ALL = "all"
_EPILOG = "Faults:\n\n" + "\n\n".join(
    f"- `{fault.name}`: {fault.what}" for fault in FAULTS.values()
)


@app.command(epilog=_EPILOG)
def verify(
    config: ConfigOption = None,
    target: Annotated[
        str,
        typer.Option(help="`embedded`: servers of its own. `configured`: see below."),
    ] = "embedded",
    faults: Annotated[str, typer.Option(help="Names, separated by commas, or `all`.")] = _ALL,
    duration: Annotated[float, typer.Option(help="Seconds of load.", min=1)] = 60,
    rate: Annotated[float, typer.Option(help="Messages per second.", min=1)] = 500,
    workers: Annotated[int, typer.Option(help="Worker processes.", min=1, max=32)] = 2,
    seed: Annotated[int, typer.Option(help="The same seed, the same schedule.", min=0)] = 1,
    every: Annotated[float, typer.Option(help="Seconds between faults.", min=0.5)] = 10,
    devices: Annotated[int, typer.Option(help="Devices that publish.", min=1)] = 50,
    source: Annotated[str, typer.Option(help="auto, mqtt5 or aiomqtt.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--report", help="Directory for report, series, picture, logs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Break broker, database and workers under load, and account for every message.

    Starts a PostgreSQL, a mosquitto and workers of its own, publishes samples with known keys,
    breaks things one after the other, and waits until nothing moves any more. Then it looks into
    the tables: every sample that the broker acknowledged to the publisher must be there, once and
    unaltered, and no worker may have acknowledged a message before its commit. Ends with status 1
    if that is not so, or if a worker ended by itself or anything else went wrong.

    Every fault has its turn, even if that takes longer than `--duration`. The seed decides what is
    sent, the order of the faults, whom they hit and for how long. It does not decide the timing of
    the operating system.

    `--target configured` uses the servers of IOV_MQTT_URL and IOV_DATABASE_URL (whose user must be
    allowed to create a database). It breaks nothing but its own proxies, its own workers and a
    scratch database, and publishes below `iov-check/`.
    """
    with ending():
        log.configure("logfmt", "warning")
        if source not in {"auto", "mqtt5", "aiomqtt"}:
            raise ConfigError(["--source is auto, mqtt5 or aiomqtt"])
        plan = FaultPlan(
            _faults(faults), duration, rate, workers, seed, every, devices, source=source
        )
        with tempfile.TemporaryDirectory(prefix="iov-verify-") as temporary:
            logs = (output or Path(temporary)) / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            _log_to(logs / "publisher.log")
            # If interrupted, it stops its servers and unmounts its disk, as it does at the end.
            result, left_out = run_async(_verify(_servers(target, config), plan, logs))
        if output is not None:
            for file in report.write(result, left_out, output):
                people.print(f"wrote {file}")
        if as_json:
            say(result.as_json(), as_json=True)
        else:
            people.print(Markdown(report.text(result, left_out)))
        if not result.ok:
            raise typer.Exit(1)


def _faults(names: str) -> list[Fault]:
    if names == _ALL:
        return list(FAULTS.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - FAULTS.keys()):
        raise ConfigError([f"--faults: {', '.join(unknown)} not among {', '.join(FAULTS)}"])
    return [FAULTS[name] for name in dict.fromkeys(wanted)]


def _servers(target: str, config: Path | None) -> AbstractAsyncContextManager[Servers]:
    match target:
        case "embedded":
            return embedded()
        case "configured":
            return configured(settings_of(config, "IOV_MQTT_URL", "IOV_DATABASE_URL"))
    raise ConfigError(["--target is embedded or configured"])


def _log_to(file: Path) -> None:
    """Log to a file: the publisher's library would fill the screen with broken connections."""
    logging.basicConfig(filename=file, level=logging.WARNING, force=True)


async def _verify(
    opening: AbstractAsyncContextManager[Servers], plan: FaultPlan, logs: Path
) -> tuple[Result, dict[str, str]]:
    with people.status("starting PostgreSQL, mosquitto and the workers …") as status:
        async with opening as servers:
            left_out = {f.name: why for f in plan.faults if (why := servers.cannot(f.needs))}
            possible = [fault for fault in plan.faults if fault.name not in left_out]

            def progress(world: World, broken: str, now_s: float) -> None:
                ledger = world.ledger
                status.update(
                    f"{now_s:5.0f} s  published {ledger.published:9,}  "
                    f"acknowledged {ledger.settled:9,}  {broken}"
                )

            result = await run(servers, replace(plan, faults=possible), progress, logs)
            return replace(result, plan=plan), left_out
