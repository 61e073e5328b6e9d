"""`dead-letters list|show|replay|purge`: what was rejected, and how it comes back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import asyncpg
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
from ingest.commands.dead_letters import report
from ingest.commands.dead_letters.replay import Judge, LetterReplay, ReplayAccount
from ingest.config import Settings
from ingest.errors import ConfigError, IngestError, NotReady
from ingest.model import Reason
from ingest.store import dead_letters
from ingest.store.connect import connected
from ingest.store.dead_letters import LetterGroup, Listed, Shown, Which

NAME = "iov-ingest dead-letters"
"""The application_name of its connection to the database."""

_LAST_ID, _MANY = 2**63 - 1, 1_000_000
"""Largest bigint; more letters or attempts than anybody looks at."""

ReasonOption = Annotated[
    list[Reason] | None, typer.Option("--reason", help="Only with this reason; may be repeated.")
]
StreamOption = Annotated[
    list[str] | None, typer.Option("--stream", help="Only of this stream; may be repeated.")
]
DeviceOption = Annotated[
    list[str] | None, typer.Option("--device", help="Only of this device; may be repeated.")
]
IdOption = Annotated[
    list[int] | None,
    typer.Option("--id", help="Only the letter with this id; may be repeated.", max=_LAST_ID),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        help="Received at this time (RFC 3339) or later, or within the last 90m, 24h, 7d."
    ),
]
AttemptsOption = Annotated[
    int | None,
    typer.Option(
        "--most-attempts",
        help="Only letters replayed at most this many times; 0: never.",
        min=0,
        max=_MANY,
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(help="Received before this time (RFC 3339), or at least this long ago: 30d."),
]

app = typer.Typer(
    name="dead-letters",
    no_args_is_help=True,
    help="What was rejected: list, show, replay, purge.",
)


@app.callback()
def dead_letters_() -> None:
    """Look at rejected samples, bring them back after the cause is mended, or delete them.

    All but `list` need a database user in the role `iov_dead_letters`.
    """


@app.command(name="list")
def list_(
    reason: ReasonOption = None,
    stream: StreamOption = None,
    device: DeviceOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    most_attempts: AttemptsOption = None,
    limit: Annotated[int, typer.Option(help="Number of letters to list.", min=0, max=_MANY)] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count dead letters by stream and reason, and list the newest of them.

    A user in the role `iov_reader` may do this, because no payload is read.
    """
    with ending():
        which = _which(reason, stream, device, None, since, until, most_attempts)
        settings = settings_of(config, "IOV_DATABASE_URL")
        groups, newest = run_async(_list(settings, which, limit))
        if as_json:
            report.say_json(
                letters=sum(group.letters for group in groups),
                groups=[group._asdict() for group in groups],
                newest=[letter._asdict() for letter in newest],
            )
        else:
            report.letters(groups, newest)


@app.command()
def show(
    id_: Annotated[
        int, typer.Argument(metavar="ID", help="Id of the letter, from `list`.", max=_LAST_ID)
    ],
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the payload, and nothing else, byte by byte.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter with its payload, and what the service would say of it now."""
    with ending():
        settings = settings_of(config, "IOV_DATABASE_URL")
        shown: Shown | None = run_async(_show(settings, id_))
        if shown is None:
            raise NotReady(f"there is no dead letter {id_}: replayed, purged or past its keeping?")
        if raw:
            sys.stdout.buffer.write(shown.letter.payload)
            return
        report.letter(id_, shown, now=_judge(settings).now(id_, shown.letter), as_json=as_json)


@app.command()
def replay(
    reason: ReasonOption = None,
    stream: StreamOption = None,
    device: DeviceOption = None,
    id_: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    most_attempts: AttemptsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, change nothing.")
    ] = False,
    most_failed: Annotated[
        float,
        typer.Option(
            help="Stop once more than this share failed; judged after every 500 letters, if 100 or "
            "more were tried. A letter that is stored in part has not failed.",
            min=0,
            max=1,
        ),
    ] = 0.5,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Process dead letters again, and print “reason then → outcome now”.

    A letter is checked as when it arrived: its age is judged by the time of its arrival, and that
    stays the `received_at` of its row. It is deleted in the transaction that stores its samples. A
    letter of which nothing can be stored stays, with the reason of now and one attempt more. If
    some samples of a message can be stored, the others become letters of their own.

    Letters of which only size and digest were kept cannot come back.

    --dry-run does not ask the database, which may still refuse a row or already have it.

    Ends with status 1 if it stopped because too many failed, or because nothing could be committed
    for half a minute; letters that are rejected again do not change the status.
    """
    with ending():
        which = _which(reason, stream, device, id_, since, until, most_attempts)
        settings = settings_of(config, "IOV_DATABASE_URL")
        judge = _judge(settings)
        if dry_run:
            account = run_async(_dry_run(settings, judge, which))
        else:
            account = run_async(_replay(settings, judge, which, most_failed))
        if as_json:
            report.say_json(dry_run=dry_run, **account.as_json())
        else:
            report.account(account, dry_run=dry_run)
        if account.stopped:
            left = account.letters - account.done
            hint = "choose by --reason or --most-attempts 0, or raise --most-failed"
            complain("stopped:", f"too many failed; {left:,} letters are left as they were: {hint}")
            raise typer.Exit(1)


@app.command()
def purge(
    reason: ReasonOption = None,
    stream: StreamOption = None,
    device: DeviceOption = None,
    id_: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    most_attempts: AttemptsOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All letters, whatever they are.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete dead letters for good, after asking.

    `maintain` deletes old ones by itself: see `[dead_letter]` in `IOV_RETENTION_FILE`.
    """
    with ending():
        which = _which(reason, stream, device, id_, since, until, most_attempts)
        if which.is_all and not all_:
            raise ConfigError(["purge: say which letters, or --all"])
        if not (yes or dry_run or sys.stdin.isatty()):
            raise ConfigError(["purge: nobody is there to ask: --yes deletes without asking"])
        settings = settings_of(config, "IOV_DATABASE_URL")
        last, letters = run_async(_count(settings, which))
        if not (dry_run or yes or not letters):
            typer.confirm(f"Delete {letters:,} dead letters?", abort=True, err=True)
        purged = 0 if dry_run else run_async(_purge(settings, which, last, letters))
        if as_json:
            report.say_json(dry_run=dry_run, letters=letters, purged=purged)
        else:
            typer.echo(f"{letters if dry_run else purged:,} {'would be ' * dry_run}deleted")


def _which(
    reason: list[Reason] | None,
    stream: list[str] | None,
    device: list[str] | None,
    id_: list[int] | None,
    since: str | None,
    until: str | None,
    most_attempts: int | None,
) -> Which:
    """Return what the options choose; raises ConfigError if a time cannot be read."""
    now = datetime.now(UTC)
    begins = moment(since, now, "--since") if since else None
    ends = moment(until, now, "--until") if until else None
    if begins is not None and ends is not None and begins >= ends:
        raise ConfigError(["--since is not before --until"])
    return Which(
        [one.value for one in reason] if reason else None,
        stream or None,
        device or None,
        id_ or None,
        begins,
        ends,
        most_attempts,
    )


def _judge(settings: Settings) -> Judge:
    return Judge.of(settings.schema_dir, settings)


@asynccontextmanager
async def _connected(settings: Settings, **rights: bool) -> AsyncIterator[asyncpg.Connection]:
    async with connected(
        settings.database, NAME, command_timeout_s=None, statement_timeout="0"
    ) as connection:
        await dead_letters.expect_letters(connection, **rights)
        yield connection


async def _list(
    settings: Settings, which: Which, most: int
) -> tuple[list[LetterGroup], list[Listed]]:
    async with _connected(settings) as connection:
        groups = await dead_letters.groups(connection, which)
        return groups, await dead_letters.newest(connection, which, most)


async def _show(settings: Settings, id_: int) -> Shown | None:
    async with _connected(settings, may_read=True) as connection:
        return await dead_letters.one(connection, id_)


async def _dry_run(settings: Settings, judge: Judge, which: Which) -> ReplayAccount:
    async with _connected(settings, may_read=True) as connection:
        return await LetterReplay(connection, which).dry_run(judge, partial(progress, "judging"))


async def _replay(
    settings: Settings, judge: Judge, which: Which, most_failed: float
) -> ReplayAccount:
    async with _connected(settings, may_read=True, may_change=True) as connection:
        await dead_letters.change_alone(connection)
        replay = LetterReplay(connection, which)
        try:
            return await replay.run(settings, judge, most_failed, partial(progress, "replaying"))
        except (asyncio.CancelledError, IngestError):
            report.interrupted(replay.account)
            raise


async def _count(settings: Settings, which: Which) -> tuple[int, int]:
    """Return the last id that is there, and the number of the chosen letters."""
    async with _connected(settings, may_change=True) as connection:
        last = await dead_letters.last_id(connection)
        return last, sum(one.letters for one in await dead_letters.groups(connection, which))


async def _purge(settings: Settings, which: Which, last: int, letters: int) -> int:
    purged = 0
    async with _connected(settings, may_change=True) as connection:
        await dead_letters.change_alone(connection)
        with progress("deleting", letters) as advance:
            async for gone in dead_letters.purge(connection, which, last):
                purged += gone
                advance(gone)
    return purged
