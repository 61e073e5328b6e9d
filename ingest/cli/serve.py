"""`migrate`, `drain`, `check`: what the service needs beside `run`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape

from ingest.cli.common import (
    ConfigOption,
    JsonOption,
    complain,
    ending,
    people,
    run_async,
    say,
    settings_of,
)
from ingest.config import Settings
from ingest.errors import ConfigError
from ingest.schema import Catalogue, load_catalogue
from ingest.store import migrate, naming
from ingest.tools import check as check_tool
from ingest.tools import drain as drain_tool
from ingest.tools import statefulset

app = typer.Typer()


@app.command(name="migrate")
def migrate_(
    config: ConfigOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the SQL, change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the database to the current schemas; safe to run again and by several at once."""
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
    with naming(settings):
        return await migrate(
            settings,
            catalogue,
            dry_run=dry_run,
            waiting=lambda whom: people.print(f"waiting for {escape(whom)}"),
        )


@app.command()
def drain(
    config: ConfigOption = None,
    client_id: Annotated[
        str | None, typer.Option(help="Of the worker; without it IOV_MQTT_CLIENT_ID.")
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Although no other worker takes what is new.")
    ] = False,
    unregistered: Annotated[
        bool, typer.Option("--unregistered", help="Although the register does not know it.")
    ] = False,
    if_scaled_in: Annotated[
        bool,
        typer.Option("--if-scaled-in", help="Only if this pod's StatefulSet takes it away."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Have a worker leave for good: nothing stays behind in its session at the broker.

    A worker that is at work is asked through the database and waited for: it unsubscribes, commits
    and acknowledges what the broker still has for it, ends its session, and stops. SIGUSR1 does
    the same to a process. From a worker that will not return the session is taken over and drained
    here. Before a restart this is not needed: SIGTERM keeps the session for the next start.

    With --if-scaled-in it is a Kubernetes preStop hook: it asks the API whether the StatefulSet
    has fewer replicas than this pod's ordinal, and does nothing where it has not.
    """
    with ending():
        settings = settings_of(config, "IOV_MQTT_URL", "IOV_DATABASE_URL")
        name = client_id or settings.mqtt_client_id
        if if_scaled_in and not run_async(statefulset.scaled_in()):
            account = {"client_id": name, "how": "stays", "messages": None}
        else:
            leaving = drain_tool.leave(
                settings, name, last=last, unregistered=unregistered, progress=people.print
            )
            account = run_async(leaving)
        say(account, as_json=as_json)


@app.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at configuration, schemas, broker and database: what is wrong and how to mend it.

    Measures what the broker lets one client have unacknowledged, and keeps for one that is behind,
    with a client, a topic (`iov-check/…`) and a group of its own; no worker hears of it. Ends with
    status 1 where something loses data or keeps the service from being ready.
    """
    try:
        settings = settings_of(config, "IOV_MQTT_URL", "IOV_DATABASE_URL")
    except ConfigError as exc:
        _say_check(check_tool.Findings(exc.problems), as_json=as_json)
        raise typer.Exit(2) from exc
    with ending():
        found: check_tool.Findings = run_async(check_tool.check(settings))
        _say_check(found, as_json=as_json)
        if found.problems:
            raise typer.Exit(1)


def _say_check(found: check_tool.Findings, *, as_json: bool) -> None:
    for problem in found.problems:
        complain("✗", problem)
    for warning in found.warnings:
        people.print(f"[bold yellow]![/] {escape(warning)}", highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(orjson.dumps({"ok": not found.problems, **asdict(found)}).decode())
        return
    for name, value in found.measured.items():
        typer.echo(f"{name:20} {value}")
    if not found.problems:
        typer.echo("configuration, schemas, broker and database are fine")
