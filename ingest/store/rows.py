"""Stored rows, read evenly from a span of time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import asyncpg

from ingest.schema import Stream
from ingest.schema.layout import RESERVED
from ingest.schema.table import quoted

SLICES = 96
"""Number of equal parts of a span from which rows are read; of a day, quarters of an hour."""
_COLUMNS = """
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
"""


async def slices(
    connection: asyncpg.Connection, stream: Stream, span: tuple[datetime, datetime], most: int
) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
    """Yield rows of each of `SLICES` parts of a span, at most `most` of a part.

    A row maps names of columns to values, jsonb as Python has it, and has the columns of the stream
    that its table has. If there is no table, nothing is yielded.
    """
    table = f"iov.{quoted(stream.table)}"
    there = {row[0] for row in await connection.fetch(_COLUMNS, table)}
    if not there:
        return
    columns = [c.name for c in stream.columns if c.name in there] + sorted(RESERVED)
    statement = (
        f"SELECT {', '.join(map(quoted, columns))} FROM {table} WHERE ts >= $1 AND ts < $2 LIMIT $3"
    )
    since, until = span
    width = (until - since) / SLICES
    for number in range(SLICES):
        start = since + number * width
        end = until if number == SLICES - 1 else start + width
        yield [dict(row) for row in await connection.fetch(statement, start, end, most)]
