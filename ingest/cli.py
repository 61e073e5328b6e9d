"""`iov-ingest`: the list of commands, and how they end.

The exit status is 0 after success, 1 after a failure, 2 for wrong configuration or arguments. With
`--json`, the last line of standard output is one JSON object, and text for people goes to standard
error.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from ingest.metrics import release

_MODULES = {
    "run": "commands.run",
    "migrate": "commands.migrate",
    "leave": "commands.leave",
    "drain": "commands.leave",
    "check": "commands.check",
    "maintain": "commands.maintain",
    "settings": "commands.settings",
    "schema": "commands.schema",
    "devices": "commands.devices",
    "dead-letters": "commands.dead_letters",
    "demo": "lab.commands.demo",
    "simulate": "lab.commands.simulate",
    "picture": "lab.commands.picture",
    "replay": "lab.commands.replay",
    "verify": "lab.commands.verify",
    "bench": "lab.commands.bench",
}
"""Module of each command, in the order of `--help`."""
_PANELS = {"commands": "The service", "lab": "To try it out, to break it, to measure it"}
"""Title in `--help` above the commands of each package."""

_STYLE: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "markdown",
}


class _Commands(TyperGroup):
    """Group of commands that imports a command's module only when that command is used.

    A worker that imported every tool would be 8 MB larger (measured) and start later.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  fixed by click
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULES:
            return None
        some = typer.Typer(callback=_commands, add_completion=False, **_STYLE)
        some.add_typer(import_module(f"ingest.{_MODULES[cmd_name]}").app)
        command: Any = get_group(some).get_command(ctx, cmd_name)
        command.rich_help_panel = _PANELS[_MODULES[cmd_name].partition(".")[0]]
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; for a mistyped name, fail and suggest the nearest command."""
        near = get_close_matches(args[0], _MODULES, n=1)
        if args[0] not in _MODULES and near:
            ctx.fail(f"No such command '{args[0]}'; did you mean {near[0]}?")
        return super().resolve_command(ctx, args)


def _say_version(asked: bool) -> None:  # noqa: FBT001  how typer calls it
    if asked:
        typer.echo(f"iov-ingest {release()}")
        raise typer.Exit


def _commands(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Accept the options that come before a command."""


app = typer.Typer(
    name="iov-ingest",
    cls=_Commands,
    callback=_commands,
    no_args_is_help=True,
    help="Vehicle telemetry from MQTT into PostgreSQL, acknowledged only after the commit.\n\n"
    "Settings come from the environment (`IOV_MQTT_URL`, `IOV_DATABASE_URL`, …) or from a TOML "
    "file with the same names. Begin with `iov-ingest demo`, then `check`, `migrate` and `run`.",
    **_STYLE,
)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="iov-ingest")
