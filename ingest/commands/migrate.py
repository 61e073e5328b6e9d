"""`migrate`: brings the database to the current schemas."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape

from ingest.commands.common import (
    ConfigOption,
    JsonOption,
    ending,
    people,
    run_async,
    settings_of,
)
from ingest.config import Settings
from ingest.schema import Catalogue, load_catalogue
from ingest.store import migrate, naming

app = typer.Typer()


@app.command(name="migrate")
def migrate_(
    config: ConfigOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the SQL, change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the database to the current schemas; safe to repeat, and to run in parallel."""
    with ending():
        settings = settings_of(config, "IOV_DATABASE_URL")
        steps = run_async(_migrate(settings, load_catalogue(settings.schema_dir), dry_run=dry_run))
        if dry_run:
            for step in steps:
                typer.echo(f"-- {step.what}")
                for statement in step.statements:
                    typer.echo(statement.rstrip().rstrip(";") + ";\n")
        if as_json:
            typer.echo(
                orjson.dumps({"applied": [] if dry_run else [s.what for s in steps]}).decode()
            )
        elif not dry_run:
            for step in steps:
                typer.echo(step.what)
            typer.echo(f"{len(steps)} applied" if steps else "nothing to do")


async def _migrate(settings: Settings, catalogue: Catalogue, *, dry_run: bool) -> Any:
    with naming(settings.database):
        return await migrate(
            settings,
            catalogue,
            dry_run=dry_run,
            waiting=lambda whom: people.print(f"waiting for {escape(whom)}"),
        )
