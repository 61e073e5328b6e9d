"""Daily partitions, made by the function `migrate` installs, never in a batch's transaction."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import asyncpg

from ingest.schema import Catalogue

DAYS_AHEAD = 3
"""Number of coming days that always have partitions, as have today and yesterday."""

_PARTITIONED = """
SELECT relname FROM pg_class
WHERE relnamespace = 'iov'::regnamespace AND relkind = 'p' AND relname = ANY($1::text[])
"""


_MISSING = """
SELECT w.tab, w.day FROM unnest($1::text[], $2::date[]) AS w (tab, day)
WHERE NOT EXISTS (
    SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    JOIN pg_class p ON p.oid = i.inhparent
    WHERE p.relnamespace = 'iov'::regnamespace AND p.relname = w.tab AND NOT i.inhdetachpending
      AND c.relname ~ ('^' || w.tab || '_' || to_char(w.day, 'YYYYMMDD') || '(_again)*$')
)
"""


async def missing(
    connection: asyncpg.Connection, tables_and_days: Iterable[tuple[str, date]]
) -> list[tuple[str, date]]:
    """Return the tables and days that have no partition of the name that we give, sorted."""
    tables, days = zip(*sorted(tables_and_days), strict=True)
    return [tuple(row) for row in await connection.fetch(_MISSING, tables, days)]


async def make_partitions(
    connection: asyncpg.Connection, tables_and_days: Iterable[tuple[str, date]]
) -> int:
    """Make missing partitions, each in a transaction of its own; return the number made."""
    made = 0
    for table, day in sorted(tables_and_days):
        made += await connection.fetchval("SELECT iov.make_partition($1, $2)", table, day)
    return made


async def missing_ahead(
    connection: asyncpg.Connection, catalogue: Catalogue, today: date
) -> list[tuple[str, date]]:
    """Return tables and days ahead without a partition; hypertables make their own chunks."""
    tables = [stream.table for stream in catalogue.values()]
    partitioned = [row[0] for row in await connection.fetch(_PARTITIONED, tables)]
    days = [today + timedelta(days=n) for n in range(-1, DAYS_AHEAD + 1)]
    wanted = [(table, day) for table in partitioned for day in days]
    return await missing(connection, wanted) if wanted else []


async def make_ahead(connection: asyncpg.Connection, catalogue: Catalogue, today: date) -> int:
    """Make the partitions that `missing_ahead` finds; return the number made."""
    return await make_partitions(connection, await missing_ahead(connection, catalogue, today))
