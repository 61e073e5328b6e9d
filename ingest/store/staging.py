"""The careful way into a table: duplicates fall out, refused rows are found by halves.

Rows are copied to a temporary table without keys and inserted from there with ON CONFLICT DO
NOTHING, in the order they came, so that the first one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from ingest.errors import Refused
from ingest.schema import Stream
from ingest.schema.table import quoted
from ingest.store.copy import copy
from ingest.store.failures import meaning, unless_cancelled


async def merge(
    connection: asyncpg.Connection,
    stream: Stream,
    names: Sequence[str],
    records: Sequence[Sequence[Any]],
) -> tuple[int, dict[int, str]]:
    """(rows stored, what was refused by position and why); the rest were duplicates.

    Runs inside the batch's transaction and leaves it usable. Raises what concerns the whole batch:
    a missing partition, a server that is away.
    """
    stage = f"stage_{stream.table}"
    every = ", ".join(map(quoted, stream.column_names))
    columns = ", ".join(map(quoted, names))
    await connection.execute(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {quoted(stage)} ON COMMIT DELETE ROWS "
        f"AS SELECT {every} FROM iov.{quoted(stream.table)} WITH NO DATA"
    )
    insert = (
        f"INSERT INTO iov.{quoted(stream.table)} ({columns}) "
        f"SELECT {columns} FROM pg_temp.{quoted(stage)} ON CONFLICT DO NOTHING"
    )
    stored = 0
    refused: dict[int, str] = {}
    parts = [(0, len(records))]
    while parts:
        start, end = parts.pop()
        try:
            async with connection.transaction():
                part = records[start:end]
                await copy(connection, "pg_temp", stage, names, part)
                status: str = await connection.execute(insert)
                await connection.execute(f"TRUNCATE pg_temp.{quoted(stage)}")
        except Exception as exc:
            unless_cancelled(exc)
            failure = meaning(exc)
            if not isinstance(failure, Refused):
                raise
            if end - start == 1:
                refused[start] = str(failure)
            else:
                middle = (start + end) // 2
                parts += [(middle, end), (start, middle)]
        else:
            stored += int(status.rsplit(" ", 1)[1])
    return stored, refused
