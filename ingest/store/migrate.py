"""Brings a database to the current schemas: what is missing is made, nothing is taken away.

The base comes from numbered files in `sql/`; the streams' tables from their schemas, by comparing
what is there with what should be. All of it is one transaction under one advisory lock, so that
several may start at once and a failure leaves the database as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from ingest import retention
from ingest.config import Settings
from ingest.errors import NotReady, Unavailable
from ingest.schema import Catalogue, Stream
from ingest.schema.table import add_column, comment_on, create_table, quoted, table_columns
from ingest.store import dead_letters
from ingest.store.connect import connect, connected
from ingest.store.retention import changes, retention_of

WORKER_ROLE = "iov_worker"
"""Group role that may do what a worker does and owns nothing."""
READER_ROLE = "iov_reader"
"""Group role that reads streams, for dashboards and consumers; not VINs, not rejected payloads."""

_LOCK = 0x696F_7669  # "iovi"
_LOCK_WAIT_S, _TABLE_LOCK_WAIT_S = 60, 20
_LOOK_EVERY_S = 0.5
_BLOCKERS = """
SELECT pid, usename, application_name,
    extract(epoch FROM clock_timestamp() - xact_start)::integer AS seconds
FROM pg_stat_activity WHERE pid = ANY(pg_blocking_pids($1))
"""
_COLUMNS = """
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type,
       col_description(c.oid, a.attnum) AS comment
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = to_regnamespace('iov') AND c.relname = $1 AND c.relkind IN ('r', 'p')
"""
_LACKS_GRANTS = """
SELECT CASE WHEN to_regrole($1::text) IS NULL THEN false ELSE
    NOT has_table_privilege(to_regrole($1::text), 'iov.dead_letter', 'DELETE') END
"""
_NARROWER = {
    ("smallint", "integer"), ("smallint", "bigint"), ("integer", "bigint"),
    ("smallint[]", "integer[]"), ("smallint[]", "bigint[]"), ("integer[]", "bigint[]"),
}  # fmt: skip


_SHORT_NAMES = {"timestamp with time zone": "timestamptz"}
_LETTERS = 10
"""Number of the base migration for dead letters that come back."""
_ROLES = {1: WORKER_ROLE, 4: READER_ROLE, _LETTERS: dead_letters.ROLE}
"""Roles, by the number of the base migration that makes them."""


class Step(NamedTuple):
    """One change and the statements that make it."""

    what: str
    statements: list[str]


async def migrate(
    settings: Settings,
    catalogue: Catalogue,
    *,
    dry_run: bool = False,
    waiting: Callable[[str], None] = lambda _: None,
) -> list[Step]:
    """Apply what is missing and return it; with `dry_run` only return it.

    `waiting` is called with a description of each session that it has to wait for. Nothing is
    changed if it raises:

    - NotReady, because a schema and a table contradict each other or a right is missing
    - Unavailable, because somebody holds a lock for too long: run it again later
    """
    connection = await connect(
        settings.database, "iov-ingest migrate", command_timeout_s=None,
        statement_timeout="0", lock_timeout=f"{_LOCK_WAIT_S}s",
    )  # fmt: skip
    blockers: list[str] = []
    looking = asyncio.create_task(
        _look_for_blockers(settings, connection.get_server_pid(), blockers, waiting),
        name="blockers of migrate",
    )
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            # While this waits for a table's lock, all others wait behind it: so not for long.
            await connection.execute(f"SET LOCAL lock_timeout = '{_TABLE_LOCK_WAIT_S}s'")
            steps = await _plan(connection, settings, catalogue)
            if not dry_run:
                for step in steps:
                    for statement in step.statements:
                        await connection.execute(statement)
    except asyncpg.SyntaxOrAccessError as exc:
        is_right = isinstance(exc, asyncpg.InsufficientPrivilegeError)
        hint = ": migrate as the owner of schema iov and its tables" if is_right else ""
        raise NotReady(f"{exc.sqlstate} {exc}{hint}") from exc
    except asyncpg.LockNotAvailableError as exc:
        whom = blockers[-1] if blockers else "somebody who was not seen"
        raise Unavailable(f"a lock was not had in time; it waited for {whom}") from exc
    finally:
        looking.cancel()
        await asyncio.wait([looking])
        connection.terminate()
    return steps


async def _look_for_blockers(
    settings: Settings, pid: int, found: list[str], waiting: Callable[[str], None]
) -> None:
    """Note whom a backend waits for, until cancelled."""
    async with connected(settings.database, "iov-ingest migrate blockers") as connection:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for row in await connection.fetch(_BLOCKERS, pid):
                whom = (
                    f"process {row['pid']} of user {row['usename']} ({row['application_name']}), "
                    f"in a transaction for {row['seconds']} s"
                )
                if whom not in found:
                    waiting(whom)
                found.append(whom)


async def _plan(
    connection: asyncpg.Connection, settings: Settings, catalogue: Catalogue
) -> list[Step]:
    steps = [step async for step in _base(connection)]
    partitioned = not await _hypertables(connection, settings)
    contradictions: list[str] = []
    for stream in catalogue.values():
        present = {
            row["name"]: (row["type"], row["comment"])
            for row in await connection.fetch(_COLUMNS, stream.table)
        }
        if not present:
            statements = [*create_table(stream, partitioned=partitioned), *_grants(stream.table)]
            steps.append(Step(f"create table iov.{stream.table}", statements))
        else:
            steps += _extend(stream, present, contradictions)
    if contradictions:
        raise NotReady("; ".join(contradictions))
    if settings.retention_file is not None:
        wanted = retention.read(settings.retention_file, catalogue, settings.max_age_days)
        known = await connection.fetchval("SELECT to_regclass('iov.retention') IS NOT NULL")
        there = await retention_of(connection) if known else {}
        steps += [Step(what, [statement]) for what, statement in changes(there, wanted)]
    return steps


async def _base(connection: asyncpg.Connection) -> AsyncIterator[Step]:
    known = await connection.fetchval("SELECT to_regclass('iov.migration') IS NOT NULL")
    applied = (
        {row[0] for row in await connection.fetch("SELECT version FROM iov.migration")}
        if known
        else set()
    )
    for file in sorted(files("ingest.store").joinpath("sql").iterdir(), key=lambda f: f.name):
        version = int(file.name.split("_")[0])
        if version in applied:
            continue
        record = f"INSERT INTO iov.migration (version) VALUES ({version})"
        roles = [_role(_ROLES[version])] if version in _ROLES else []
        statements = [*roles, file.read_text(encoding="utf-8"), record]
        statements += _base_grants().get(version, [])
        yield Step(f"apply {file.name}", statements)
    # A role that was made after the migration that grants it something gets that now.
    if _LETTERS in applied and await connection.fetchval(_LACKS_GRANTS, dead_letters.ROLE):
        yield Step(f"grant what {dead_letters.ROLE} needs", _base_grants()[_LETTERS])


async def _hypertables(connection: asyncpg.Connection, settings: Settings) -> bool:
    """Return true if new tables are to become hypertables."""
    if settings.store == "postgres":
        return False
    installed: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"
    )
    if settings.store == "timescaledb" and not installed:
        raise NotReady(
            "IOV_STORE is timescaledb and the extension is not installed in this database: "
            "CREATE EXTENSION timescaledb"
        )
    return installed


def _extend(
    stream: Stream, present: dict[str, tuple[str, str | None]], contradictions: list[str]
) -> Iterator[Step]:
    """Yield steps for added fields and changed comments; note types that contradict."""
    for name, declared, text in table_columns(stream):
        sql_type = declared.split(" NOT NULL")[0]
        if name not in present:
            statements = [add_column(stream, name, declared), comment_on(stream, name, text)]
            yield Step(f"add column iov.{stream.table}.{name}", statements)
            continue
        type_there, text_there = present[name]
        type_there = _SHORT_NAMES.get(type_there, type_there)
        # A wider column also holds every value that the schema allows.
        if type_there != sql_type and (sql_type, type_there) not in _NARROWER:
            contradictions.append(
                f"iov.{stream.table}.{name} is {type_there} and the schema wants {sql_type}: "
                "give the field another name, or convert the column by hand"
            )
        elif text_there != (text or None):
            yield Step(
                f"comment on column iov.{stream.table}.{name}", [comment_on(stream, name, text)]
            )


def _role(role: str) -> str:
    """Return SQL that makes a role; if that is not allowed, an administrator makes it first."""
    return f"""
DO $$ BEGIN
    IF to_regrole('{role}') IS NULL THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'role {role} was not made: no right to';
    WHEN duplicate_object OR unique_violation THEN
        NULL; -- another migration of this server, of another database, was quicker
END $$"""


def _granted(statement: str, preposition: str = "TO", role: str = WORKER_ROLE) -> str:
    """Return SQL that runs `statement` if the role is there."""
    return f"""
DO $$ BEGIN
    IF to_regrole('{role}') IS NOT NULL THEN
        {statement} {preposition} {role};
    END IF;
END $$"""


def _base_grants() -> dict[int, list[str]]:
    """Return, by base migration, the grants that the two roles need for what it makes."""
    return {
        1: [
            _granted("GRANT USAGE ON SCHEMA iov"),
            _granted("GRANT INSERT ON iov.dead_letter"),
            # Not the whole device: kind, vin, region and fleet are not the worker's to read.
            _granted("GRANT SELECT (device_id, device) ON iov.device"),
            _granted("GRANT INSERT ON iov.device"),
            _granted("GRANT EXECUTE ON FUNCTION iov.make_partition(text, date)"),
            _granted_temporary(),
        ],
        2: [
            _granted(
                "GRANT EXECUTE ON FUNCTION iov.describe_devices"
                "(integer[], timestamptz[], text[], text[], text[], text[])"
            ),
            # A worker writes kind, vin, region and fleet through that function only.
            _granted("REVOKE INSERT ON iov.device", preposition="FROM"),
            _granted("GRANT INSERT (device, first_seen_at) ON iov.device"),
        ],
        3: [_granted("GRANT SELECT, INSERT, UPDATE, DELETE ON iov.worker")],
        5: [
            _granted("GRANT SELECT, UPDATE ON iov.mutex"),
            _granted("GRANT SELECT ON iov.device_epoch"),
            _granted(
                "GRANT EXECUTE ON FUNCTION iov.describe_devices"
                "(integer[], timestamptz[], text[], text[], text[], text[])"
            ),
            _granted("REVOKE DELETE ON iov.worker", preposition="FROM"),
            _granted("GRANT EXECUTE ON FUNCTION iov.ask_to_leave(text, text)"),
            _granted("GRANT EXECUTE ON FUNCTION iov.strike_off(text, text, double precision)"),
            _granted("GRANT SELECT, INSERT, UPDATE, DELETE ON iov.guard"),
        ],
        7: [_granted("GRANT SELECT ON iov.vehicle", role=READER_ROLE)],
        8: [
            _granted("GRANT SELECT ON iov.retention"),
            _granted("GRANT SELECT ON iov.retention", role=READER_ROLE),
            _granted("GRANT EXECUTE ON FUNCTION iov.drop_day(text, text)"),
            _granted("GRANT EXECUTE ON FUNCTION iov.drop_dead_letters(integer)"),
            _granted("GRANT EXECUTE ON FUNCTION iov.analyse(text)"),
        ],
        _LETTERS: [
            _granted(
                "GRANT SELECT (kept, attempts, replayed_at) ON iov.dead_letter", role=READER_ROLE
            ),
            _granted("GRANT SELECT, UPDATE, DELETE ON iov.dead_letter", role=dead_letters.ROLE),
            _member(dead_letters.ROLE, WORKER_ROLE),
        ],
    }


def _member(role: str, of: str) -> str:
    """Return SQL that lets one role do what another may, if both are there."""
    return f"""
DO $$ BEGIN
    IF to_regrole('{role}') IS NOT NULL AND to_regrole('{of}') IS NOT NULL
            AND NOT pg_has_role('{role}', '{of}', 'USAGE') THEN
        GRANT {of} TO {role};
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'no right to grant {of} to {role}: an administrator does';
END $$"""


def _granted_temporary() -> str:
    """Return SQL that grants TEMPORARY for `staging`; a hardened database grants it to nobody."""
    return f"""
DO $$ BEGIN
    IF to_regrole('{WORKER_ROLE}') IS NOT NULL THEN
        EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO {WORKER_ROLE}', current_database());
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'no right to grant TEMPORARY on this database to {WORKER_ROLE}';
END $$"""


def _grants(table: str) -> list[str]:
    # Writing needs SELECT too: ON CONFLICT DO NOTHING and the staging table read columns.
    return [
        _granted(f"GRANT SELECT, INSERT ON iov.{quoted(table)}"),
        _granted(f"GRANT SELECT ON iov.{quoted(table)}", role=READER_ROLE),
    ]
