"""`devices import`: copies descriptions of devices from a CSV file into `iov.device`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ingest.commands.common import ConfigOption, JsonOption, ending, run_async, say, settings_of
from ingest.config import Settings
from ingest.decode import parse_topic
from ingest.errors import ConfigError
from ingest.schema import Catalogue, load_catalogue
from ingest.schema.vin import check_digit_agrees
from ingest.store import naming
from ingest.store.connect import connect, expect_migrated
from ingest.store.devices import DESCRIBED

_DEVICE = "device"
_MOST_PROBLEMS = 20

_STAGE = """
CREATE TEMPORARY TABLE stage_device (device text, kind text, vin text, region text, fleet text)
ON COMMIT DROP
"""
_ADD = """
INSERT INTO iov.device (device, first_seen_at)
SELECT device, now() FROM stage_device ORDER BY device ON CONFLICT (device) DO NOTHING
"""
# The workers use this function too. It takes devices in one order, so that no deadlock occurs.
_DESCRIBE = """
SELECT iov.describe_devices_as(1::smallint,
    array_agg(d.device_id), array_agg(now()), array_agg(s.kind), array_agg(s.vin),
    array_agg(s.region), array_agg(s.fleet))
FROM stage_device s JOIN iov.device d USING (device)
"""


class Described(NamedTuple):
    """One line of the file; an empty field is None and leaves the stored value as it is."""

    device: str
    kind: str | None = None
    vin: str | None = None
    region: str | None = None
    fleet: str | None = None


app = typer.Typer(name="devices", no_args_is_help=True, help="The register of devices.")


@app.callback()
def devices() -> None:
    """Manage what is known about devices besides what they send."""


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV: device,kind,vin,region,fleet.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe devices from a CSV file with a header line; needs a user that owns the tables.

    An empty field leaves the stored value as it is. A device's own `session` samples do not change
    a value that was imported. `vin_check_digit` is the number of Chinese VINs whose check digit is
    wrong; they are stored all the same.
    """
    with ending():
        settings = settings_of(config, "IOV_DATABASE_URL")
        catalogue = load_catalogue(settings.schema_dir)
        found = read_devices(file, catalogue)
        say(run_async(_import(settings, catalogue, found)), as_json=as_json)


async def _import(
    settings: Settings, catalogue: Catalogue, found: list[Described]
) -> dict[str, Any]:
    with naming(settings.database):
        return await import_devices(settings, catalogue, found)


def read_devices(file: Path, catalogue: Catalogue) -> list[Described]:
    """Return the devices of a CSV file with a header; raise ConfigError if a line is wrong.

    The error lists the wrong lines, 20 at most. The `session` schema says what a field may hold,
    because a device's `session` samples fill the same fields.
    """
    if "session" not in catalogue:
        raise ConfigError(["there is no schema of the stream session, which says what is allowed"])
    problems: list[str] = []
    found: dict[str, Described] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for number, device in _lines(csv.DictReader(lines), catalogue, problems):
                if device.device in found:
                    problems.append(f"line {number}: {device.device} was there before")
                found[device.device] = device
    except OSError as exc:
        raise ConfigError([f"{file} cannot be read: {exc.strerror}"]) from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise ConfigError([f"{file} is no CSV file in UTF-8: {exc}"]) from exc
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        shown = [f"{file}, {problem}" for problem in problems[:_MOST_PROBLEMS]]
        raise ConfigError([*shown, *([f"{file}: {more} more"] if more > 0 else [])])
    return list(found.values())


def _lines(
    reader: csv.DictReader[str], catalogue: Catalogue, problems: list[str]
) -> Iterator[tuple[int, Described]]:
    header = reader.fieldnames or ()
    if _DEVICE not in header or set(header) - {_DEVICE, *DESCRIBED}:
        wanted = ",".join((_DEVICE, *DESCRIBED))
        problems.append(f"line 1: the header names device and any of the rest of {wanted}")
        return
    for line in reader:
        said = {name: value.strip() for name, value in line.items() if isinstance(value, str)}
        fields = {name: said[name] for name in DESCRIBED if said.get(name)}
        device = said.get(_DEVICE, "")
        fault = catalogue["session"].fault({"ts": 0, "event": "online", **fields})
        if None in line:
            problems.append(f"line {reader.line_num}: more fields than the header")
        elif parse_topic(f"iov/v1/{device}/session") is None:
            problems.append(f"line {reader.line_num}: the device is not [A-Za-z0-9_-]{{1,64}}")
        elif fault is not None:
            problems.append(f"line {reader.line_num}: {fault}")
        else:
            yield reader.line_num, Described(device, **fields)


async def import_devices(
    settings: Settings, catalogue: Catalogue, devices: list[Described]
) -> dict[str, Any]:
    """Add new devices and describe all of them, or do nothing; return the keys of `--json`."""
    connection = await connect(settings.database, "iov-ingest devices", command_timeout_s=None)
    try:
        await expect_migrated(connection, catalogue)
        async with connection.transaction():
            await connection.execute(_STAGE)
            await connection.copy_records_to_table(
                "stage_device", schema_name="pg_temp", records=devices
            )
            added = await connection.execute(_ADD)
            changed = await connection.fetchval(_DESCRIBE)
    finally:
        connection.terminate()
    return {
        "devices": len(devices),
        "added": int(added.rsplit(" ", 1)[1]),
        "changed": changed or 0,
        "vin_check_digit": sum(1 for d in devices if d.vin and not check_digit_agrees(d.vin)),
    }
