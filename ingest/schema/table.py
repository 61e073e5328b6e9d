"""SQL statements for a stream's table; nothing here talks to a server."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.schema.layout import KEY, LEADING, TRAILING
from ingest.schema.stream import Stream


def table_columns(stream: Stream) -> Iterator[tuple[str, str, str]]:
    """Yield (name, SQL type with constraints, comment) of every column, in order."""
    yield from LEADING
    for column in stream.columns:
        yield column.name, column.sql_type, column.comment
    yield from TRAILING


def create_table(stream: Stream, *, partitioned: bool) -> Iterator[str]:
    """Yield statements that make the table; daily native partitions are made later, one by one."""
    table = f"iov.{quoted(stream.table)}"
    # No foreign key to iov.device: its check would cost more than all the rest of the insert, and
    # rows are written with ids that were read from there.
    lines = [f"    {quoted(name)} {type_}" for name, type_, _ in table_columns(stream)]
    lines.append(f"    PRIMARY KEY ({', '.join(KEY)})")
    end = ") PARTITION BY RANGE (ts)" if partitioned else ")"
    yield f"CREATE TABLE {table} (\n" + ",\n".join(lines) + f"\n{end}"
    if not partitioned:
        yield f"SELECT create_hypertable('{table}', by_range('ts', INTERVAL '1 day'))"
    yield f"COMMENT ON TABLE {table} IS {literal(stream.schema.get('description', ''))}"
    for name, _, comment in table_columns(stream):
        yield comment_on(stream, name, comment)


def add_column(stream: Stream, name: str, sql_type: str) -> str:
    """Return the statement that adds a column; PostgreSQL does not rewrite stored rows for it."""
    return f"ALTER TABLE iov.{quoted(stream.table)} ADD COLUMN {quoted(name)} {sql_type}"


def comment_on(stream: Stream, name: str, comment: str) -> str:
    """Return the statement that says what a column means."""
    return f"COMMENT ON COLUMN iov.{quoted(stream.table)}.{quoted(name)} IS {literal(comment)}"


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as an SQL literal (standard_conforming_strings is on since PostgreSQL 9.1)."""
    return "'" + text.replace("'", "''") + "'"
