"""The hourly work: make days ahead, drop old days and dead letters, renew statistics, index `ts`.

A day means here the partition of a table for one day. The owner of the tables detaches a day
concurrently: that waits for the readers of the table, but nobody else has to wait. A worker owns
nothing. It calls a function that either drops the day or gives up after a fifth of a second; then
the worker calls it again. Old chunks of hypertables are dropped and compressed by TimescaleDB's own
policies, which are set to what the retention file says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import NamedTuple

import asyncpg
import structlog

from ingest.cancelled import unless_cancelled
from ingest.config import Settings
from ingest.errors import Unavailable
from ingest.retention import DEAD_LETTER, Kept, Retention, read, too_short
from ingest.schema import Catalogue
from ingest.schema.table import literal, quoted
from ingest.store.connect import connected, expect_migrated
from ingest.store.partitions import make_partitions, missing_ahead
from ingest.store.retention import changes, retention_of

EVERY_S = 3_600.0
_LOOK_EVERY_S = 300.0
_TRIES, _BETWEEN_TRIES_S = 5, 5.0
"""Number of times a worker tries to drop a day in one hour, and seconds between them."""
_SLICE = 10_000
"""Number of dead letters that are deleted in one transaction."""
_PAST_ITS_KEEPING = "Past its keeping, so iov-ingest maintain drops it: "
"""Beginning of the comment on a day that is being detached.

The name of its table and the time of its end follow. If the run is interrupted, the comment tells
the next run that it may drop the day: no operator has detached the day in order to keep it.
"""
_ONLY_FROM = 18
"""First version of PostgreSQL that can analyse a parent without its days (ANALYZE ONLY)."""
_ANALYSE_S = 5
"""Seconds that analysing a parent may take.

Meanwhile no day can be made, and `writer` waits only 6 s.
"""
_TURN_S = EVERY_S * 0.9
_HALF_DETACHED = (
    "iov.{part} is half detached, is kept, and takes no samples: ALTER TABLE iov.{table} DETACH "
    "PARTITION iov.{part} FINALIZE, then attach it again"
)
_AS_OWNER = "run iov-ingest maintain as the owner of the tables"

_OWNS = """
SELECT coalesce(bool_and(pg_has_role(relowner, 'USAGE')), false) FROM pg_class
WHERE relnamespace = 'iov'::regnamespace
  AND relname = ANY($1::text[] || '{dead_letter,retention}'::text[])
"""
_DAYS = """
SELECT p.relname AS table, c.relname AS part, pg_total_relation_size(c.oid) AS bytes,
    i.inhdetachpending AS pending, to_char(d.until, 'YYYY-MM-DD"T"HH24:MI:SSOF') AS until,
    coalesce(d.until + make_interval(days => k.keep_days) <= clock_timestamp(), false) AS is_old,
    coalesce(obj_description(c.oid, 'pg_class') LIKE $4 || '%', false) AS is_marked,
    format('iov.%s, samples of %s (UTC).', p.relname,
        to_char(d.until - interval '1 day', 'YYYY-MM-DD')) AS comment,
    EXISTS (
        SELECT FROM pg_depend s WHERE s.refclassid = 'pg_class'::regclass AND s.refobjid = c.oid
          AND s.classid = 'pg_rewrite'::regclass
    ) AS has_view,
    EXISTS (
        SELECT FROM pg_index x JOIN pg_class n ON n.oid = x.indexrelid
        JOIN pg_am m ON m.oid = n.relam JOIN pg_attribute a ON a.attrelid = c.oid
            AND a.attnum = x.indkey[0]
        WHERE x.indrelid = c.oid AND m.amname = 'brin' AND a.attname = 'ts' AND x.indisvalid
    ) AS is_indexed
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
CROSS JOIN LATERAL (
    SELECT (
        regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \\(''([^'']+)''\\)')
    )[1]::timestamptz AS until
) d
LEFT JOIN unnest($1::text[], $2::integer[]) AS k (tab, keep_days) ON k.tab = p.relname
WHERE p.relnamespace = 'iov'::regnamespace AND p.relkind = 'p' AND p.relname = ANY($3::text[])
  AND c.relnamespace = p.relnamespace AND c.relkind = 'r'
ORDER BY d.until, p.relname
"""
_LEFT_OVER = r"""
SELECT c.relname AS part, pg_total_relation_size(c.oid) AS bytes FROM pg_class c
CROSS JOIN LATERAL regexp_match(
    obj_description(c.oid, 'pg_class'), '^' || $1 || 'iov\.(.*) until (\S+)$') AS m (told)
JOIN unnest($2::text[], $3::integer[]) AS k (tab, keep_days) ON k.tab = m.told[1]
WHERE c.relnamespace = 'iov'::regnamespace AND c.relkind = 'r' AND NOT c.relispartition
  AND m.told[2]::timestamptz + make_interval(days => k.keep_days) <= clock_timestamp()
"""
_IS_ATTACHED = """
SELECT EXISTS (
    SELECT FROM pg_inherits WHERE inhparent = to_regclass(format('iov.%I', $1::text))
      AND inhrelid = to_regclass(format('iov.%I', $2::text)))
"""
_STALE = """
SELECT c.relname::text FROM pg_stat_all_tables s JOIN pg_class c ON c.oid = s.relid
WHERE s.schemaname = 'iov' AND c.relkind = 'p' AND c.relname = ANY($1::text[])
  AND coalesce(s.last_analyze, '-infinity') < clock_timestamp() - interval '1 day'
ORDER BY c.relname
"""
_DEAD_LETTERS = """
SELECT count(*), coalesce(sum(pg_column_size(d.*)), 0)::bigint FROM iov.dead_letter d
WHERE d.received_at < clock_timestamp() - make_interval(days => $1)
"""
_INVALID = """
SELECT n.relname FROM pg_index x JOIN pg_class n ON n.oid = x.indexrelid
JOIN pg_am m ON m.oid = n.relam
WHERE x.indrelid = to_regclass(format('iov.%I', $1::text))
  AND m.amname = 'brin' AND NOT x.indisvalid
"""
_TAKE_TURN = """
UPDATE iov.mutex SET holder = $1, held_until = clock_timestamp() + make_interval(secs => $2)
WHERE name = (
    SELECT name FROM iov.mutex WHERE name = 'maintain'
      AND (held_until IS NULL OR held_until < clock_timestamp()) FOR UPDATE SKIP LOCKED)
"""
_TODAY = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date"
_DROP_DAY = "SELECT iov.drop_day($1, $2)"
_INDEX = "CREATE INDEX CONCURRENTLY ON iov.{part} USING brin (ts) WITH (autosummarize = on)"
_HAS_TIMESCALEDB = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"
_POLICIES = """
SELECT h.hypertable_name::text AS table, h.compression_enabled,
    max(j.config ->> 'drop_after') FILTER (WHERE j.proc_name = 'policy_retention')
        AS drop_after,
    max(j.config ->> 'compress_after') FILTER (WHERE j.proc_name = 'policy_compression')
        AS compress_after
FROM timescaledb_information.hypertables h
LEFT JOIN timescaledb_information.jobs j USING (hypertable_schema, hypertable_name)
WHERE h.hypertable_schema = 'iov' AND h.hypertable_name = ANY($1::text[])
GROUP BY 1, 2 ORDER BY 1
"""

log = structlog.get_logger(__name__)


@dataclass
class TurnAccount:
    """Account of a turn: what was done or, in a dry run, what would be done."""

    kept: list[str] = field(default_factory=list)
    """Changes to what is kept."""
    made: list[str] = field(default_factory=list)
    """Days made ahead."""
    dropped: list[str] = field(default_factory=list)
    freed_bytes: int = 0
    dead_letters: int = 0
    """Number deleted; 0 in a dry run by a worker, because it may not read them."""
    indexed: list[str] = field(default_factory=list)
    analysed: list[str] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    """Statements for TimescaleDB."""
    later: list[str] = field(default_factory=list)
    """Things that could not be done now, and why."""


async def maintain(
    settings: Settings,
    catalogue: Catalogue,
    *,
    dry_run: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> TurnAccount:
    """Do all maintenance that is due, as the database user of the settings; return the account.

    `told` is called with each task before it is done; with `dry_run` nothing is done. Raises
    ConfigError for a bad retention file, NotReady if the database is not migrated.
    """
    file = settings.retention_file
    wanted = read(file, catalogue, settings.max_age_days) if file else None
    async with _connected(settings) as connection:
        await expect_migrated(connection, catalogue)
        turn = await _Turn.of(connection, settings, catalogue, wanted)
        return turn.planned if dry_run else await turn.done(told)


async def maintain_hourly(settings: Settings, catalogue: Catalogue, random: Random) -> None:
    """Do the maintenance once an hour, unless another worker has done it, until cancelled."""
    while True:
        # Workers must not all ask at once, and a starting worker has other things to do.
        await asyncio.sleep(_LOOK_EVERY_S * (0.5 + random.random()))
        try:
            async with asyncio.timeout(_TURN_S):
                await maintain_in_turn(settings, catalogue)
        except Unavailable as exc:
            log.warning("maintenance waits", why=str(exc))
        except TimeoutError:
            log.warning("maintenance waits", why=f"not done in {_TURN_S:.0f} s, behind a reader?")


async def maintain_in_turn(settings: Settings, catalogue: Catalogue) -> TurnAccount | None:
    """Do the maintenance and return its account; None if it was begun within the last hour."""
    async with _connected(settings) as connection:
        took = await connection.execute(_TAKE_TURN, settings.broker.application_name, EVERY_S)
        if took != "UPDATE 1":
            return None
        turn = await _Turn.of(connection, settings, catalogue)
        account = await turn.done(lambda what: log.info("maintenance", does=what))
    for reason in account.later:
        # Tasks for the owner alone are left over on every turn: no reason for a warning.
        say = log.info if reason.endswith(_AS_OWNER) else log.warning
        say("maintenance left for later", what=reason)
    return account


def _connected(settings: Settings) -> AbstractAsyncContextManager[asyncpg.Connection]:
    """Connect without time limits: a `lock_timeout` leaves a day half detached (measured)."""
    return connected(
        settings.database, "iov-ingest maintain", command_timeout_s=None,
        statement_timeout="0", lock_timeout="0",
    )  # fmt: skip


class _Task(NamedTuple):
    """One thing to do; it does no harm if it is left undone."""

    kind: str
    """Name of the list, in the account, to which the task's name is added."""
    name: str
    told: str
    do: Callable[[], Awaitable[object]]
    """Function that does it; returns False if somebody else had done it."""
    frees_bytes: int = 0
    needs_owner: bool = False


class _Turn:
    """Tasks found at once and done one after the other."""

    def __init__(
        self, connection: asyncpg.Connection, settings: Settings, catalogue: Catalogue
    ) -> None:
        self.planned = TurnAccount()
        self._connection = connection
        self._settings = settings
        self._catalogue = catalogue
        self._tables = [stream.table for stream in catalogue.values()]
        self._is_owner = False
        self._retention: Retention = {}
        self._tasks: list[_Task] = []

    @classmethod
    async def of(
        cls,
        connection: asyncpg.Connection,
        settings: Settings,
        catalogue: Catalogue,
        wanted: Retention | None = None,
    ) -> _Turn:
        """Plan everything that is due; `wanted` is what the retention file says."""
        turn = cls(connection, settings, catalogue)
        turn._is_owner = await connection.fetchval(_OWNS, turn._tables)
        turn._tasks += await turn._to_keep(wanted)
        turn._tasks += await turn._to_make()
        turn._tasks += await turn._to_drop_and_index()
        turn._tasks += await turn._to_analyse()
        turn._tasks += await turn._to_leave_to_timescaledb()
        for task in turn._tasks:
            turn.planned.freed_bytes += task.frees_bytes
            getattr(turn.planned, task.kind).append(task.name)
        keep_days = turn._retention.get(DEAD_LETTER, Kept()).keep_days
        if keep_days is not None and turn._is_owner:
            letters, size_bytes = await connection.fetchrow(_DEAD_LETTERS, keep_days)
            turn.planned.dead_letters = letters
            turn.planned.freed_bytes += size_bytes
        return turn

    async def done(self, told: Callable[[str], None]) -> TurnAccount:
        """Do all tasks and list failed ones in `later`; raise only if the connection is lost."""
        account = TurnAccount(later=self.planned.later)
        not_ours = [task.told for task in self._tasks if self._is_not_ours(task)]
        if not_ours:
            more = f" and {len(not_ours) - 1} more" if len(not_ours) > 1 else ""
            account.later.append(f"{not_ours[0]}{more}: {_AS_OWNER}")
        for task in self._tasks:
            if self._is_not_ours(task):
                continue
            told(task.told)
            try:
                if await task.do() is False:
                    continue
            except asyncpg.PostgresError as exc:
                unless_cancelled(exc)
                if self._connection.is_closed():
                    raise
                account.later.append(f"{task.told}: {exc}")
                continue
            account.freed_bytes += task.frees_bytes
            getattr(account, task.kind).append(task.name)
        account.dead_letters = await self._drop_dead_letters()
        return account

    def _is_not_ours(self, task: _Task) -> bool:
        return task.needs_owner and not self._is_owner

    async def _to_keep(self, wanted: Retention | None) -> list[_Task]:
        """Plan the changes that the retention file wants.

        If a table is to be kept for less than IOV_MAX_AGE_DAYS, none of its days is dropped.
        """
        kept = await retention_of(self._connection)
        age_days, tasks = self._settings.max_age_days, []
        if wanted is not None:
            for what, statement in changes(kept, wanted):
                tasks.append(
                    _Task("kept", what, what, self._executing(statement), needs_owner=True)
                )
            if self._is_owner:
                kept = dict.fromkeys(kept, Kept()) | wanted
        reasons = [too_short(kept, table, age_days) for table in kept]
        self.planned.later = [reason for reason in reasons if reason]
        self._retention = {
            table: days for table, days in kept.items() if not too_short(kept, table, age_days)
        }
        return tasks

    async def _to_make(self) -> list[_Task]:
        today = await self._connection.fetchval(_TODAY)
        ahead = await missing_ahead(self._connection, self._catalogue, today)
        return [
            _Task(
                "made", f"iov.{table}_{day:%Y%m%d}", f"make iov.{table}_{day:%Y%m%d}",
                partial(make_partitions, self._connection, [(table, day)]),
            )
            for table, day in ahead
        ]  # fmt: skip

    async def _to_drop_and_index(self) -> list[_Task]:
        keep = {t: days.keep_days for t, days in self._retention.items() if days.keep_days}
        kept = list(keep), list(keep.values())
        tasks = []
        if self._is_owner:
            # These were detached by a run that was interrupted before it dropped them.
            for part, size_bytes in await self._connection.fetch(
                _LEFT_OVER, _PAST_ITS_KEEPING, *kept
            ):
                drop = partial(self._drop, part)
                tasks.append(_Task("dropped", f"iov.{part}", f"drop iov.{part}", drop, size_bytes))
        for day in await self._connection.fetch(_DAYS, *kept, self._tables, _PAST_ITS_KEEPING):
            name = f"iov.{day['part']}"
            if day["is_old"] and day["has_view"]:
                self.planned.later.append(f"drop {name}: a view reads it; drop the view first")
            elif day["is_old"]:
                way = self._drop_day if self._is_owner else self._ask_for
                tasks.append(
                    _Task("dropped", name, f"drop {name}", partial(way, day), day["bytes"])
                )
            elif day["pending"]:
                self.planned.later.append(_HALF_DETACHED.format(**day))
            else:
                tasks += self._to_mend(name, day)
        return tasks

    def _to_mend(self, name: str, day: asyncpg.Record) -> Iterator[_Task]:
        """Plan repairs of a day that is kept: take off a wrong mark, add a missing index."""
        if day["is_marked"]:
            unmark = partial(self._comment, day["part"], day["comment"])
            yield _Task("kept", f"keep {name}", f"keep {name}", unmark, needs_owner=True)
        if not day["is_indexed"]:
            index = partial(self._index, day["part"])
            yield _Task("indexed", name, f"index {name} by ts", index, needs_owner=True)

    async def _to_analyse(self) -> list[_Task]:
        alone = self._connection.get_server_version() >= (_ONLY_FROM,)
        analyse = self._analyse if alone else self._analyse_with_days
        return [
            _Task(
                "analysed", f"iov.{table}", f"analyse iov.{table}", partial(analyse, table),
                needs_owner=not alone,
            )
            for (table,) in await self._connection.fetch(_STALE, self._tables)
        ]  # fmt: skip

    async def _to_leave_to_timescaledb(self) -> list[_Task]:
        if not await self._connection.fetchval(_HAS_TIMESCALEDB):
            return []
        return [
            _Task("policies", statement, statement, self._executing(statement), needs_owner=True)
            for row in await self._connection.fetch(_POLICIES, list(self._retention))
            for statement in _policies(row, self._retention[row["table"]])
        ]

    def _executing(self, statement: str) -> Callable[[], Awaitable[object]]:
        return partial(self._connection.execute, statement)

    async def _drop_day(self, day: asyncpg.Record) -> bool:
        """Drop a day as the owner; wait for current readers of the table, but hold up nobody."""
        table, part = day["table"], day["part"]
        if not await self._connection.fetchval(_IS_ATTACHED, table, part):
            return False  # somebody else detached it, so it is not ours
        how = "FINALIZE" if day["pending"] else "CONCURRENTLY"
        await self._comment(part, f"{_PAST_ITS_KEEPING}iov.{table} until {day['until']}")
        try:
            await self._connection.execute(
                f"ALTER TABLE iov.{quoted(table)} DETACH PARTITION iov.{quoted(part)} {how}"
            )
        except asyncpg.PostgresError:
            if not self._connection.is_closed():
                await self._comment(part, day["comment"])
            raise
        return await self._drop(part)

    async def _comment(self, part: str, text: str) -> None:
        await self._connection.execute(f"COMMENT ON TABLE iov.{quoted(part)} IS {literal(text)}")

    async def _drop(self, part: str) -> bool:
        try:
            await self._connection.execute(f"DROP TABLE iov.{quoted(part)}")
        except asyncpg.UndefinedTableError:
            return False
        return True

    async def _ask_for(self, day: asyncpg.Record) -> bool:
        """Drop a day as a worker; try a few times, because a reader makes the function give up."""
        for left in reversed(range(_TRIES)):
            try:
                await self._connection.execute(_DROP_DAY, day["table"], day["part"])
            except asyncpg.LockNotAvailableError:
                if not left:
                    raise
                await asyncio.sleep(_BETWEEN_TRIES_S)
            else:
                break
        return True

    async def _drop_dead_letters(self) -> int:
        """Delete old dead letters, 10,000 in a transaction; return the number deleted."""
        if DEAD_LETTER not in self._retention:
            return 0
        total, gone = 0, _SLICE
        while gone == _SLICE:
            gone = await self._connection.fetchval("SELECT iov.drop_dead_letters($1)", _SLICE)
            total += gone
        return total

    async def _analyse(self, table: str) -> None:
        async with self._connection.transaction():
            await self._connection.execute(f"SET LOCAL statement_timeout = '{_ANALYSE_S}s'")
            await self._connection.execute("SELECT iov.analyse($1)", table)

    async def _analyse_with_days(self, table: str) -> None:
        await self._connection.execute(f"ANALYZE iov.{quoted(table)}")

    async def _index(self, part: str) -> None:
        for (name,) in await self._connection.fetch(_INVALID, part):
            await self._connection.execute(f"DROP INDEX CONCURRENTLY iov.{quoted(name)}")
        await self._connection.execute(_INDEX.format(part=quoted(part)))


def _policies(there: asyncpg.Record, kept: Kept) -> Iterator[str]:
    """Yield statements that set a table's TimescaleDB policies to what `kept` says."""
    name = f"iov.{quoted(there['table'])}"
    table, (keep_days, compress_days) = literal(name), kept
    if there["drop_after"] != _days(keep_days):
        yield f"SELECT remove_retention_policy({table}, if_exists => true)"
        if keep_days:
            yield f"SELECT add_retention_policy({table}, INTERVAL '{keep_days} days')"
    if there["compress_after"] != _days(compress_days):
        yield f"SELECT remove_compression_policy({table}, if_exists => true)"
        if compress_days and not there["compression_enabled"]:
            yield (
                f"ALTER TABLE {name} SET (timescaledb.compress, "
                "timescaledb.compress_segmentby = 'device_id', timescaledb.compress_orderby = 'ts')"
            )
        if compress_days:
            yield f"SELECT add_compression_policy({table}, INTERVAL '{compress_days} days')"


def _days(number: int | None) -> str | None:
    """Return a number of days in the words of a policy's configuration."""
    return None if number is None else f"{number} day{'s' if number > 1 else ''}"
