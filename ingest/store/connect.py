"""One way to open a connection: named, with time limits, and checked for what the work needs."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import asyncpg
import orjson
from asyncpg.exceptions import InternalClientError, TargetServerAttributeNotMatched

from ingest.config import Settings
from ingest.database import Database
from ingest.errors import NotReady, Unavailable
from ingest.reach import why
from ingest.schema import Catalogue
from ingest.store import pooler
from ingest.store.failures import away, naming, translated

CONNECT_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_S = 30.0
"""Seconds that a statement may take at most, on the server and on our side."""
_ZERO = datetime(2000, 1, 1, tzinfo=UTC)
"""Epoch from which PostgreSQL counts microseconds (Date/Time Types, 8.5)."""
_JSONB_VERSION = b"\x01"

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_ANSWERS = {b"S", b"N", b"E", b""}
"""Answers of a PostgreSQL server to `_SSL_REQUEST`; empty if it hung up."""

_MIGRATE = "run iov-ingest migrate"
_HINTS = {
    "28P01": "mend user or password in IOV_DATABASE_URL",
    "28000": "the server lets this user in neither so nor from here: its role, or pg_hba.conf",
    "3D000": "create it, or mend its name in IOV_DATABASE_URL",
    "42704": "leave it out of IOV_DATABASE_URL",
    "22023": "mend it in IOV_DATABASE_URL",
}
"""Advice for the operator, by the SQLSTATE with which the server refuses a connection."""
_COLUMNS = """
SELECT c.relname AS table, array_agg(a.attname::text) AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = to_regnamespace('iov') AND c.relkind IN ('r', 'p')
  AND c.relname = ANY($1::text[])
GROUP BY c.relname
"""
_DURABILITY = """
SELECT current_setting('transaction_read_only'), current_setting('fsync'),
    current_setting('synchronous_commit'), current_setting('synchronous_standby_names')
"""
_COMMIT_DURABLY = """
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') <> 'remote_apply'
"""
_READ_ONLY = {"device_epoch": "epoch", "retention": "keep_days"}
"""Tables that a worker reads but does not write, each with a column that has to be there."""
_MAY_STAGE = "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
_NO_RIGHT = """
SELECT t FROM unnest($1::text[]) AS t
WHERE NOT has_any_column_privilege(format('iov.%I', t), 'INSERT')
"""


async def connect(
    database: Database,
    name: str,
    *,
    command_timeout_s: float | None = STATEMENT_TIMEOUT_S,
    **server_settings: str,
) -> asyncpg.Connection:
    """Open a connection under `name`, which the caller has to close.

    The errors are:

    - Unavailable, with the reason, if the database cannot be reached: try again later
    - NotReady if a person has to correct something first
    - any other error of asyncpg's: see `failures.meaning`
    """
    limit_ms = str(int(STATEMENT_TIMEOUT_S * 1000))
    session = {
        "application_name": name,
        "timezone": "UTC",
        "statement_timeout": limit_ms,
        "idle_in_transaction_session_timeout": limit_ms,
        "lock_timeout": "5000",
        **server_settings,
    }
    for host, port in database.asked_in_clear():
        await _expect_postgres(host, port)
    connection = await _opened(database, command_timeout=command_timeout_s, server_settings=session)
    try:
        await pooler.set_limits(connection, session)
        await connection.set_type_codec(
            "timestamptz",
            schema="pg_catalog",
            format="tuple",
            encoder=_microseconds,
            decoder=_instant,
        )
        # jsonb travels as a version byte and the text, which the extractor has made already.
        await connection.set_type_codec(
            "jsonb",
            schema="pg_catalog",
            format="binary",
            encoder=_JSONB_VERSION.__add__,
            decoder=_from_jsonb,
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


@contextlib.asynccontextmanager
async def connected(database: Database, name: str, **how: Any) -> AsyncIterator[asyncpg.Connection]:
    """Hold a connection under `name` for the block; `how` is passed to `connect`.

    Every database error, also in the block, is raised as Unavailable with the database's name.
    """
    with translated(away, database):
        with naming(database):
            connection = await connect(database, name, **how)
        try:
            yield connection
        finally:
            connection.terminate()


async def _expect_postgres(host: str, port: int) -> None:
    """Raise NotReady if the server that listens there does not answer as PostgreSQL does.

    PostgreSQL answers a request for TLS with S, N or E (54.2.12). asyncpg does not send that
    request if the URL says no TLS. It then reads an answer that begins with a zero byte for ever,
    and nothing else runs meanwhile.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.closing(writer):
                writer.write(_SSL_REQUEST)
                answer = await reader.read(1)
    except (OSError, TimeoutError):
        return  # the driver will meet the same error, and may know other hosts
    if answer not in _ANSWERS:
        raise NotReady("what listens there is no PostgreSQL: mend host and port")


async def _opened(database: Database, **how: Any) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(database.url, timeout=CONNECT_TIMEOUT_S, **how)
    except asyncpg.ConnectionDoesNotExistError as exc:
        raise Unavailable(why(ConnectionResetError(), "")) from exc
    except asyncpg.PostgresError as exc:
        if hint := pooler.hint(exc) or _HINTS.get(exc.sqlstate or ""):
            raise NotReady(f"{exc.sqlstate} {exc}: {hint}") from exc
        raise
    except ssl.SSLError as exc:  # SSLCertVerificationError is a ValueError too
        raise NotReady(why(exc, "sslrootcert in IOV_DATABASE_URL")) from exc
    except (ValueError, OverflowError):
        # The text would quote parts of the URL, the password perhaps.
        raise NotReady("IOV_DATABASE_URL cannot be read: what it says is unknown here") from None
    except OSError as exc:
        if type(exc) is ConnectionError:  # asyncpg's, if the server answers N to SSLRequest
            raise NotReady(
                "it speaks no TLS, or is no PostgreSQL: sslmode=disable if the way there is safe"
            ) from exc
        raise Unavailable(why(exc, "")) from exc
    except TargetServerAttributeNotMatched as exc:
        raise Unavailable("none of the hosts is what target_session_attrs asks for") from exc
    except (InternalClientError, AttributeError) as exc:  # what asyncpg says of odd answers
        raise Unavailable(
            "what it answers is not understood: is it PostgreSQL, and wants it a password? "
            "(GSSAPI and SSPI are not known here)"
        ) from exc


@lru_cache(4_096)
def _microseconds(at: datetime) -> tuple[int]:
    """Return microseconds since `_ZERO`, in the tuple that asyncpg expects from a codec.

    This takes 0.40 µs instead of 0.87 with asyncpg's own codec (measured), and every row has two
    times. A time that repeats takes less, because it is cached: all messages of one read have the
    same `received_at`.
    """
    since = at - _ZERO
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds,)


def _instant(wire: tuple[int]) -> datetime:
    return _ZERO + timedelta(microseconds=wire[0])


def _from_jsonb(wire: bytes) -> Any:
    return orjson.loads(wire[1:])


async def expect_migrated(connection: asyncpg.Connection, catalogue: Catalogue) -> None:
    """Raise NotReady unless every table has the columns the schemas ask for and may be written."""
    wanted = {stream.table: set(stream.column_names) for stream in catalogue.values()}
    wanted["dead_letter"] = {"payload", "kept", "attempts", "replayed_at"}
    wanted["device"] = {"device_id", "kind_at"}
    wanted["worker"] = {"client_id", "leave_requested", "page_address"}
    wanted["guard"] = {"suspects"}
    wanted |= {table: {column} for table, column in _READ_ONLY.items()}
    present = {
        row["table"]: set(row["columns"]) for row in await connection.fetch(_COLUMNS, list(wanted))
    }
    for table, columns in wanted.items():
        if table not in present:
            raise NotReady(f"table iov.{table} is missing or out of reach: {_MIGRATE}")
        if missing := columns - present[table]:
            raise NotReady(f"iov.{table} has no column {min(missing)}: {_MIGRATE}")
    if not await connection.fetchval(_MAY_STAGE):
        raise NotReady(
            "no right to make temporary tables: GRANT TEMPORARY ON DATABASE to this user"
        )
    if refused := await connection.fetchval(
        _NO_RIGHT, [table for table in wanted if table not in _READ_ONLY]
    ):
        raise NotReady(f"no right to insert into iov.{refused}: grant iov_worker to this user")


READ_ONLY = "the database is read-only"


async def durability_problem(connection: asyncpg.Connection) -> str | None:
    """Return why a commit in this database must not be acknowledged; None if it may be.

    `synchronous_commit` is judged as the database sets it. A worker sets its own session to `on`,
    but a database whose owner wants less must not be relied on. `local` and `remote_write` matter
    only if a standby is named (PostgreSQL, Write Ahead Log settings).
    """
    read_only, fsync, synchronous, standbys = await connection.fetchrow(_DURABILITY)
    if read_only == "on":
        return READ_ONLY
    if fsync == "off":
        return "fsync is off: a power cut loses what was committed and acknowledged"
    if synchronous == "off":
        return "synchronous_commit is off: a commit may be lost after it was acknowledged"
    if standbys and synchronous in {"local", "remote_write"}:
        return (
            f"synchronous_commit is {synchronous} and a standby is named: a failover may lose what "
            "was acknowledged"
        )
    return None


def may_be_accepted(problem: str, settings: Settings) -> bool:
    """Return true if the operator accepts the problem; a read-only database is never accepted."""
    return settings.unsafe_database == "accept" and problem != READ_ONLY


async def commit_durably(connection: asyncpg.Connection) -> None:
    """Have commits of this session wait for the disk, and for standbys that are named."""
    await connection.execute(_COMMIT_DURABLY)
