"""`maintain`: drops old days, makes days to come, renews statistics, adds missing indexes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.filesize import decimal
from rich.markup import escape

from ingest.commands.common import (
    ConfigOption,
    JsonOption,
    complain,
    ending,
    people,
    run_async,
    settings_of,
)
from ingest.schema import load_catalogue
from ingest.store import TurnAccount, maintain

app = typer.Typer()


@app.command(name="maintain")
def maintain_(
    config: ConfigOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Drop what is no longer kept, make the days to come, renew statistics, index by time.

    Workers do this once an hour; one worker does it for all. Run as the owner of the tables, this
    command does more: it copies `IOV_RETENTION_FILE` into the database, waits for long readers
    instead of trying again later, indexes days that have no index yet, and sets TimescaleDB's
    policies. No commit waits for readers because of it. Ends with status 1 if something is left
    for later.

    The file has one table for each stream; days are whole numbers:

        [default]
        keep_days = 90
        compress_after_days = 7
        [battery]
        keep_days = 365
        [dead_letter]
        keep_days = 30
    """
    with ending():
        settings = settings_of(config, "IOV_DATABASE_URL")
        account: TurnAccount = run_async(
            maintain(
                settings,
                load_catalogue(settings.schema_dir),
                dry_run=dry_run,
                told=lambda what: people.print(escape(what), highlight=False, soft_wrap=True),
            )
        )
        if as_json:
            typer.echo(orjson.dumps({"dry_run": dry_run, **asdict(account)}).decode())
        else:
            _say(account, would="would be " if dry_run else "")
        for reason in account.later:
            complain("later:", reason)
        if account.later:
            raise typer.Exit(1)


def _say(account: TurnAccount, would: str) -> None:
    for what in account.kept:
        typer.echo(what)
    for done, names in (
        ("made", account.made), ("dropped", account.dropped), ("indexed by ts", account.indexed),
        ("analysed", account.analysed), ("run", account.policies),
    ):  # fmt: skip
        for name in names:
            typer.echo(f"{name} {would}{done}")
    if account.dead_letters:
        typer.echo(f"{account.dead_letters:,} dead letters {would}deleted")
    typer.echo(f"{decimal(account.freed_bytes)} {would}freed")
