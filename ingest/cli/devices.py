"""`devices import`: the register of devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ingest.cli.common import ConfigOption, JsonOption, ending, run_async, say, settings_of
from ingest.config import Settings
from ingest.schema import Catalogue, load_catalogue
from ingest.store import naming
from ingest.tools import devices as devices_tool

app = typer.Typer(name="devices", no_args_is_help=True, help="The register of devices.")


@app.callback()
def devices() -> None:
    """What is known about devices besides what they send."""


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV: device,kind,vin,region,fleet.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe devices from a CSV file with a header line; needs a user that owns the tables.

    An empty field leaves what is known. A device's own `session` samples may say something newer
    later. `vin_check_digit` counts Chinese VINs whose check digit is wrong; they are kept.
    """
    with ending():
        settings = settings_of(config, "IOV_DATABASE_URL")
        catalogue = load_catalogue(settings.schema_dir)
        found = devices_tool.read_devices(file, catalogue)
        say(run_async(_import(settings, catalogue, found)), as_json=as_json)


async def _import(
    settings: Settings, catalogue: Catalogue, found: list[devices_tool.Described]
) -> dict[str, Any]:
    with naming(settings):
        return await devices_tool.import_devices(settings, catalogue, found)
