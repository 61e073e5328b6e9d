"""Days that the database keeps rows: the table `iov.retention`, and how a file changes it."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg

from ingest.retention import Kept, Retention
from ingest.schema.table import literal

_ALL = "SELECT table_name, keep_days, compress_after_days FROM iov.retention"
_KEEP = """INSERT INTO iov.retention VALUES ({table}, {keep}, {compress})
ON CONFLICT (table_name) DO UPDATE SET keep_days = excluded.keep_days,
    compress_after_days = excluded.compress_after_days"""


async def retention_of(connection: asyncpg.Connection) -> Retention:
    """Read for how many days the database keeps the rows of each table."""
    rows = await connection.fetch(_ALL)
    return {row["table_name"]: Kept(row["keep_days"], row["compress_after_days"]) for row in rows}


def changes(before: Retention, after: Retention) -> Iterator[tuple[str, str]]:
    """Yield (what, statement) for every change from `before` to `after`.

    A table that `after` does not name keeps a row, with NULLs. For a table with such a row,
    TimescaleDB's policies are removed; for a table without a row, policies that an operator has set
    are left alone.
    """
    for table in sorted(before.keys() | after.keys()):
        days = after.get(table, Kept())
        if before.get(table) == days:
            continue
        keep, compress = ("NULL" if n is None else str(n) for n in days)
        told = f"keep iov.{table} for " + ("ever" if days.keep_days is None else f"{keep} days")
        if days.compress_after_days is not None:
            told += f", compressed after {compress}"
        yield told, _KEEP.format(table=literal(table), keep=keep, compress=compress)
