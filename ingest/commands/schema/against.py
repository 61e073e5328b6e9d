"""Tomorrow's schemas judge yesterday's rows: how many they would refuse, before `migrate`.

The rows of a span of time are read in many slices of it, evenly, so that a part of them speaks for
all. A row is judged as the sample that it was. Dead letters of the span are judged as `dead-letters
replay --dry-run` does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import typer

from ingest.commands.dead_letters.replay import Judge, LetterReplay, ReplayAccount
from ingest.commands.dead_letters.report import account as letters_report
from ingest.config import Settings
from ingest.schema import Catalogue, Stream
from ingest.schema.stored import sample_of
from ingest.store import dead_letters
from ingest.store.connect import connected
from ingest.store.dead_letters import Which
from ingest.store.rows import SLICES, slices

_INDEX = re.compile(r"/\d+(?=/|$)", re.ASCII)

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Verdict:
    """What new schemas say of the rows of one stream."""

    stream: str
    rows: int = 0
    """Number of rows that were read."""
    whole: bool = True
    """True if these are all rows of the span."""
    refused: Counter[str] = field(default_factory=Counter)
    """Samples that would be rejected, by fault."""
    set_aside: Counter[str] = field(default_factory=Counter)
    """Values that would be set aside and were not, by JSON pointer with `*` for a place."""
    taken: Counter[str] = field(default_factory=Counter)
    """Values that were set aside and would not be, likewise."""

    @property
    def is_worse(self) -> bool:
        """True if something would be refused that was not."""
        return bool(self.refused or self.set_aside)


@dataclass
class Judgement:
    """What new schemas say of everything in a span of time."""

    rows: list[Verdict]
    letters: ReplayAccount

    @property
    def is_worse(self) -> bool:
        """True if something would be refused that was not."""
        return any(verdict.is_worse for verdict in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return the keys of `--json`."""
        return {"rows": [vars(one) for one in self.rows], "letters": self.letters.as_json()}


async def judge(
    settings: Settings,
    old: Catalogue | None,
    new: Catalogue,
    span: tuple[datetime, datetime],
    most: int,
    bar: Bar,
) -> Judgement:
    """Judge the rows of a span, at most `most` of each stream, and its dead letters.

    A row is in the span by its `ts`, a dead letter by its `received_at`. `old` says which field a
    column holds, if a name has changed; the default is `new`. Both take digests as they are.
    """
    since, until = span
    at_once = most // SLICES + 1
    verdicts: list[Verdict] = []
    async with connected(
        settings.database, "iov-ingest schema diff", command_timeout_s=None, statement_timeout="0"
    ) as connection:
        await dead_letters.expect_letters(connection, may_change=False)
        with bar("slices read", SLICES * len(new)) as advance:
            for name, stream in new.items():
                was = (old or new).get(name, stream)
                verdict = Verdict(name)
                async for rows in slices(connection, was, span, at_once):
                    verdict.whole &= len(rows) < at_once
                    for row in rows:
                        _judge_row(stream, was, row, settings, verdict)
                    advance(1)
                verdicts.append(verdict)
        which = Which(since=since, until=until)
        replay = LetterReplay(connection, which)
        letters = await replay.dry_run(Judge.of(new, settings), lambda n: bar("letters", n))
    return Judgement(verdicts, letters)


def _judge_row(
    stream: Stream, was: Stream, row: Mapping[str, Any], settings: Settings, verdict: Verdict
) -> None:
    """Judge one row; `was` is the stream that it was stored by."""
    verdict.rows += 1
    stored = sample_of(was.columns, row)
    sample = stream.storable(stored.sample)
    taken = stored.refused
    if stream.known(row["ts"], row["seq"], row["received_at"], sample) is None:
        divided = stream.set_aside(sample)
        fault = divided.fault or stream.fault(divided.kept)
        if fault is None and divided.refused and settings.refused_fields == "reject":
            fault = f"{divided.refused[0].pointer} is refused ({divided.refused[0].why})"
        if fault is not None:
            verdict.refused[_INDEX.sub("/*", fault)] += 1
            return
        refused = {one.pointer for one in divided.refused}
        verdict.set_aside.update(_INDEX.sub("/*", at) for at in refused - stored.refused)
        taken -= refused
    verdict.taken.update(_INDEX.sub("/*", at) for at in taken)


def report(judgement: Judgement) -> None:
    """Print what the new schemas say, as far as they say something else than the old ones."""
    for verdict in judgement.rows:
        if not verdict.rows:
            continue
        rows = f"{verdict.rows:,} rows" if verdict.whole else f"{verdict.rows:,} rows of more"
        typer.echo(f"{verdict.stream}: {rows} judged, {verdict.refused.total():,} would be refused")
        for told, found in (
            ("would be refused", verdict.refused),
            ("would be set aside", verdict.set_aside),
            ("was set aside and would be taken", verdict.taken),
        ):
            sign = "  " if found is verdict.taken else "✗ "
            for what, number in found.most_common():
                typer.echo(f"{sign}{number:8,} {what} {told}")
    if judgement.letters.letters:
        letters_report(judgement.letters, dry_run=True)
