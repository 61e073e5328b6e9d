"""The SQL that a stream's table is made of; nothing here talks to a server."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.schema.stream import Stream

_ENVELOPE_COLUMNS = (
    ("device_id", "integer NOT NULL", "Who sent it: iov.device"),
    ("ts", "timestamptz NOT NULL", "When the values were true"),
    ("seq", "bigint NOT NULL", "Counted by the device; negative: derived from the content"),
    ("received_at", "timestamptz NOT NULL", "When the message arrived"),
    ("resend", "boolean NOT NULL DEFAULT false", "Sent later than collected"),
)
_LAST_COLUMNS = (
    ("quality", "jsonb", "JSON pointer of a field to what is wrong with its value"),
    ("extra", "jsonb", "Fields the schema does not name, as they came"),
)


def table_columns(stream: Stream) -> Iterator[tuple[str, str, str]]:
    """(name, SQL type with constraints, comment) of every column, in order."""
    yield from _ENVELOPE_COLUMNS
    for column in stream.columns:
        yield column.name, column.sql_type, column.comment
    yield from _LAST_COLUMNS


def create_table(stream: Stream, *, partitioned: bool) -> Iterator[str]:
    """Statements that make the table; daily native partitions are made later, one by one."""
    table = f"iov.{quoted(stream.table)}"
    # No foreign key to iov.device: its check would cost more than all the rest of the insert, and
    # rows are written with ids that were read from there.
    lines = [f"    {quoted(name)} {type_}" for name, type_, _ in table_columns(stream)]
    lines.append("    PRIMARY KEY (device_id, ts, seq)")
    end = ") PARTITION BY RANGE (ts)" if partitioned else ")"
    yield f"CREATE TABLE {table} (\n" + ",\n".join(lines) + f"\n{end}"
    if not partitioned:
        yield f"SELECT create_hypertable('{table}', by_range('ts', INTERVAL '1 day'))"
    yield f"COMMENT ON TABLE {table} IS {literal(stream.schema.get('description', ''))}"
    for name, _, comment in table_columns(stream):
        yield comment_on(stream, name, comment)


def add_column(stream: Stream, name: str, sql_type: str) -> str:
    """Add a column that rows already stored do not have; PostgreSQL rewrites nothing for it."""
    return f"ALTER TABLE iov.{quoted(stream.table)} ADD COLUMN {quoted(name)} {sql_type}"


def comment_on(stream: Stream, name: str, comment: str) -> str:
    """The statement that says what a column means."""
    return f"COMMENT ON COLUMN iov.{quoted(stream.table)}.{quoted(name)} IS {literal(comment)}"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal (standard_conforming_strings is on since PostgreSQL 9.1)."""
    return "'" + text.replace("'", "''") + "'"
