"""Stored rows, read at random from a span of time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import orjson

from ingest.schema import Stream
from ingest.schema.layout import RESERVED
from ingest.schema.table import quoted

_AT_ONCE = 1_000
_COLUMNS = """
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
"""
_PARTITIONED = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)"
_OTHERS = """
SELECT c.relname::text FROM pg_class c
WHERE c.relnamespace = to_regnamespace('iov') AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname <> ALL ($1::text[]) AND 5 = (
    SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped
      AND a.attname IN ('device_id', 'ts', 'seq', 'received_at', 'extra'))
ORDER BY 1
"""
_MARGIN = 1.3
"""Factor by which more is asked for than is wanted, because a sample of pages varies."""

Span = tuple[datetime, datetime]
"""Begin and end of `ts`; the end is not included."""


class Rows(NamedTuple):
    """Rows of one table in a span of time."""

    estimate: int
    """Number of rows that the planner expects there."""
    some: AsyncGenerator[Sequence[Mapping[str, Any]], None]
    """The rows, some at a time: all of them, or pages taken at random. A row maps names of columns
    to values, jsonb as Python has it. Close it (`aclosing`) if it is not read to its end."""


async def rows_of(
    connection: asyncpg.Connection, stream: Stream, span: Span, most: int
) -> Rows | None:
    """Return rows of a span, all or about `most` of them, of all devices and times alike.

    They have those columns of the stream that its table has. None if there is no table.
    """
    table = f"iov.{quoted(stream.table)}"
    there = {row[0] for row in await connection.fetch(_COLUMNS, table)}
    if not there:
        return None
    columns = [c.name for c in stream.columns if c.name in there] + sorted(RESERVED)
    estimate = await estimate_of(connection, stream.table, span)
    # Of many rows, pages are taken at random: a limit alone would take the first devices' rows.
    share = min(1.0, _MARGIN * most / max(1, estimate))
    pages, where = "", "ts >= $1 AND ts < $2"
    if share < 1 and await connection.fetchval(_PARTITIONED, table):
        pages = f" TABLESAMPLE SYSTEM ({100 * share:.6f})"
    elif share < 1:
        where += f" AND random() < {share:.9f}"
    statement = f"SELECT {', '.join(map(quoted, columns))} FROM {table}{pages} WHERE {where}"
    return Rows(estimate, _fetched(connection, statement, span))


async def estimate_of(connection: asyncpg.Connection, table: str, span: Span) -> int:
    """Return the number of rows of a span that the planner expects."""
    explained = await connection.fetchval(
        f"EXPLAIN (FORMAT JSON) SELECT FROM iov.{quoted(table)} "
        f"WHERE ts >= '{span[0].isoformat()}' AND ts < '{span[1].isoformat()}'"
    )
    return int(orjson.loads(explained)[0]["Plan"]["Plan Rows"])


async def others(connection: asyncpg.Connection, known: Collection[str]) -> list[str]:
    """Return the tables that are of streams, by their columns, and not among `known`."""
    return [row[0] for row in await connection.fetch(_OTHERS, list(known))]


async def _fetched(
    connection: asyncpg.Connection, statement: str, span: Span
) -> AsyncGenerator[Sequence[Mapping[str, Any]], None]:
    async with connection.transaction(readonly=True):
        cursor = await connection.cursor(statement, *span)
        while rows := await cursor.fetch(_AT_ONCE):
            yield [dict(row) for row in rows]
