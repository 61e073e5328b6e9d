"""Refused values, set aside so that the rest of their sample can be stored.

A value that its schema refuses costs its own field only: the field becomes null, and what was sent
is returned with its JSON pointer. A required value takes the object around it along; if that object
is the sample itself, the sample is refused. Whatever is left is checked as a whole by the caller.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jsonschema_rs
from msgspec import convert

from ingest.model import Why
from ingest.schema.accept import only, struct, type_of
from ingest.schema.columns import ENVELOPE, json_types
from ingest.schema.fault import described, pointer
from ingest.schema.private import NeverStored
from ingest.schema.siblings import is_number

Validator = Callable[[dict[str, Any]], jsonschema_rs.Draft202012Validator]
"""Builder of a validator for a schema, with the formats that are checked."""

MEMBER = "refused"
"""Name under which a sample's refused values stand among the fields that no schema names."""
_MOST = 250
"""Number of values that may be refused in one member of a sample. If there are more, the whole
member is refused, so that neither time nor `quality` grows with what a hostile vehicle sends."""
_AT_ONCE = 64
_VALUE = "value"


_WHYS = {
    "type": Why.TYPE,
    "minimum": Why.RANGE,
    "maximum": Why.RANGE,
    "exclusiveMinimum": Why.RANGE,
    "exclusiveMaximum": Why.RANGE,
    "minLength": Why.LENGTH,
    "maxLength": Why.LENGTH,
    "enum": Why.ENUMERATION,
    "const": Why.ENUMERATION,
    "pattern": Why.PATTERN,
    "format": Why.FORMAT,
    "minItems": Why.ITEMS,
    "maxItems": Why.ITEMS,
    "required": Why.REQUIRED,
}


class SetAside(NamedTuple):
    """One value that was set aside."""

    pointer: str
    why: Why
    value: Any
    """The value as it was sent; None if nobody may keep it."""


Path = tuple[str | int, ...]


class Divided(NamedTuple):
    """A sample without what its schema refuses."""

    kept: dict[str, Any]
    refused: list[SetAside]
    tried: int
    """Number of values that were refused on the way, a measure of the time it took."""
    fault: str | None = None
    """Reason why the sample has to be rejected, if it has to be: the JSON pointer of a field, and
    words that quote no value."""


class _Nothing(enum.Enum):
    """Answer instead of a value: there is none that may be stored."""

    NOTHING = enum.auto()


_NOTHING = _Nothing.NOTHING
_JSON_TYPES: dict[type, str] = {dict: "object", list: "array"}


class _TooManyError(Exception):
    """More values of one member were refused than are listed."""


class _Found:
    """Refused values of one sample."""

    def __init__(self, private: NeverStored) -> None:
        self.refused: list[SetAside] = []
        self.limit = 0
        """Number of them at which it is too many."""
        self.tried = 0
        """Number of values refused so far, with those of a member that is refused as a whole."""
        self._private = private

    def add(self, field: _Field, path: Path, why: Why, value: Any) -> _Nothing:
        """Note a refused value as far as it may be kept."""
        self.tried += 1
        if len(self.refused) >= self.limit:
            raise _TooManyError
        nested = type(value) in _JSON_TYPES
        if field.secret or (field.holds_secret and not nested):
            value = None
        elif nested:
            value = self._private.everywhere_without(value)
        self.refused.append(SetAside(pointer(path), why, value))
        return _NOTHING

    def back_to(self, number: int) -> None:
        """Forget all but the first `number`."""
        del self.refused[number:]


class _Field:
    """One field of a schema; its types and validators are built when they are first needed."""

    def __init__(self, schema: dict[str, Any], validator: Validator) -> None:
        self._schema, self._make_validator = schema, validator
        self.null = "null" in schema.get("type", ())
        """True if null may be stored, which means an absent value."""
        self.members = {
            name: _Field(field, validator) for name, field in schema.get("properties", {}).items()
        }
        self.required = frozenset(schema.get("required", ()))
        items = None if "prefixItems" in schema else schema.get("items")
        self._items = _Field(items, validator) if isinstance(items, dict) else None
        others = schema.get("additionalProperties")
        self._others = _Field(others, validator) if isinstance(others, dict) else None
        self._most_items = schema.get("maxItems", float("inf"))
        self._listed = {
            text.casefold(): text for text in schema.get("enum", ()) if isinstance(text, str)
        }
        self._sentinels = frozenset(schema.get("x-sentinels", ()))
        self.secret = bool(schema.get("x-hash") or schema.get("x-device"))
        """True if nobody may keep a value of it as it came."""
        self.holds_secret: bool = any(
            inner is not None and (inner.secret or inner.holds_secret)
            for inner in (*self.members.values(), self._items, self._others)
        )

    @cached_property
    def _type(self) -> Any:
        return _holder(type_of(self._schema, unknown=True))

    @cached_property
    def _types_of_items(self) -> Any:
        return _holder(list[type_of(self._schema["items"], unknown=True)])  # type: ignore[misc]  # made here

    @cached_property
    def validator(self) -> jsonschema_rs.Draft202012Validator:
        return self._make_validator(self._schema)

    @cached_property
    def _name_validator(self) -> jsonschema_rs.Draft202012Validator:
        return self._make_validator(self._schema.get("propertyNames", {}))

    @cached_property
    def _more(self) -> bool:
        """True if the schema demands more than its members and items do."""
        known = {"properties", "required", "items", "maxItems", "additionalProperties"}
        return not only(self._schema, known | {"propertyNames"})

    def check(self, value: Any, path: Path, found: _Found) -> Any:
        """Return what may be stored of a value: itself if nothing in it is refused."""
        if value is None and self.null:
            return None
        if _fits(value, self._type):
            return value
        if type(value) is dict and (self.members or self._others):
            return self._object(value, path, found)
        if type(value) is list and self._items is not None:
            return self._array(value, path, found)
        if type(value) in _JSON_TYPES and _JSON_TYPES[type(value)] not in json_types(self._schema):
            # The validator's error would hold a copy of everything in it.
            return found.add(self, path, Why.TYPE, value)
        if is_number(value) and value in self._sentinels:
            return found.add(self, path, Why.SENTINEL, value)
        if self.validator.is_valid(value):
            return value
        if type(value) is str and value.casefold() in self._listed:
            return self._listed[value.casefold()]
        return found.add(self, path, self._why(value), value)

    def _why(self, value: Any) -> Why:
        try:
            self.validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            return _WHYS.get(error.kind.name, Why.OTHER)
        return Why.OTHER

    def _object(self, value: dict[str, Any], path: Path, found: _Found) -> Any:
        """Check every member; what a schema does not name stays."""
        if not self.required <= value.keys():
            return found.add(self, path, Why.REQUIRED, value)
        kept, before = value, len(found.refused)
        for name, member in value.items():
            field = self.members.get(name, self._others)
            if field is None:
                continue
            if name in self.members or self._name_validator.is_valid(name):
                after = field.check(member, (*path, name), found)
            else:
                after = found.add(field, (*path, name), Why.PATTERN, member)
            if after is member:
                continue
            kept = dict(value) if kept is value else kept
            if after is not _NOTHING:
                kept[name] = after
            elif name in self.required:
                found.back_to(before)
                return found.add(self, path, Why.REQUIRED, value)
            elif field.null:
                kept[name] = None
            else:
                del kept[name]
        return self._whole(kept, value, path, found, before)

    def _array(self, value: list[Any], path: Path, found: _Found) -> Any:
        """Check every item; an item that cannot be null takes the array along."""
        assert self._items is not None
        if len(value) > self._most_items:
            return found.add(self, path, Why.ITEMS, value)
        kept, before = value, len(found.refused)
        for first in range(0, len(value), _AT_ONCE):
            some = value[first : first + _AT_ONCE]
            if _fits(some, self._types_of_items):
                continue
            for index, item in enumerate(some, first):
                after = self._items.check(item, (*path, index), found)
                if after is item:
                    continue
                if after is _NOTHING and not self._items.null:
                    why = found.refused[-1].why
                    found.back_to(before)
                    return found.add(self, path, why, value)
                kept = list(value) if kept is value else kept
                kept[index] = None if after is _NOTHING else after
        return self._whole(kept, value, path, found, before)

    def _whole(self, kept: Any, value: Any, path: Path, found: _Found, before: int) -> Any:
        """Return what is left of an array or object, if the schema allows that."""
        if self._more and not self.validator.is_valid(kept):
            found.back_to(before)
            return found.add(self, path, Why.OTHER, value)
        return kept


class Aside:
    """Divider of samples into what a stream's schema allows and what it refuses."""

    def __init__(self, schema: dict[str, Any], private: NeverStored, validator: Validator) -> None:
        self._sample = _Field(schema, validator)
        self._private = private

    def split(self, sample: dict[str, Any]) -> Divided:
        """Divide a sample into what may be stored, a copy if anything is refused, and the rest.

        The first may still break a rule about several fields at once.
        """
        found, kept = _Found(self._private), sample
        for name, member in sample.items():
            field = self._sample.members.get(name)
            if field is None:
                continue
            after = _checked(field, member, name, found)
            if after is member:
                continue
            if after is _NOTHING:
                if name in self._sample.required or not field.null:
                    return Divided(kept, [], found.tried, _fault(field, member, name))
                after = None
            kept = dict(sample) if kept is sample else kept
            kept[name] = after
        if found.refused and not any(
            _says_something(value) for name, value in kept.items() if name not in ENVELOPE
        ):
            first = found.refused[0]
            fault = f"{first.pointer} is refused ({first.why}), and nothing else is left"
            return Divided(kept, [], found.tried, fault)
        return Divided(kept, found.refused, found.tried)


def _checked(field: _Field, member: Any, name: str, found: _Found) -> Any:
    """Check one member of a sample; if too much of it is refused, all of it is."""
    before = len(found.refused)
    found.limit = before + _MOST
    try:
        return field.check(member, (name,), found)
    except _TooManyError:
        found.back_to(before)
        return found.add(field, (name,), Why.ITEMS, member)


def _fault(field: _Field, member: Any, name: str) -> str:
    try:
        field.validator.validate(member)
    except jsonschema_rs.ValidationError as error:
        return described(error, (name,))
    return f"{pointer((name,))} stands for no value"


def _says_something(value: Any) -> bool:
    """Return whether there is a value in it that is not null."""
    if type(value) is dict:
        return any(map(_says_something, value.values()))
    if type(value) is list:
        return any(map(_says_something, value))
    return value is not None


def _holder(type_: Any) -> Any:
    """Return a type for an object with one member `_VALUE` of a type.

    msgspec knows such a type at once; to look another type up takes it up to 10 µs (measured).
    """
    return struct([(_VALUE, type_, True)], unknown=False)


def _fits(value: Any, holder: Any) -> bool:
    try:
        convert({_VALUE: value}, holder)
    except ValueError:
        return False
    return True
