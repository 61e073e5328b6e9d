"""COPY of ready rows into one table, binary, through asyncpg."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import asyncpg

from ingest.errors import Refused


async def copy(
    connection: asyncpg.Connection,
    schema: str,
    table: str,
    columns: Collection[str],
    records: Sequence[Sequence[Any]],
) -> None:
    """Copy `records` into a table; raise Refused if the driver cannot encode a value.

    The driver's own words are left out, because they quote the value. Other errors pass unchanged.
    """
    try:
        await connection.copy_records_to_table(
            table, schema_name=schema, columns=columns, records=records
        )
    except (OverflowError, TypeError, ValueError) as exc:
        raise Refused(f"the driver cannot encode a value: {type(exc).__name__}") from exc
