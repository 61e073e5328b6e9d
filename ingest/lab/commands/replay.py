"""`replay`: a recording, published again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ingest.check import Checker
from ingest.commands.common import ConfigOption, JsonOption, ending, run_async, say, settings_of
from ingest.lab.commands.publish import publish
from ingest.lab.replay import Replay
from ingest.schema import digest_of, load_catalogue

app = typer.Typer()


@app.command()
def replay(
    file: Annotated[
        Path,
        typer.Argument(
            help='Lines {"topic", "payload"}, or of mosquitto_sub -F %j; binary payloads as '
            '"payload_base64". Plain or gzip.'
        ),
    ],
    config: ConfigOption = None,
    speed: Annotated[float, typer.Option(help="1: as recorded; 0: as acknowledged.", min=0)] = 1,
    shift: Annotated[
        bool, typer.Option("--shift", help="Move the recording to end now, all its date-times.")
    ] = False,
    resend: Annotated[
        bool, typer.Option("--resend", help="Mark samples as sent later than collected.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with status 1 if a sample is refused.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a recording, and tell what of it a worker refuses.

    What is refused is judged by the schemas and limits that are set here.
    """
    with ending():
        settings = settings_of(config, "IOV_MQTT_URL")
        catalogue = load_catalogue(settings.schema_dir, digest_of(settings.digest_key_file))
        checker = Checker.of(catalogue, settings)
        recording = Replay(file, speed, checker, shift=shift, resend=resend)
        recording.measure()
        run_async(publish(settings, 1, recording, recording.total))
        say(recording.account(), as_json=as_json)
        if strict and recording.refused:
            raise typer.Exit(1)
