"""`settings`: what can be set."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ingest.tools import settings as settings_tool

app = typer.Typer()


@app.command(name="settings")
def settings_(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the page docs/settings.md.")
    ] = False,
) -> None:
    """List every setting: its default, what it may be, what it is.

    They are environment variables, or the same names in a TOML file given to a command with
    --config. `check` says what is wrong with the ones that are set.
    """
    if markdown:
        typer.echo(settings_tool.page(), nl=False)
        return
    out = Console(highlight=False)
    for row in settings_tool.settings():
        name, default, values, what = (text.replace("`", "") for text in row.values())
        default = f" = {default}" if default else ""
        out.print(f"[bold]{name}[/]{escape(default)}  [dim]{escape(values)}[/]")
        out.print(f"    {escape(what)}")
