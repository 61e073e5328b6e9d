"""What must never be stored: heart rates, plate numbers, titles of what is played.

A schema lists names (`x-never-stored`); a field of such a name, however deep and however written
(`heart_rate`, `heartRate`, `Heart-Rate`), is removed from a sample before anything of it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import islice
from typing import Any

_NOT_PLAIN = re.compile(r"[^a-z0-9]")
_NOT_PLAIN_BYTES = bytes(n for n in range(256) if _NOT_PLAIN.match(chr(n)))
_NOT_PLAIN_BYTES_OF_LINES = _NOT_PLAIN_BYTES.replace(b"\n", b"")
_MANY, _AT_ONCE = 200, 2_000
_NESTED = frozenset({dict, list})
_REMEMBERED, _LONGEST = 4_096, 100
"""Names that are remembered, and how long one may be: hostile ones have megabytes."""


class NeverStored:
    """The names of one stream; false where it has none."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(map(_plain, names))
        # Vehicles send the same names for ever; hostile ones push each other out.
        self._bans = lru_cache(_REMEMBERED)(self._looked_up)

    def bans(self, name: str) -> bool:
        """Whether a field of that name is one of them."""
        return self._bans(name) if len(name) <= _LONGEST else self._looked_up(name)

    def _looked_up(self, name: str) -> bool:
        return _plain(name) in self.names

    def __bool__(self) -> bool:
        return bool(self.names)

    def without(self, node: Any) -> Any:
        """`node` without any field of these names."""
        if not self.names:
            return node
        if type(node) is dict:
            nested = _NESTED
            banned = self._banned(node)
            return {
                k: self.without(v) if type(v) in nested else v
                for k, v in node.items()
                if k not in banned
            }
        # Arrays of numbers are the largest things there are: 25 ns an item.
        if type(node) is list and not _NESTED.isdisjoint(map(type, node)):
            return [self.without(item) for item in node]
        return node

    def _banned(self, names: Collection[str]) -> list[str]:
        """Those that are banned among the names of an object."""
        if len(names) < _MANY:
            return [name for name in names if self.bans(name)]
        # Many at once: 0.1 µs a name instead of 0.7 for names that were never seen before.
        banned: list[str] = []
        rest = iter(names)
        while some := list(islice(rest, _AT_ONCE)):
            text = "\n".join(name.replace("\n", "") for name in some).lower().encode()
            plain = text.translate(None, delete=_NOT_PLAIN_BYTES_OF_LINES).decode().split("\n")
            banned += [n for n, found in zip(some, plain, strict=True) if found in self.names]
        return banned

    def may_be_in(self, text: bytes) -> bool:
        """Whether one of the names may stand in a text that cannot be read as JSON."""
        if not self.names:
            return False
        # Ten times as fast as the pattern: a flood of large broken messages comes by here.
        plain = text.lower().translate(None, delete=_NOT_PLAIN_BYTES)
        return b"\\u" in text or any(name.encode() in plain for name in self.names)


def _plain(name: str) -> str:
    lower = name.lower()
    return lower if lower.isascii() and lower.isalnum() else _NOT_PLAIN.sub("", lower)
