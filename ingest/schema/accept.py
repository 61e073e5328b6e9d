"""Python tests that accept a value only if its schema surely does.

They know the keywords that vehicles' fields use, and for anything else they give no opinion: the
JSON Schema validator decides then, and it alone explains a refusal. So they may be too strict,
never too lenient; a property test holds them to it.
"""

from __future__ import annotations

from typing import Any

from ingest.schema.columns import json_types

_NO_OPINION = "False"
_ANNOTATIONS = {"title", "description", "$schema", "$id", "$comment"}
_KEYWORDS = {
    "number": {"minimum", "maximum"},
    "integer": {"minimum", "maximum"},
    "boolean": set(),
    "string": {"enum", "maxLength"},
    "array": {"items", "maxItems"},
    "object": {"properties", "required"},
}


class Tests:
    """Writes the test of each field; arrays get functions of their own, collected in `source`."""

    def __init__(self) -> None:
        self.source: list[str] = []

    def of(self, field: dict[str, Any], variable: str) -> str:
        """An expression over `variable` that is true only for values `field` allows."""
        test = self._present(field, variable)
        if "null" in field.get("type", ()) and None in field.get("enum", (None,)):
            return f"{variable} is None or {test}"
        return test

    def _present(self, field: dict[str, Any], variable: str) -> str:
        kinds = json_types(field)
        kind = next(iter(kinds)) if len(kinds) == 1 else ""
        if kind not in _KEYWORDS or not only(field, _KEYWORDS[kind]):
            return _NO_OPINION
        match kind:
            case "number":
                types = f"({variable}.__class__ is float or {variable}.__class__ is int)"
                return types + _within(field, variable)
            case "integer":
                return f"{variable}.__class__ is int" + _within(field, variable)
            case "boolean":
                return f"{variable}.__class__ is bool"
            case "string":
                return f"{variable}.__class__ is str" + _text(field, variable)
            case "array":
                return self._array(field, variable)
        return self._object(field, variable)

    def _array(self, field: dict[str, Any], variable: str) -> str:
        length = f" and len({variable}) <= {field['maxItems']}" if "maxItems" in field else ""
        items = self._function([
            "    for item in value:",
            f"        if not ({self.of(field.get('items', {}), 'item')}):",
            "            return False",
        ])  # fmt: skip
        return f"{variable}.__class__ is list{length} and {items}({variable})"

    def _object(self, field: dict[str, Any], variable: str) -> str:
        lines = ["    get = value.get"]
        for name in field.get("required", ()):
            lines += [f"    if {name!r} not in value:", "        return False"]
        for name, member in field.get("properties", {}).items():
            lines += [
                f"    v = get({name!r})",
                # `get` cannot tell absent from null; a member that forbids null is left open.
                f"    if v is not None and not ({self.of(member, 'v')}):",
                "        return False",
            ]
            if "null" not in member.get("type", ()):
                lines += [f"    if v is None and {name!r} in value:", "        return False"]
        return f"{variable}.__class__ is dict and {self._function(lines)}({variable})"

    def _function(self, lines: list[str]) -> str:
        name = f"test_{len(self.source)}"
        self.source.append("\n".join([f"def {name}(value):", *lines, "    return True"]))
        return name


def only(field: dict[str, Any], known: set[str]) -> bool:
    """Whether a schema has no keyword that constrains besides `type` and the known ones."""
    return all(
        keyword in known or keyword in _ANNOTATIONS or keyword == "type" or keyword[:2] == "x-"
        for keyword in field
    )


def _within(field: dict[str, Any], variable: str) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f" and {low!r} <= {variable} <= {high!r}"
    if low is not None:
        return f" and {low!r} <= {variable}"
    return f" and {variable} <= {high!r}" if high is not None else ""


def _text(field: dict[str, Any], variable: str) -> str:
    if "enum" in field:
        allowed = sorted(value for value in field["enum"] if isinstance(value, str))
        return f" and {variable} in {{{', '.join(map(repr, allowed))}}}"
    return f" and len({variable}) <= {field['maxLength']}" if "maxLength" in field else ""
