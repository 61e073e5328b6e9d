"""The content of one transaction: a batch, or a piece that is written separately."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from ingest.batch import DeadLetter, Description
from ingest.model import Row
from ingest.store.halves import halves
from ingest.store.staging import Refusal


@dataclass(slots=True)
class Part:
    """Rows, dead letters and descriptions that are committed together or not at all."""

    rows: dict[str, list[Row]]
    letters: list[DeadLetter]
    described: list[Description]
    past: tuple[str, date] | None = None
    """(stream, past day) of its rows, if a lock made the writer write past days separately."""
    hopeless: Refusal | None = None
    """Refusal of its only row, if this row alone was too much for the server several times."""
    failed_alone: int = 0
    """Number of times its only row was too much for the server, which has stored other rows."""
    replayed: AbstractSet[int] = frozenset()
    """Ids of the dead letters to take out, if this part is the last of their content."""

    @property
    def size(self) -> int:
        """Number of rows, dead letters and descriptions."""
        return sum(map(len, self.rows.values())) + len(self.letters) + len(self.described)

    def halves(self) -> list[Part]:
        """Return the first and second half of each list as two parts; leave out an empty part."""
        parts = [Part({}, [], []), Part({}, [], [])]
        for name, rows in self.rows.items():
            for half, some in zip(parts, halves(rows), strict=True):
                if some:
                    half.rows[name] = some
        for half, letters in zip(parts, halves(self.letters), strict=True):
            half.letters = letters
        for half, described in zip(parts, halves(self.described), strict=True):
            half.described = described
        return [half for half in parts if half.size]

    def by_past_day(self) -> list[Part]:
        """Return a part for each stream and day older than yesterday, then a part for the rest."""
        present = datetime.now(UTC).date() - timedelta(days=1)
        rest = Part({}, self.letters, self.described)
        days: dict[tuple[str, date], list[Row]] = {}
        for name, rows in self.rows.items():
            for row in rows:
                day = row.ts.date()
                if day < present:
                    days.setdefault((name, day), []).append(row)
                else:
                    rest.rows.setdefault(name, []).append(row)
        parts = [Part({of[0]: rows}, [], [], of) for of, rows in days.items()]
        return [*parts, rest] if rest.size else parts
