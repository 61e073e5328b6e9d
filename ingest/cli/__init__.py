"""`iov-ingest`: every command, its arguments, and how it ends.

Exit status 0 done, 1 failed, 2 wrong configuration or arguments. With `--json` the last line of
standard output is one JSON object; what is for people goes to standard error then.
"""

from __future__ import annotations

import typer

from ingest.cli import bench, devices, load, schema, serve, verify

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
app.add_typer(serve.app)
app.add_typer(load.app)
app.add_typer(verify.app)
app.add_typer(bench.app)
app.add_typer(schema.app, name="schema")
app.add_typer(devices.app, name="devices")


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="iov-ingest")
