"""Which values a row has, and which columns they are for.

First what every row has, then the sample's own columns, then those of the objects that are
flattened, one object after the other. Most samples lack most objects, and what is not there takes
no place in the row: half the columns of a driving car's `nev` sample, which would otherwise be
made, sent and read as nulls. Which objects are there is a number with a bit for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from ingest.schema.columns import Column

LEADING = ("device_id", "ts", "seq", "received_at", "resend")
TRAILING = ("quality", "extra")

_REMEMBERED = 256
"""Sets of objects whose columns are remembered: a fleet has some, a hostile vehicle thousands."""

Path = tuple[str, ...]


class Object(NamedTuple):
    """An object that is flattened, the sample itself first of all."""

    path: Path
    columns: list[Column]
    """Of its own members."""
    objects: list[Object]
    """Those in it, which come after its own columns."""

    def all(self) -> Iterator[Object]:
        """Itself, and then all that are in it."""
        yield self
        for inner in self.objects:
            yield from inner.all()


def tree(columns: Iterable[Column], path: Path = ()) -> Object:
    """The objects that columns come from."""
    depth = len(path)
    below = [column for column in columns if column.path[:depth] == path]
    own = [column for column in below if len(column.path) == depth + 1]
    names = dict.fromkeys(c.path[depth] for c in below if len(c.path) > depth + 1)
    return Object(path, own, [tree(below, (*path, name)) for name in names])


class Layout:
    """The places of one stream's values."""

    def __init__(self, columns: Iterable[Column]) -> None:
        self.sample = tree(columns)
        _, *flattened = self.sample.all()
        self.bits = {object_.path: 1 << number for number, object_ in enumerate(flattened)}
        """Of each flattened object, by its path."""
        self._names = [
            (self.bits[object_.path], [column.name for column in object_.columns])
            for object_ in flattened
        ]
        self._columns: dict[int, list[str]] = {}

    @cached_property
    def all(self) -> int:
        """Every object is there."""
        return (1 << len(self._names)) - 1

    def columns(self, present: int) -> list[str]:
        """Names of the columns of a row in which these objects are there."""
        found = self._columns.get(present)
        if found is None:
            names = [name for bit, own in self._names if bit & present for name in own]
            own = [column.name for column in self.sample.columns]
            if len(self._columns) >= _REMEMBERED:
                self._columns.clear()
            found = self._columns[present] = [*LEADING, *own, *names, *TRAILING]
        return found

    def widen(self, values: list[Any], present: int, wanted: int) -> None:
        """Put nulls into a row where objects would be that are wanted and not there."""
        place = len(LEADING) + len(self.sample.columns)
        for bit, names in self._names:
            if present & bit:
                place += len(names)
            elif wanted & bit:
                values[place:place] = [None] * len(names)
                place += len(names)
