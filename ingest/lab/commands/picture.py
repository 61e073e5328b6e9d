"""`picture`: one simulated hour, drawn."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from ingest.commands.common import JsonOption, ending, say
from ingest.errors import ConfigError

app = typer.Typer()


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
            picture_tool = import_module("ingest.lab.picture")
        except ModuleNotFoundError as exc:
            raise ConfigError([f"no {exc.name}: pip install 'iov-ingest[plot]'"]) from exc
        if output.suffix not in {".png", ".svg"}:
            raise ConfigError(["--output ends in .png or .svg"])
        say(picture_tool.draw(output, seed), as_json=as_json)
