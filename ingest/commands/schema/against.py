"""Tomorrow's schemas judge yesterday's rows: how many they would refuse, before `migrate`.

Of many rows, pages of the table are judged that are taken at random. A row is judged as the sample
that it was, as far as columns tell: not if a value was null or absent, nor what was sent in place
of a digest or for the device. Dead letters are judged as `dead-letters replay --dry-run` does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from ingest.commands.dead_letters.replay import Judge, LetterReplay, ReplayAccount
from ingest.commands.dead_letters.report import account as letters_report
from ingest.config import Settings
from ingest.schema import Catalogue, Stream, digest_of, load_catalogue
from ingest.schema.stored import sample_of
from ingest.store import dead_letters
from ingest.store.connect import connected
from ingest.store.dead_letters import Which
from ingest.store.rows import Span, estimate_of, others, rows_of

_MOST_TIMES = 2
"""Factor by which more rows than asked for are judged, if there are more than was estimated."""
_FEW_MORE = 1.5
"""Factor by which an estimate has to be larger than what was read to say anything."""
_INDEX = re.compile(r"/\d+(?=/|$)", re.ASCII)

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Verdict:
    """Verdict of new schemas on the rows of one stream."""

    stream: str
    rows: int = 0
    """Number of rows that were judged."""
    of: int = 0
    """Number of rows in the span, as the planner estimates it, if it is more."""
    stopped: bool = False
    """True if there were many more rows than the planner estimated, and the rest was left out."""
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
    """Verdicts of new schemas on everything in a span of time."""

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
    new: Path,
    span: Span,
    most: int,
    bar: Bar,
) -> Judgement:
    """Judge the rows of a span, about `most` of each stream or all, and its dead letters.

    A row is in the span by its `ts`, a dead letter by its `received_at`. `old` says which field a
    column holds, if a name has changed; the default is `new`, a directory. `old` takes digests as
    they are.
    """
    digest = digest_of(settings.digest_key_file)
    schemas = load_catalogue(new, digest, digested=True)
    async with connected(
        settings.database, "iov-ingest schema diff", command_timeout_s=None, statement_timeout="0"
    ) as connection:
        await dead_letters.expect_letters(connection, may_read=True)
        verdicts = await _gone(connection, schemas, span)
        with bar("streams judged", len(schemas)) as advance:
            for name, stream in schemas.items():
                verdict = Verdict(name)
                was = (old or schemas).get(name, stream)
                found = await rows_of(connection, was, span, most)
                if found is not None:
                    async with aclosing(found.some) as some:
                        async for rows in some:
                            for row in rows:
                                _judge_row(stream, was, row, settings, verdict)
                            # If statistics are older than the rows, there are more than expected.
                            if verdict.rows >= _MOST_TIMES * most:
                                verdict.stopped = True
                                break
                    verdict.of = max(found.estimate, verdict.rows)
                verdicts.append(verdict)
                advance(1)
        replay = LetterReplay(connection, Which(since=span[0], until=span[1]))
        letters = await replay.dry_run(Judge.of(new, settings), lambda n: bar("letters", n))
    return Judgement(verdicts, letters)


async def _gone(connection: Any, schemas: Catalogue, span: Span) -> list[Verdict]:
    """Return a verdict for each table with rows whose stream has no schema any more."""
    verdicts = []
    for table in await others(connection, [stream.table for stream in schemas.values()]):
        number = await estimate_of(connection, table, span)
        if number:
            told = Counter({"there is no such schema": number})
            verdicts.append(Verdict(table, number, number, refused=told))
    return verdicts


def _judge_row(
    stream: Stream, was: Stream, row: Mapping[str, Any], settings: Settings, verdict: Verdict
) -> None:
    """Judge one row; `was` is the stream that it was stored by."""
    verdict.rows += 1
    stored = sample_of(was.columns, row)
    sample = stream.vocabulary.translated(stream.storable(stored.sample))
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
        more = f" of about {verdict.of:,}" if verdict.of > verdict.rows * _FEW_MORE else ""
        more = " of many more (ANALYZE would tell how many)" if verdict.stopped else more
        refused = f"{verdict.refused.total():,} would be refused"
        typer.echo(f"{verdict.stream}: {verdict.rows:,} rows{more} judged, {refused}")
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
