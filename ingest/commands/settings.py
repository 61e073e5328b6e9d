"""`settings`: lists every setting with its default, its allowed values and its meaning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape

from ingest.config import PREFIX, Settings

_HEAD = (
    "# Settings\n\n"
    "Environment variables, or the same names in a TOML file given with `--config`; the "
    "environment wins. An unknown `IOV_` name is an error, all problems are reported at once "
    "(exit status 2), secrets are never printed. This page is made by "
    "`iov-ingest settings --markdown`.\n"
)
_GROUPS = {
    "Broker": "mqtt_",
    "Database": "database_ store unsafe_ batch_ commit_ stuck_ adopt_ retention_",
    "What is accepted": "max_ refused_ dead_ digest_ gbt32960_ schema_",
    "HTTP and logs": "http_ log_",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "≤"}
"""Signs by which bounds are shown, by pydantic's names for them (annotated-types)."""


app = typer.Typer()


@app.command(name="settings")
def settings_(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the page docs/settings.md.")
    ] = False,
) -> None:
    """List every setting: its default, its allowed values, its meaning.

    Settings are environment variables, or the same names in a TOML file given to a command with
    --config. `check` says what is wrong with the settings that are set.
    """
    if markdown:
        typer.echo(page(), nl=False)
        return
    out = Console(highlight=False)
    for row in settings():
        name, default, values, what = (text.replace("`", "") for text in row.values())
        default = f" = {default}" if default else ""
        out.print(f"[bold]{name}[/]{escape(default)}  [dim]{escape(values)}[/]")
        out.print(f"    {escape(what)}")


def settings() -> Iterator[dict[str, str]]:
    """Yield name, default, values and description of every setting, in order."""
    for field_name, field in Settings.model_fields.items():
        yield {
            "setting": PREFIX + field_name.upper(),
            "default": _default(field),
            "values": _values(field),
            "what it is": field.description or "",
        }


def page() -> str:
    """Return all settings as a Markdown page, in groups."""
    rows = {row["setting"]: row for row in settings()}
    parts = [_HEAD]
    for title, prefixes in _GROUPS.items():
        names = tuple(PREFIX + prefix.upper() for prefix in prefixes.split())
        chosen = [rows.pop(name) for name in list(rows) if name.startswith(names)]
        lines = [f"| `{r['setting']}` | {' | '.join(list(r.values())[1:])} |" for r in chosen]
        head = "| setting | default | values | what it is |\n| --- | --- | --- | --- |"
        parts.append("\n".join([f"## {title}\n", head, *lines, ""]))
    assert not rows, f"in no group: {sorted(rows)}"
    return "\n".join(parts)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "from the host name"
    if field.default is None:
        return ""
    return "empty" if field.default == "" else f"`{field.default}`"


def _values(field: FieldInfo) -> str:
    """Return a setting's choices, its bounds, or its kind: secret, path or text."""
    kinds = [kind for kind in get_args(field.annotation) or [field.annotation] if kind]
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in kinds)
    bounds = [
        f"{sign} {value:,}" if isinstance(value, int | float) else f"{sign} {value}"
        for rule in field.metadata
        for name, sign in _BOUNDS.items()
        if (value := getattr(rule, name, None)) is not None
    ]
    if bounds:
        return ", ".join(bounds)
    return "secret" if SecretStr in kinds else "path" if Path in kinds else "text"
