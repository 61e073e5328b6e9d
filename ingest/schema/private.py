"""What must never be stored: heart rates, plate numbers, titles of what is played.

A schema lists names (`x-never-stored`); a field of such a name, however deep and however written
(`heart_rate`, `heartRate`, `Heart-Rate`), is removed from a sample before anything of it is kept.
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
"""No field below whose digest is stored."""
_REMEMBERED, _LONGEST = 4_096, 100
"""Names that are remembered, and how long one may be: hostile ones have megabytes."""


class NeverStored:
    """The names of one stream; false where it has none."""

    def __init__(
        self,
        names: Iterable[str],
        hashed: Iterable[Sequence[str]] = (),
        elsewhere: Iterable[str] = (),
    ) -> None:
        """`hashed`: paths of fields whose digest is stored; nowhere else may such a name stand.

        `elsewhere`: the names of those of other streams.
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
        # Vehicles send the same names for ever; hostile ones push each other out.
        self._bans = lru_cache(_REMEMBERED)(self._looked_up)

    def bans(self, name: str) -> bool:
        """Whether a field of that name is one of them."""
        return self._bans(name) if len(name) <= _LONGEST else self._looked_up(name)

    def lists(self, name: str) -> bool:
        """Tell if the schema lists it, however it is written."""
        return _plain(name) in self.listed

    def _looked_up(self, name: str) -> bool:
        return _plain(name) in self.names

    def __bool__(self) -> bool:
        return bool(self.names)

    def without(self, sample: Any) -> Any:
        """`sample` without any field of these names, but for what is stored as a digest."""
        # To look for them first takes a tenth of what it takes to make everything anew.
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
        """Those that are banned among the names of an object."""
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
        """Tell if one of the names may stand in a JSON text, in whatever way it is written.

        Also one that is not there any more when it is read, for its object stands there twice.
        """
        if not self.names:
            return False
        plain = text.lower().translate(None, delete=_NOT_PLAIN_BYTES)
        # A line feed in a name is written with a letter, which is none of the name's.
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
    """Reduce a name to its letters and digits, of full width and with accents too."""
    lower = name.lower()
    if lower.isascii() and lower.isalnum():
        return lower
    if len(lower) > _LONGEST:
        # A name may have megabytes, and to take each of them by the pattern takes a second.
        return lower.encode().translate(None, delete=_NOT_PLAIN_BYTES).decode()
    return _NOT_PLAIN.sub("", unicodedata.normalize("NFKD", lower))
