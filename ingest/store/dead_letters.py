"""Dead letters in the database: kept by workers, found, replayed and purged by operators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg

from ingest.batch import LETTER_COLUMNS, SIZE_BYTES, DeadLetter
from ingest.errors import NotReady, Unavailable
from ingest.store.copy import copy

ROLE = "iov_dead_letters"
"""LetterGroup role that may read, replay and delete dead letters, and write what is in them."""

_AGAIN = """
UPDATE iov.dead_letter d
SET attempts = attempts + 1, replayed_at = now(), reason = l.reason, detail = l.detail,
    kept = l.kept,
    payload = CASE WHEN d.kept = 'raw' AND l.kept = 'clean' THEN l.payload ELSE d.payload END
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bytea[])
    AS l (id, reason, detail, kept, payload) WHERE d.id = l.id
"""
_TAKE_OUT = "DELETE FROM iov.dead_letter WHERE id = ANY($1::bigint[])"
_WHICH = """
    ($1::text[] IS NULL OR reason = ANY($1)) AND ($2::text[] IS NULL OR stream = ANY($2))
    AND ($3::text[] IS NULL OR device = ANY($3)) AND ($4::bigint[] IS NULL OR id = ANY($4))
    AND ($5::timestamptz IS NULL OR received_at >= $5)
    AND ($6::timestamptz IS NULL OR received_at < $6)
    AND ($7::integer IS NULL OR attempts <= $7)
"""
_GROUPS = f"""
SELECT coalesce(stream, ''), reason, count(*), min(received_at), max(received_at)
FROM iov.dead_letter WHERE {_WHICH} GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""
_NEWEST = f"""
SELECT id, received_at, device, stream, reason, detail, attempts
FROM iov.dead_letter WHERE {_WHICH} ORDER BY id DESC LIMIT $8
"""
_ONE = (
    f"SELECT {', '.join(LETTER_COLUMNS)}, attempts, replayed_at FROM iov.dead_letter WHERE id = $1"
)
_NEXT = f"""
SELECT id, octet_length(payload) FROM iov.dead_letter
WHERE {_WHICH} AND id > $8 AND id <= $9 ORDER BY id LIMIT $10
"""
_THESE = f"""
SELECT id, {", ".join(LETTER_COLUMNS)} FROM iov.dead_letter WHERE id = ANY($1::bigint[]) ORDER BY id
"""
_LAST = "SELECT coalesce(max(id), 0) FROM iov.dead_letter"
_PURGE = f"""
WITH gone AS (
    DELETE FROM iov.dead_letter WHERE id IN (
        SELECT id FROM iov.dead_letter WHERE {_WHICH} AND id <= $8 ORDER BY id LIMIT $9
    ) RETURNING 1
) SELECT count(*) FROM gone
"""
_KNOWN = """
SELECT count(*) = 3 FROM pg_attribute
WHERE attrelid = to_regclass('iov.dead_letter') AND attname IN ('kept', 'attempts', 'replayed_at')
"""
_MAY_READ = "SELECT has_column_privilege('iov.dead_letter', 'payload', 'SELECT')"
_MAY_CHANGE = """
SELECT has_table_privilege('iov.dead_letter', 'UPDATE')
    AND has_table_privilege('iov.dead_letter', 'DELETE')
"""
_ALONE = "SELECT pg_try_advisory_lock($1)"
_LOCK = 0x696F_766C  # "iovl"
_AT_ONCE = 500
"""Number of letters in one transaction."""
_PURGED_AT_ONCE = 10_000


class Which(NamedTuple):
    """Choice of dead letters; what is None does not limit it."""

    reasons: Sequence[str] | None = None
    streams: Sequence[str] | None = None
    devices: Sequence[str] | None = None
    ids: Sequence[int] | None = None
    since: datetime | None = None
    """Earliest `received_at`."""
    until: datetime | None = None
    """End of `received_at`, not included."""
    most_attempts: int | None = None
    """Number of times that a letter was replayed at most."""

    @property
    def is_all(self) -> bool:
        """True if nothing limits it."""
        return not any(part is not None for part in self)


class LetterGroup(NamedTuple):
    """Dead letters of one stream that have one reason."""

    stream: str
    """Name of the stream; empty if the topic could not be read."""
    reason: str
    letters: int
    oldest: datetime
    newest: datetime


class Listed(NamedTuple):
    """One dead letter without its payload, which may hold personal data."""

    id: int
    received_at: datetime
    device: str | None
    stream: str | None
    reason: str
    detail: str
    attempts: int


class Shown(NamedTuple):
    """One dead letter, whole."""

    letter: DeadLetter
    attempts: int
    replayed_at: datetime | None


async def keep(connection: asyncpg.Connection, letters: Sequence[DeadLetter]) -> None:
    """Write new letters; of letters that were replayed and rejected again, note why and when."""
    new = [letter[: len(LETTER_COLUMNS)] for letter in letters if letter.replayed is None]
    if new:
        await copy(connection, "iov", "dead_letter", LETTER_COLUMNS, new)
    now = datetime.now(UTC)
    parts = [
        (*letter[: len(LETTER_COLUMNS)], 1, now)
        for letter in letters
        if letter.replayed is not None and not letter.same
    ]
    if parts:
        columns = (*LETTER_COLUMNS, "attempts", "replayed_at")
        await copy(connection, "iov", "dead_letter", columns, parts)
    again = [letter for letter in letters if letter.same]
    if again:
        await connection.execute(
            _AGAIN,
            [letter.replayed for letter in again],
            [letter.reason for letter in again],
            [letter.detail for letter in again],
            [letter.kept for letter in again],
            [letter.payload for letter in again],
        )


async def take_out(connection: asyncpg.Connection, ids: Collection[int]) -> None:
    """Delete letters."""
    await connection.execute(_TAKE_OUT, list(ids))


async def expect_letters(
    connection: asyncpg.Connection, *, may_read: bool = False, may_change: bool = False
) -> None:
    """Raise NotReady unless the table is up to date and this user has the rights that are named.

    `may_read`: to read payloads. `may_change`: to change and delete letters.
    """
    if not await connection.fetchval(_KNOWN):
        raise NotReady("iov.dead_letter lacks columns: run iov-ingest migrate")
    for needed, question, what in (
        (may_read, _MAY_READ, "read the payloads of"),
        (may_change, _MAY_CHANGE, "change"),
    ):
        if needed and not await connection.fetchval(question):
            hint = f"grant {ROLE} to this user; if the role is new, run iov-ingest migrate"
            raise NotReady(f"no right to {what} iov.dead_letter: {hint}")


async def change_alone(connection: asyncpg.Connection) -> None:
    """Keep other replays and purges out while this connection lives.

    Raises Unavailable if one is at work.
    """
    if not await connection.fetchval(_ALONE, _LOCK):
        raise Unavailable("another replay or purge of dead letters is at work: wait for its end")


async def groups(connection: asyncpg.Connection, which: Which) -> list[LetterGroup]:
    """Return the chosen letters by stream and reason, the largest group first."""
    return [LetterGroup(*row) for row in await connection.fetch(_GROUPS, *which)]


async def newest(connection: asyncpg.Connection, which: Which, most: int) -> list[Listed]:
    """Return the newest of the chosen letters, at most so many."""
    return [Listed(*row) for row in await connection.fetch(_NEWEST, *which, most)]


async def one(connection: asyncpg.Connection, id_: int) -> Shown | None:
    """Return one letter; None if it is not there."""
    row = await connection.fetchrow(_ONE, id_)
    if row is None:
        return None
    *letter, attempts, replayed_at = row
    return Shown(DeadLetter(*letter), attempts, replayed_at)


async def last_id(connection: asyncpg.Connection) -> int:
    """Return the id of the last letter that is there now; 0 if there is none."""
    last: int = await connection.fetchval(_LAST)
    return last


async def some_at_a_time(
    connection: asyncpg.Connection, which: Which, last: int
) -> AsyncIterator[list[tuple[int, DeadLetter]]]:
    """Yield the chosen letters up to the id `last`, in the order of their ids, a batch at a time.

    A batch has at most 500 letters, and at most 4 MiB of payload unless it is one letter.
    """
    done = 0
    while sizes := await connection.fetch(_NEXT, *which, done, last, _AT_ONCE):
        ids: list[int] = []
        size_bytes = 0
        for id_, payload_bytes in sizes:
            size_bytes += payload_bytes
            if ids and size_bytes > SIZE_BYTES:
                break
            ids.append(id_)
        done = ids[-1]
        rows = await connection.fetch(_THESE, ids)
        yield [(id_, DeadLetter(*letter)) for id_, *letter in rows]


async def purge(connection: asyncpg.Connection, which: Which, last: int) -> AsyncIterator[int]:
    """Delete the chosen letters up to the id `last`; yield the number that each turn deleted."""
    while gone := await connection.fetchval(_PURGE, *which, last, _PURGED_AT_ONCE):
        yield gone
