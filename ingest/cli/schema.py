"""`schema list|show|lint|docs|sql`: the streams and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from ingest.cli.common import ConfigOption, ending
from ingest.config import load
from ingest.errors import ConfigError
from ingest.schema import Catalogue, load_catalogue
from ingest.schema.docs import page
from ingest.schema.table import create_table

app = typer.Typer(no_args_is_help=True, help="The streams and what follows from them.")


@app.command(name="list")
def schema_list(config: ConfigOption = None) -> None:
    """The streams, their tables and what they are."""
    with ending():
        for stream in _catalogue(config).values():
            fields = len(stream.columns)
            typer.echo(
                f"{stream.name:12} iov.{stream.table:12} {fields:3} columns  "
                f"{stream.schema.get('title', '')}"
            )


@app.command(name="show")
def schema_show(stream: str, config: ConfigOption = None) -> None:
    """One schema with every reference resolved."""
    with ending():
        typer.echo(orjson.dumps(_one(stream, config).schema, option=orjson.OPT_INDENT_2).decode())


@app.command(name="lint")
def schema_lint(config: ConfigOption = None) -> None:
    """Whether every schema becomes a table, a validator and an extractor."""
    with ending():
        typer.echo(f"{len(_catalogue(config))} schemas are fine")


@app.command(name="docs")
def schema_docs(stream: str, config: ConfigOption = None) -> None:
    """The page of a stream in Markdown."""
    with ending():
        typer.echo(page(_one(stream, config)), nl=False)


@app.command(name="sql")
def schema_sql(
    stream: str,
    config: ConfigOption = None,
    hypertable: Annotated[bool, typer.Option("--hypertable", help="For TimescaleDB.")] = False,
) -> None:
    """The statements that make the table of a stream."""
    with ending():
        for statement in create_table(_one(stream, config), partitioned=not hypertable):
            typer.echo(f"{statement};")


def _catalogue(config: Path | None) -> Catalogue:
    return load_catalogue(load(config).schema_dir)


def _one(stream: str, config: Path | None) -> Any:
    catalogue = _catalogue(config)
    if stream not in catalogue:
        raise ConfigError([f"there is no stream {stream}; there are {', '.join(catalogue)}"])
    return catalogue[stream]
