"""Removal of data that must never be stored: heart rates, plate numbers, titles of what is played.

A schema lists names (`x-never-stored`). A field with such a name, at any depth and in any spelling
(`heart_rate`, `heartRate`, `Heart-Rate`), is removed from a sample before any part of it is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

_NOT_PLAIN = re.compile(r"[^a-z0-9]")
_NOT_PLAIN_BYTES = bytes(n for n in range(256) if _NOT_PLAIN.match(chr(n)))
_NOT_PLAIN_BYTES_OF_LINES = _NOT_PLAIN_BYTES.replace(b"\n", b"")
_MANY, _AT_ONCE = 16, 2_000
_NESTED = frozenset({dict, list})
_NOWHERE: Mapping[str, Any] = {}
"""Empty tree of places: below here no field is stored as a digest."""
_REMEMBERED, _LONGEST = 4_096, 100
"""Number of cached names and of characters in one: hostile names have megabytes."""


class NeverStored:
    """Forbidden field names of one stream. Falsy if there are none."""

    def __init__(
        self,
        names: Iterable[str],
        hashed: Iterable[Sequence[str]] = (),
        elsewhere: Iterable[str] = (),
    ) -> None:
        """Collect the forbidden names.

        `hashed`: paths of fields whose digest is stored; anywhere else their names are forbidden.
        `elsewhere`: names of such fields of other streams; they are forbidden everywhere.
        """
        self.listed = frozenset(map(_plain, names))
        """Names the schema lists."""
        self._places: dict[str, Any] = {}
        hashed = list(hashed)
        for path in hashed:
            place: dict[str, Any] = self._places
            for name in path:
                place = place.setdefault(name, {})
        self.names = self.listed | {_plain(path[-1]) for path in hashed}
        self.names |= set(map(_plain, elsewhere))
        self._names_in_bytes = [name.encode() for name in self.names]
        # Vehicles always send the same names; hostile names push each other out of the cache.
        self._bans = lru_cache(_REMEMBERED)(self._looked_up)

    def bans(self, name: str) -> bool:
        """Return whether a name is forbidden, in any spelling."""
        return self._bans(name) if len(name) <= _LONGEST else self._looked_up(name)

    def lists(self, name: str) -> bool:
        """Return whether the schema lists a name, in any spelling."""
        return _plain(name) in self.listed

    def _looked_up(self, name: str) -> bool:
        return _plain(name) in self.names

    def __bool__(self) -> bool:
        return bool(self.names)

    def without(self, sample: Any) -> Any:
        """Return `sample` without its forbidden fields; fields that are stored as a digest stay."""
        # Looking for forbidden names first takes a tenth of the time of rebuilding the sample.
        if not self.names or not self._banned(_names(sample)):
            return sample
        return self._without(sample, self._places)

    def _without(self, node: Any, places: Mapping[str, Any] = _NOWHERE) -> Any:
        if type(node) is dict:
            nested = _NESTED
            banned = self._banned(node)
            if not places:
                return {
                    k: self._without(v) if type(v) in nested else v
                    for k, v in node.items()
                    if k not in banned
                }
            return {
                k: self._without(v, places.get(k, _NOWHERE)) if type(v) in nested else v
                for k, v in node.items()
                if k not in banned or k in places
            }
        if type(node) is list and not _NESTED.isdisjoint(map(type, node)):
            return [self._without(item) for item in node]
        return node

    def _banned(self, names: Collection[str]) -> list[str]:
        """Return the names of an object that are forbidden."""
        if len(names) < _MANY:
            return [name for name in names if self.bans(name)]
        if not "".join(names).isascii():
            return [name for name in names if self.bans(name)]
        # Many at once: 0.1 µs a name instead of 0.7 for names that were never seen before.
        banned: list[str] = []
        rest = iter(names)
        while some := list(islice(rest, _AT_ONCE)):
            text = "\n".join(some)
            if text.count("\n") >= len(some):
                text = "\n".join(name.replace("\n", "") for name in some)
            kept = text.lower().encode().translate(None, delete=_NOT_PLAIN_BYTES_OF_LINES)
            plain = kept.decode().split("\n")
            if not self.names.isdisjoint(plain):
                banned += [n for n, found in zip(some, plain, strict=True) if found in self.names]
        return banned

    def may_be_in(self, text: bytes) -> bool:
        """Return whether one of the names may stand in a JSON text, in any spelling.

        This includes a name that parsing would drop because a repeated key replaces its object.
        """
        if not self.names:
            return False
        plain = text.lower().translate(None, delete=_NOT_PLAIN_BYTES)
        # A line feed in a name is escaped as `\n`, whose letter n would hide the name in `plain`.
        if b"\\" in text or not text.isascii():
            return True
        return any(name in plain for name in self._names_in_bytes)


def _names(node: Any) -> set[str]:
    """Collect the names of all members, however deep."""
    found: set[str] = set()
    nodes, nested = [node], _NESTED
    while nodes:
        node = nodes.pop()
        if type(node) is dict:
            found.update(node)
            nodes += [value for value in node.values() if type(value) in nested]
        # Arrays of numbers are the largest things there are: 25 ns an item.
        elif type(node) is list and not nested.isdisjoint(map(type, node)):
            nodes += node
    return found


def _plain(name: str) -> str:
    """Reduce a name to a-z and 0-9; full-width letters and letters with accents become plain."""
    lower = name.lower()
    if lower.isascii() and lower.isalnum():
        return lower
    if len(lower) > _LONGEST:
        # A name may have megabytes, and to take each of them by the pattern takes a second.
        return lower.encode().translate(None, delete=_NOT_PLAIN_BYTES).decode()
    return _NOT_PLAIN.sub("", unicodedata.normalize("NFKD", lower))
