"""`schema list|show|lint|docs|diff|sql`: the streams and what follows from them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer

from ingest.commands.common import (
    ConfigOption,
    JsonOption,
    complain,
    ending,
    moment,
    progress,
    run_async,
    settings_of,
)
from ingest.commands.schema.against import judge, report
from ingest.commands.schema.diff import diff
from ingest.commands.schema.docs import page, pages
from ingest.commands.schema.lint import lint
from ingest.config import Settings, load
from ingest.errors import ConfigError
from ingest.schema import Catalogue, Stream, default_directory, digest_of, load_catalogue
from ingest.schema.catalogue import (
    SUFFIX,
    load_rules,
    load_schema,
    schema_files,
    vocabularies,
)
from ingest.schema.stream import stream as build
from ingest.schema.table import create_table

app = typer.Typer(
    name="schema", no_args_is_help=True, help="The streams and what follows from them."
)


@app.command(name="list")
def schema_list(config: ConfigOption = None) -> None:
    """List the streams: name, table, number of columns, title."""
    with ending():
        for stream in _catalogue(config).values():
            fields = len(stream.columns)
            typer.echo(
                f"{stream.name:12} iov.{stream.table:12} {fields:3} columns  "
                f"{stream.schema.get('title', '')}"
            )


@app.command(name="show")
def schema_show(stream: str, config: ConfigOption = None) -> None:
    """Print one schema with every reference resolved."""
    with ending():
        typer.echo(orjson.dumps(_one(stream, config).schema, option=orjson.OPT_INDENT_2).decode())


@app.command(name="lint")
def schema_lint(
    directory: Annotated[
        Path | None, typer.Argument(help="Schemas; default: those the service uses.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the schemas' names, units, ranges, sources, examples and columns.

    Reports all problems at once, and ends with status 1 if there are any. An example in
    `STREAM/invalid/` is named after its fault: JSON pointer and keyword, joined by dots, as in
    `location.lon.minimum.json`.
    """
    with ending():
        directory = _directory(directory, config)
        problems = lint(directory)
        for problem in problems:
            complain("✗", problem)
        if as_json:
            typer.echo(orjson.dumps({"ok": not problems, "problems": problems}).decode())
        elif not problems:
            typer.echo(f"{len(schema_files(directory))} schemas are clean")
        if problems:
            raise typer.Exit(1)


@app.command(name="docs")
def schema_docs(
    stream: Annotated[str | None, typer.Argument(help="One stream; without it all.")] = None,
    config: ConfigOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory to write the pages and an index to.")
    ] = None,
) -> None:
    """Make the Markdown page of one stream, or the pages of all streams and an index."""
    with ending():
        catalogue, directory = _catalogue(config), _directory(None, config)
        if stream is not None:
            found = {f"{stream}.md": page(_one(stream, config), directory)}
        else:
            found = pages(catalogue, directory)
        for name, text in found.items():
            if output is None:
                typer.echo(text, nl=False)
            else:
                output.mkdir(parents=True, exist_ok=True)
                (output / name).write_text(text, encoding="utf-8")
        if output is not None:
            typer.echo(f"{len(found)} pages in {output}")


@app.command(name="diff")
def schema_diff(
    old: Annotated[
        Path | None,
        typer.Argument(
            help="A directory of schemas, or a schema file; NEW if alone and with --against-last."
        ),
    ] = None,
    new: Annotated[Path | None, typer.Argument(help="Another of the same kind.")] = None,
    against_last: Annotated[
        str | None,
        typer.Option(
            help="Also judge what was stored and rejected in this span until now: 24h, 7d.",
            metavar="SPAN",
        ),
    ] = None,
    most: Annotated[
        int, typer.Option(help="Number of rows of each stream to judge, about.", min=100)
    ] = 100_000,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare schemas; say whether NEW may replace OLD, and end with status 1 if it may not.

    NEW is compatible if every sample that OLD accepts is still accepted, if `migrate` can change
    the tables, and if every column keeps its meaning. `git worktree add /tmp/old v1.0` makes an OLD
    to compare with.

    With --against-last, NEW also judges the rows and dead letters of the database: how many it
    would refuse, and how many it would take that were refused. Columns do not tell null from
    absent, nor what was sent for a digest or a device, so demands on those are not judged. It
    changes nothing, and needs a user in `iov_dead_letters`. If only one directory is given, it is
    NEW, and OLD is what the service uses; if none is given, NEW is what the service uses, and
    nothing is compared.
    """
    with ending():
        judgement = None
        if against_last is not None:
            settings = settings_of(config, "IOV_DATABASE_URL")
            in_use = settings.schema_dir or default_directory()
            if new is None:
                old, new = (in_use, old) if old is not None else (None, in_use)
            until = datetime.now(UTC)
            since = moment(against_last, until, "--against-last")
            if since >= until:
                raise ConfigError(["--against-last: a span of time until now, like 24h"])
            judgement = run_async(
                judge(
                    settings,
                    _as_stored(old, settings) if old is not None else None,
                    _directories(new),
                    (since, until),
                    most,
                    progress,
                )
            )
        elif old is None or new is None:
            raise ConfigError(["schema diff: name OLD and NEW, or give --against-last"])
        changes = diff(_either(old), _either(new)) if old is not None else []
        for change in changes:
            sign = "  " if change.compatible else "✗ "
            typer.echo(f"{sign}{change.where}: {change.what}")
        compatible = all(change.compatible for change in changes)
        if judgement is not None:
            report(judgement)
        if as_json:
            listed = [change._asdict() for change in changes]
            against = {} if judgement is None else {"against": judgement.as_json()}
            account = {"compatible": compatible, "changes": listed, **against}
            typer.echo(orjson.dumps(account).decode())
        elif old is not None:
            typer.echo("compatible" if compatible else "not compatible")
        if not compatible or (judgement is not None and judgement.is_worse):
            raise typer.Exit(1)


@app.command(name="sql")
def schema_sql(
    stream: Annotated[str | None, typer.Argument(help="One stream; without it all.")] = None,
    config: ConfigOption = None,
    hypertable: Annotated[bool, typer.Option("--hypertable", help="For TimescaleDB.")] = False,
) -> None:
    """Print the SQL statements that make the table of one stream, or of all streams."""
    with ending():
        for one in [_one(stream, config)] if stream else _catalogue(config).values():
            for statement in create_table(one, partitioned=not hypertable):
                typer.echo(f"{statement};")


def _directories(path: Path) -> Path:
    """Return the path of a directory; raises ConfigError if it is none."""
    if not path.is_dir():
        raise ConfigError([f"--against-last needs directories of schemas, and {path} is none"])
    return path


def _as_stored(path: Path, settings: Settings) -> Catalogue:
    """Return the streams of a directory, for samples as they are stored: with digests."""
    return load_catalogue(_directories(path), digest_of(settings.digest_key_file), digested=True)


def _either(path: Path) -> Catalogue:
    """Return the streams of a directory, or the one stream of a schema file."""
    if path.is_dir():
        return load_catalogue(path)
    name = path.name.removesuffix(SUFFIX)
    rules, others = load_rules(path.parent), vocabularies(path.parent)
    return {name: build(name, load_schema(path), rules, vocabularies=others)}


def _directory(given: Path | None, config: Path | None) -> Path:
    return given or load(config).schema_dir or default_directory()


def _catalogue(config: Path | None) -> Catalogue:
    return load_catalogue(load(config).schema_dir)


def _one(stream: str, config: Path | None) -> Stream:
    catalogue = _catalogue(config)
    if stream not in catalogue:
        raise ConfigError([f"there is no stream {stream}; there are {', '.join(catalogue)}"])
    return catalogue[stream]
