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
"""Longest a statement may take, on the server and on our side."""
_ZERO = datetime(2000, 1, 1, tzinfo=UTC)
"""From here PostgreSQL counts microseconds (Date/Time Types, 8.5)."""
_JSONB_VERSION = b"\x01"

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_ANSWERS = {b"S", b"N", b"E", b""}
"""Nothing, if it hung up."""

_MIGRATE = "run iov-ingest migrate"
_HINTS = {
    "28P01": "mend user or password in IOV_DATABASE_URL",
    "28000": "the server lets this user in neither so nor from here: its role, or pg_hba.conf",
    "3D000": "create it, or mend its name in IOV_DATABASE_URL",
    "42704": "leave it out of IOV_DATABASE_URL",
    "22023": "mend it in IOV_DATABASE_URL",
}
"""Ways out of an SQLSTATE that the server answers a connection with."""
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
"""Tables a worker reads and does not write, and a column that tells that they are there."""
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
    """Connect under `name`; the caller closes it.

    Raises Unavailable with the reason if the database is not reached, NotReady if a person has to
    mend something, and for the rest what asyncpg raises, see `failures.meaning`.
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
    """Hold a connection under `name`; `how` is what `connect` takes.

    Whatever the database fails in, also in the block, raises Unavailable with its name.
    """
    with translated(away, database):
        with naming(database):
            connection = await connect(database, name, **how)
        try:
            yield connection
        finally:
            connection.terminate()


async def _expect_postgres(host: str, port: int) -> None:
    """Raise NotReady if what listens there answers in no language of PostgreSQL's.

    Asked for TLS a server says S, N or E (54.2.12). asyncpg, which does not ask if the URL says no
    TLS, reads an answer that begins with a zero byte for ever, and nothing else runs meanwhile.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.closing(writer):
                writer.write(_SSL_REQUEST)
                answer = await reader.read(1)
    except (OSError, TimeoutError):
        return  # the driver meets it as well, and knows more hosts
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
    except ssl.SSLError as exc:  # of certificates it is a ValueError too
        raise NotReady(why(exc, "sslrootcert in IOV_DATABASE_URL")) from exc
    except (ValueError, OverflowError):
        # The text would quote parts of the URL, the password perhaps.
        raise NotReady("IOV_DATABASE_URL cannot be read: what it says is unknown here") from None
    except OSError as exc:
        if type(exc) is ConnectionError:  # what asyncpg raises where SSLRequest is answered by N
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
    """As a tuple, which is how asyncpg exchanges it with a codec: half the time of its own way.

    0.40 µs instead of 0.87 (measured), and every row has two; less where it is the same one again,
    as `received_at` is for everything in one read.
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
    wanted["dead_letter"] = {"payload"}
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
    """Why a commit at this database would not be worth an acknowledgement; None if it is.

    `synchronous_commit` counts as it is set there: a worker sets its own session to `on`, but a
    database whose owner wants less is no place for a promise. Below `on` matters with a standby
    only (PostgreSQL, Write Ahead Log settings).
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
    """Whether the operator wants to store although commits may be lost."""
    return settings.unsafe_database == "accept" and problem != READ_ONLY


async def commit_durably(connection: asyncpg.Connection) -> None:
    """Have commits of this session wait for the disk, and for standbys that are named."""
    await connection.execute(_COMMIT_DURABLY)
