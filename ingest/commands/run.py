"""`run`: the service. What only other commands need is not imported here."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Annotated

import typer

from ingest.commands.common import ConfigOption, ending, run_async, settings_of
from ingest.errors import ConfigError
from ingest.schema import load_catalogue
from ingest.worker import run as worker
from ingest.worker.service import signals
from ingest.worker.supervisor import Supervisor

app = typer.Typer()


@app.command()
def run(
    config: ConfigOption = None,
    workers: Annotated[int, typer.Option(help="Processes; one uses one core.", min=1)] = 1,
    once_only: Annotated[
        bool,
        typer.Option("--once-only", help="For trying it out: its session ends with it."),
    ] = False,
) -> None:
    """The service: reads, stores, acknowledges, until SIGTERM or SIGINT.

    With several workers the first has the settings' client id, the others `-1`, `-2` … after it;
    their metrics are on the ports from `IOV_HTTP_PORT` on, and on the port after the last one's
    `/targets` lists them for Prometheus (`http_sd_configs`) and `/readyz` speaks for all. One that
    dies is started again. Run fewer later, and the sessions of those it no longer starts are
    drained.

    When a worker stops, the broker keeps its session, which goes on taking its share of what is
    published until the worker is started again. With --once-only it leaves for good instead: what
    is left in its session is stored, and the session ends.
    """
    with ending():
        settings = settings_of(config, "IOV_MQTT_URL", "IOV_DATABASE_URL")
        catalogue = load_catalogue(settings.schema_dir)
        if workers == 1:
            run_async(worker.run(settings, catalogue, once_only=once_only))
            return
        if once_only:
            raise ConfigError(["--once-only is for one worker"])
        options = [] if config is None else ["--config", str(config)]
        command = [sys.executable, "-m", "ingest"]
        supervisor = Supervisor(
            settings, [*command, "run", *options], workers, [*command, "leave", *options]
        )
        if not run_async(_supervise(supervisor)):
            raise typer.Exit(1)


async def _supervise(supervisor: Supervisor) -> bool:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, supervisor.tell, signal.SIGUSR1)
    with signals(supervisor.stop):
        return await supervisor.run()
