"""Parts shared by all commands: options, exit status, and the printed result."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingest import log
from ingest.config import Settings, load
from ingest.errors import ConfigError, IngestError, SchemaError
from ingest.schema.rfc3339 import rfc3339

people = Console(stderr=True)

_SPAN = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file with `IOV_*` settings.", metavar="FILE")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="The last line of output is one JSON object.")
]


def complain(what: str, text: str) -> None:
    """Print one problem on one line of standard error."""
    people.print(f"[bold red]{what}[/] {escape(text)}", highlight=False, soft_wrap=True)


@contextmanager
def ending() -> Iterator[None]:
    """Turn our errors into a sentence for people and an exit status."""
    try:
        yield
    except* ConfigError as group:
        for problem in _leaves(group, ConfigError)[0].problems:
            complain("configuration:", problem)
        code = 2
    except* SchemaError as group:
        complain("schemas:", str(_leaves(group, SchemaError)[0]))
        code = 2
    except* IngestError as group:
        complain("failed:", str(_leaves(group, IngestError)[0]))
        code = 1
    else:
        return
    raise typer.Exit(code)


def _leaves(group: BaseExceptionGroup[Any], kind: type[Any]) -> list[Any]:
    """Return the errors of one kind in a group, at any depth."""
    found: list[Any] = []
    for exc in group.exceptions:
        found += _leaves(exc, kind) if isinstance(exc, BaseExceptionGroup) else [exc]
    return [exc for exc in found if isinstance(exc, kind)]


def run_async(main_: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's coroutine on uvloop; return its result.

    SIGTERM, Ctrl-C and a closed terminal cancel the coroutine, unless it has set a handler for the
    signal itself; so servers that it has started end with it. The exit status is then the one that
    a shell uses for that signal: 128 plus its number.
    """
    received: list[int] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_until_told(main_, received))
        except asyncio.CancelledError:
            if not received:
                raise
            people.print("interrupted")
            raise typer.Exit(128 + received[0]) from None


async def _until_told(main_: Coroutine[Any, Any, Any], received: list[int]) -> Any:
    task = asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Under nohup(1) SIGHUP is ignored, and stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return await main_


def settings_of(config: Path | None, *needs: str) -> Settings:
    """Load the settings and set up logging; raise ConfigError if one of `needs` is not set."""
    settings = load(config, needs=needs)
    log.configure(settings.log_format, settings.log_level)
    return settings


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while the block runs; call what is yielded with each advance."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=people, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda advanced: bar.advance(task, advanced)


def moment(text: str, now: datetime, option: str) -> datetime:
    """Return the time that an option names: RFC 3339 with a zone, or a span before `now`.

    A span is a number of seconds, minutes, hours, days or weeks: 90s, 15m, 24h, 7d, 2w. Raises
    ConfigError if the text is neither.
    """
    if span := _SPAN.fullmatch(text):
        try:
            return now - timedelta(**{_UNITS[span[2]]: int(span[1])})
        except OverflowError:
            raise ConfigError([f"{option}: {text} ago is outside the calendar"]) from None
    try:
        return rfc3339(text)
    except (ValueError, OverflowError):
        hint = "it is like 24h or 2026-01-31T08:00:00Z"
        raise ConfigError([f"{option}: {text} is no time: {hint}"]) from None


def say(account: dict[str, Any], *, as_json: bool) -> None:
    """Print the account of a command: JSON for programs, or a table for people."""
    if as_json:
        typer.echo(orjson.dumps(account).decode())
        return
    table = Table(show_header=False, box=None)
    for key, value in account.items():
        if isinstance(value, dict):
            for name, number in value.items():
                table.add_row(f"  {name}", f"{number:,}")
        else:
            table.add_row(key, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(table)
