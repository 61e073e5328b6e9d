"""Dead letters as people and programs read them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ingest.commands.common import people
from ingest.commands.dead_letters.replay import ReplayAccount
from ingest.store.dead_letters import LetterGroup, Listed, Shown

_SHOWN_BYTES = 4_096
_LINE_BYTES = 16
_MOST_CHARACTERS = 300
"""Number of characters of a field that are shown; a vehicle makes names of any length."""


def say_json(**account: Any) -> None:
    """Print one JSON object."""
    typer.echo(orjson.dumps(account).decode())


def letters(groups: Sequence[LetterGroup], newest: Sequence[Listed]) -> None:
    """Print how many letters there are of each stream and reason, and the newest of them."""
    if not groups:
        typer.echo("no dead letters")
        return
    table = _table("stream", "reason", "letters", "oldest", "newest")
    for group in groups:
        times = (at.isoformat(" ", "seconds") for at in (group.oldest, group.newest))
        table.add_row(_cell(group.stream or "-"), group.reason, f"{group.letters:,}", *times)
    console = Console()
    console.print(table)
    if newest:
        table = _table("id", "received at", "device", "stream", "reason", "attempts", "detail")
        for one in newest:
            table.add_row(
                str(one.id),
                one.received_at.isoformat(" ", "seconds"),
                _cell(one.device or "-"),
                _cell(one.stream or "-"),
                one.reason,
                str(one.attempts),
                _cell(one.detail),
            )
        console.print(table)


def letter(id_: int, shown: Shown, *, now: str, as_json: bool) -> None:
    """Print one letter; `now` is what the service would say of it."""
    columns = shown.letter.columns()
    payload = columns.pop("payload")
    fields = {
        "id": id_,
        **columns,
        "attempts": shown.attempts,
        "replayed_at": shown.replayed_at,
        "now": now,
    }
    if as_json:
        text = _text(payload)
        as_text = {"payload": text} if text is not None else {"payload_base64": _base64(payload)}
        say_json(**fields, **as_text, payload_bytes=len(payload))
        return
    for name, value in fields.items():
        if value is not None:
            typer.echo(f"{name:12} {_plain(str(value))[:_MOST_CHARACTERS]}")
    typer.echo(f"{'payload':12} {len(payload):,} bytes; --raw writes them as they came")
    typer.echo()
    typer.echo(readable(payload))


def account(replayed: ReplayAccount, *, dry_run: bool) -> None:
    """Print what became, or would become, of the letters."""
    table = _table("stream", "then", "", "now", "letters")
    for outcome, number in replayed.outcomes.most_common():
        row = (_cell(outcome.stream or "-"), outcome.then, "→", outcome.now, f"{number:,}")
        table.add_row(*row)
    if replayed.outcomes:
        Console().print(table)
    told = f"{replayed.done:,} of {replayed.letters:,} letters"
    if dry_run:
        typer.echo(f"{told} judged; nothing is changed")
        return
    typer.echo(
        f"{told} replayed: {replayed.stored:,} samples stored, "
        f"{replayed.duplicates:,} were there already"
    )


def interrupted(replayed: ReplayAccount) -> None:
    """Say what was done before a replay ended early."""
    people.print(f"{replayed.done:,} of {replayed.letters:,} letters were replayed")


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    table.columns[columns.index("letters") if "letters" in columns else 0].justify = "right"
    return table


def _plain(text: str) -> str:
    """Return a text of a vehicle's without what could steer a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _cell(text: str) -> str:
    """Return a text of a vehicle's for a table."""
    return escape(_plain(text))


def _base64(payload: bytes) -> str:
    return b64encode(payload).decode()


def _text(payload: bytes) -> str | None:
    """Return a payload as text; None if it is binary."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def readable(payload: bytes) -> str:
    """Return JSON indented, other text as it is, and of anything else the first bytes."""
    try:
        document = orjson.loads(payload)
        lines = orjson.dumps(document, option=orjson.OPT_INDENT_2).decode().split("\n")
        return "\n".join(map(_plain, lines))
    except (TypeError, ValueError, RecursionError):
        pass  # not JSON
    text = _text(payload)
    if text is not None and text.isprintable():
        return text
    lines = [
        f"{start:06x}  {payload[start : start + _LINE_BYTES].hex(' ')}"
        for start in range(0, min(len(payload), _SHOWN_BYTES), _LINE_BYTES)
    ]
    more = len(payload) - _SHOWN_BYTES
    return "\n".join([*lines, *([f"… {more:,} bytes more: --raw writes all"] if more > 0 else [])])
