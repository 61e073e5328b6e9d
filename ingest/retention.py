"""Days that rows are kept: a TOML file with a section per stream, in whole days.

    [default]                 # streams that are not named
    keep_days = 90
    compress_after_days = 7   # TimescaleDB

    [battery]
    keep_days = 365

    [dead_letter]
    keep_days = 30

If a stream has neither its own section nor a `[default]`, its rows are never dropped. Without
`[dead_letter]`, dead letters are never dropped.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ingest.errors import ConfigError
from ingest.schema import Catalogue

DEAD_LETTER = "dead_letter"
_DEFAULT = "default"
_MOST_DAYS = 36_500


class Kept(NamedTuple):
    """Retention of one table, in days after the end of each row's UTC day."""

    keep_days: int | None = None
    """Number of days that rows are kept; None: for ever."""
    compress_after_days: int | None = None
    """Number of days until compression, only on TimescaleDB; None: never."""


Retention = dict[str, Kept]
"""Retention by table name."""


def read(file: Path, catalogue: Catalogue, max_age_days: float) -> Retention:
    """Return the retention from a file; raise ConfigError with all of its problems."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    # ValueError: invalid TOML, invalid UTF-8, or a number with thousands of digits.
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError([f"{file}: {exc}"]) from exc
    problems = list(_problems(document, catalogue))
    if problems:
        raise ConfigError([f"{file}: {problem}" for problem in problems])
    default = Kept(**document.get(_DEFAULT, {}))
    kept = {
        stream.table: Kept(**document[name]) if name in document else default
        for name, stream in catalogue.items()
    } | {DEAD_LETTER: Kept(**document.get(DEAD_LETTER, {}))}
    retention = {table: days for table, days in kept.items() if days != Kept()}
    problems = [told for table in retention if (told := too_short(retention, table, max_age_days))]
    if problems:
        raise ConfigError([f"{file}: {problem}" for problem in problems])
    return retention


def too_short(retention: Retention, table: str, max_age_days: float) -> str | None:
    """Return the problem if rows go while samples of their day are still taken; otherwise None."""
    keep_days = retention[table].keep_days
    if table == DEAD_LETTER or keep_days is None or keep_days >= max_age_days:
        return None
    return (
        f"iov.{table} is kept for {keep_days} days and samples of {max_age_days:g} days are taken "
        "(IOV_MAX_AGE_DAYS): keep it at least as long, or take only younger ones"
    )


def _problems(document: dict[str, Any], catalogue: Catalogue) -> Iterator[str]:
    names = [*catalogue, _DEFAULT, DEAD_LETTER]
    for name, days in document.items():
        if name not in names:
            near = get_close_matches(name, names, n=1)
            yield f"there is no stream {name}" + (f"; did you mean {near[0]}?" if near else "")
        elif not isinstance(days, dict):
            yield f"{name} is not a table: write [{name}] and keep_days = 90 below"
        else:
            yield from _problems_of(name, days)


def _problems_of(name: str, days: dict[str, Any]) -> Iterator[str]:
    fields = Kept._fields[:1] if name == DEAD_LETTER else Kept._fields
    for key, value in days.items():
        if key not in fields:
            near = get_close_matches(key, fields, n=1)
            yield f"[{name}] has no {key}" + (f"; did you mean {near[0]}?" if near else "")
        elif type(value) is not int or not 1 <= value <= _MOST_DAYS:
            yield f"[{name}] {key} is not a whole number of days from 1 to {_MOST_DAYS:,}"
    keep, compress = (days.get(field) for field in Kept._fields)
    if type(keep) is int and type(compress) is int and compress >= keep:
        yield f"[{name}] is compressed after {compress} days and kept for {keep} only"
