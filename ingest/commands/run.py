"""`run`: the service. This module imports nothing that only other commands need."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Annotated

import typer

from ingest.check import Checker
from ingest.commands.common import ConfigOption, ending, run_async, settings_of
from ingest.errors import ConfigError
from ingest.schema import digest_of, load_catalogue
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
    """Run the service: read, store and acknowledge, until SIGTERM or SIGINT.

    With several workers, the first has the client id of the settings; the others add `-1`, `-2` …
    to it. Their metrics are on consecutive ports from `IOV_HTTP_PORT` on. On the port after the
    last worker's, `/targets` lists the workers for Prometheus (`http_sd_configs`) and `/readyz`
    says whether all are ready. A worker that dies is started again. If fewer workers are run later,
    the sessions of those that are no longer started are taken over.

    When a worker stops, the broker keeps its session. The session goes on receiving its share of
    what is published until the worker is started again. With --once-only the worker leaves for good
    instead: it stores what is left in its session, and the session ends.
    """
    with ending():
        settings = settings_of(config, "IOV_MQTT_URL", "IOV_DATABASE_URL")
        catalogue = load_catalogue(settings.schema_dir, digest_of(settings.digest_key_file))
        Checker.of(catalogue, settings)  # so that a wrong file of units is said once, at the start
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
