"""Removal of data that must never be stored: heart rates, plate numbers, names of drivers.

The envelope lists names for all streams (`x-never-stored`), and a stream may list more. A field
with such a name is removed from a sample before any part of it is kept: at any depth, in any
spelling (`plate_no`, `plateNo`, `Plate-No`), and in any notation (`"driver": {"id": …}`,
`"driver.id": …`, `"Vehicle.Driver.ID": …`). A field that the stream's schema itself stores as a
digest, or keeps for the device, stays at its own place.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from ingest.schema.digest import CHARACTERS, Digest

Places = Mapping[str, Any]
"""Fields by name, with the fields in them; arrays have no step of their own."""

_NOT_PLAIN = re.compile(r"[^a-z0-9]")
_NOT_PLAIN_BYTES = bytes(n for n in range(256) if _NOT_PLAIN.match(chr(n)))
_NOT_PLAIN_BYTES_OF_LINES = _NOT_PLAIN_BYTES.replace(b"\n", b"").replace(b".", b"")
_DOTS = bytes.maketrans(b"/:", b"..")
_STEPS = re.compile(r"[./:]")
_MOST_STEPS = 3
"""Number of last steps of a dotted name that may together be a forbidden name."""
_KEYS = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"\s*:')
_MOST_PAIRS = 100_000
_MANY, _AT_ONCE = 16, 2_000
_NESTED = frozenset({dict, list})
_OF_TEXTS = frozenset({"pattern", "format", "minLength", "maxLength", "enum", "const"})
_NOWHERE: Places = {}
_REMEMBERED, _LONGEST = 4_096, 100
"""Number of cached names and of characters in one: hostile names have megabytes."""


class NeverStored:
    """Forbidden field names of one stream. Falsy if there are none."""

    def __init__(self, names: Iterable[str], exempt: Iterable[Sequence[str]] = ()) -> None:
        """Collect the forbidden names; `exempt` are paths of fields that stay where they are."""
        self.names = frozenset(map(_plain, names))
        self._exempt = places(exempt)
        self._beginnings = {name[:end] for name in self.names for end in range(1, len(name))}
        # Vehicles always send the same names; hostile names push each other out of the cache.
        self._bans = lru_cache(_REMEMBERED)(self._looked_up)
        self._begins = lru_cache(_REMEMBERED)(self._looked_up_beginning)

    def bans(self, name: str) -> bool:
        """Return whether a name is forbidden, in any spelling, with or without dots."""
        return self._bans(name) if len(name) <= _LONGEST else self._looked_up(name)

    def _looked_up(self, name: str) -> bool:
        if _plain(name) in self.names:
            return True
        steps = _STEPS.split(name)
        return len(steps) > 1 and self._is_last_steps(list(map(_plain, steps)))

    def _is_last_steps(self, steps: Sequence[str]) -> bool:
        """Return whether the last of these plain steps are, together, a forbidden name."""
        return any("".join(steps[-number:]) in self.names for number in range(1, _MOST_STEPS + 1))

    def _looked_up_beginning(self, name: str) -> bool:
        return _plain(name) in self._beginnings

    def _may_begin(self, name: str) -> bool:
        """Return whether a forbidden name may begin with this name of an object around it."""
        return len(name) <= _LONGEST and self._begins(name)

    def __bool__(self) -> bool:
        return bool(self.names)

    def without(self, sample: Any) -> Any:
        """Return `sample` without its forbidden fields; exempt fields stay."""
        # Looking for forbidden names first takes a tenth of the time of rebuilding the sample.
        if not self.names or not self._banned(self._names(sample)):
            return sample
        return self._without(sample, self._exempt)

    def everywhere_without(self, node: Any) -> Any:
        """Return `node` without forbidden fields; nothing is exempt."""
        return self._without(node)

    def _without(self, node: Any, exempt: Places = _NOWHERE, around: str = "") -> Any:
        if type(node) is dict:
            banned = self._banned(node)
            if around and self._may_begin(around):
                banned += [name for name in node if self.bans(f"{around}.{name}")]
            return {
                k: self._without(v, exempt.get(k, _NOWHERE), k) if type(v) in _NESTED else v
                for k, v in node.items()
                if k not in banned or k in exempt
            }
        if type(node) is list and not _NESTED.isdisjoint(map(type, node)):
            return [self._without(item, exempt, around) for item in node]
        return node

    def _names(self, node: Any) -> set[str]:
        """Collect the names of all members, however deep, and those that need two steps."""
        found: set[str] = set()
        nodes = [(node, "")]
        while nodes:
            node, around = nodes.pop()
            if type(node) is dict:
                found.update(node)
                if around and self._may_begin(around):
                    found.update([f"{around}.{name}" for name in node])
                nodes += [(value, name) for name, value in node.items() if type(value) in _NESTED]
            # Arrays of numbers are the largest things there are: 25 ns an item.
            elif type(node) is list and not _NESTED.isdisjoint(map(type, node)):
                nodes += [(item, around) for item in node]
        return found

    def _banned(self, names: Collection[str]) -> list[str]:
        """Return those of the names that are forbidden."""
        if len(names) < _MANY or not "".join(names).isascii():
            return [name for name in names if self.bans(name)]
        # Many at once: 0.1 µs a name instead of 0.7 for names that were never seen before.
        banned: list[str] = []
        for some, text in _plain_with_dots(names):
            plain = text.split("\n")
            if "." in text or not self.names.isdisjoint(plain):
                pairs = zip(some, plain, strict=True)
                banned += [name for name, found in pairs if self._bans_plain(found)]
        return banned

    def _bans_plain(self, dotted: str) -> bool:
        if "." not in dotted:
            return dotted in self.names
        return dotted.replace(".", "") in self.names or self._is_last_steps(
            dotted.rsplit(".", _MOST_STEPS)
        )

    def may_be_in(self, text: bytes) -> bool:
        """Return whether one of the names may stand in a JSON text, in any spelling.

        This includes a name that parsing would drop because a repeated key replaces its object.
        """
        if not self.names:
            return False
        keys = set(_KEYS.findall(text))
        if any(b"\\" in key for key in keys):
            return True
        names = {key.decode(errors="replace") for key in keys}
        if self._banned(names):
            return True
        if text.isascii():
            plain = {n for _, some in _plain_with_dots(names) for n in some.split("\n")}
        else:
            plain = set(map(_plain, names))
        around = plain & self._beginnings
        if len(around) * len(plain) > _MOST_PAIRS:
            return True
        return any(outer + name in self.names for outer in around for name in plain)


def _plain_with_dots(names: Iterable[str]) -> Iterator[tuple[list[str], str]]:
    """Reduce many ASCII names to a-z and 0-9, with a dot between the steps of a dotted name.

    Yield some names and what they are reduced to, one on a line, again and again.
    """
    rest = iter(names)
    while some := list(islice(rest, _AT_ONCE)):
        text = "\n".join(some)
        if text.count("\n") >= len(some):
            text = "\n".join(name.replace("\n", "") for name in some)
        dotted = text.lower().encode().translate(_DOTS)
        kept = dotted.translate(None, delete=_NOT_PLAIN_BYTES_OF_LINES)
        yield some, kept.decode()


def places(paths: Iterable[Sequence[str]]) -> Places:
    """Return the tree of some paths."""
    tree: dict[str, Any] = {}
    for path in paths:
        place = tree
        for name in path:
            place = place.setdefault(name, {})
    return tree


def paths(schema: Mapping[str, Any], keyword: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field that has a keyword; arrays have no step of their own."""
    for name, field in schema.get("properties", {}).items():
        if field.get(keyword):
            yield (name,)
        for inner in (field, field.get("items", {})):
            yield from ((name, *path) for path in paths(inner, keyword))


def with_room_for_digests(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a schema whose fields with `x-hash` also accept a digest."""
    roomy = dict(schema)
    if schema.get("x-hash"):
        roomy = {keyword: value for keyword, value in schema.items() if keyword not in _OF_TEXTS}
        roomy["maxLength"] = max(CHARACTERS, schema.get("maxLength", CHARACTERS))
    if "properties" in schema:
        fields = schema["properties"].items()
        roomy["properties"] = {name: with_room_for_digests(field) for name, field in fields}
    if isinstance(schema.get("items"), Mapping):
        roomy["items"] = with_room_for_digests(schema["items"])
    return roomy


def with_digests(node: Any, where: Places, digest: Digest) -> Any:
    """Return a copy of `node` with the values at some places replaced by their digests.

    A value that should be text and is not is left out, because nobody knows what is in it.
    """
    if type(node) is list:
        return [with_digests(item, where, digest) for item in node]
    if type(node) is not dict or where.keys().isdisjoint(node):
        return node
    return {
        name: _digested(value, where[name], digest) if name in where else value
        for name, value in node.items()
    }


def _digested(value: Any, where: Places, digest: Digest) -> Any:
    if where:
        return with_digests(value, where, digest)
    return digest(value) if isinstance(value, str) else None


def _plain(name: str) -> str:
    """Reduce a name to a-z and 0-9; full-width letters and letters with accents become plain."""
    lower = name.lower()
    if lower.isascii() and lower.isalnum():
        return lower
    if len(lower) > _LONGEST:
        # A name may have megabytes, and to take each of them by the pattern takes a second.
        return lower.encode().translate(None, delete=_NOT_PLAIN_BYTES).decode()
    return _NOT_PLAIN.sub("", unicodedata.normalize("NFKD", lower))
