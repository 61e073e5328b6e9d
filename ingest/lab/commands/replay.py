"""`replay`: a recording, published again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ingest.commands.common import ConfigOption, JsonOption, ending, run_async, say, settings_of
from ingest.lab.commands.publish import publish
from ingest.lab.replay import Replay

app = typer.Typer()


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
        run_async(publish(settings, 1, recording, recording.total))
        say(recording.account(), as_json=as_json)
