"""Plausibility of values that the schema allows: noted in `quality` and counted, never rejected.

The rules are data beside the schemas (`plausibility.json`); this module has only the few kinds of
tests that rules can name. A rule looks at one field of a sample that the validator has accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from ingest.errors import SchemaError
from ingest.schema.siblings import Siblings, find, is_number, leaves
from ingest.schema.vin import VIN_CHARACTERS, check_digit_agrees

DEVICE = "device"
"""First step of the rule field `/device`: the device's name, which no sample holds."""
EVERY_STREAM = "*"
_MOST_FINDINGS = 250
"""Number of findings noted per rule and sample, at most. A vehicle has some hundred cells."""
_NEVER = timedelta(days=1_000_000)
Finding = tuple[str, str]
"""(JSON pointer, flag)."""


class Around(NamedTuple):
    """Facts that a rule may use besides the sample."""

    stream: str
    ts: datetime
    siblings: Siblings


Test = Callable[[Any, dict[str, Any], Around], Iterable[Finding]]
"""(value of the field's first step, sample, around) → findings."""
Wrong = Callable[[Any], bool]
"""Function that returns whether one value is implausible."""
Evidence = Callable[[dict[str, Any]], bool]
"""Function that returns whether another field of the sample makes a value implausible."""


class Rules:
    """The rules of one stream.

    Every sample is checked here, so rules that need one look at one value are kept apart from the
    other rules, which concern few samples: a `nev` sample takes 0.9 µs instead of 4 (measured).
    """

    def __init__(self, stream: str, rules: Iterable[Mapping[str, Any]]) -> None:
        own = [r for r in rules if stream in r["streams"] or EVERY_STREAM in r["streams"]]
        self._stream = stream
        self.rules: Sequence[Mapping[str, Any]] = own
        """Rules as written in the file, for documentation."""
        self.flags = sorted({rule["flag"] for rule in own})
        self._clock = [_clock(rule) for rule in own if rule["test"] == "clock"]
        self._near = min((_near(r) for r in own if r["test"] == "clock"), default=_NEVER)
        self._behind = -self._near
        self._device: list[tuple[str, Wrong]] = []
        self._plain: list[tuple[str, Wrong, Evidence | None, Finding]] = []
        deep: dict[str, list[Test]] = {}
        among: dict[str, list[Test]] = {}
        for rule in own:
            first, *rest = _steps(rule)
            if rule["test"] == "clock":
                continue
            if rule["test"] in _WRONG and not rest:
                wrong = _WRONG[rule["test"]](rule)
                if first == DEVICE:
                    self._device.append((rule["flag"], wrong))
                else:
                    found = (f"/{first}", rule["flag"])
                    self._plain.append((first, wrong, _evidence(rule), found))
            else:
                group = among if rule["test"] == "decreasing" else deep
                group.setdefault(first, []).append(_test(rule))
        self._alone = list(deep.items())
        self._with_siblings = [
            (name, [*deep.get(name, ()), *among.get(name, ())]) for name in deep | among
        ]

    def findings(
        self,
        sample: dict[str, Any],
        device: str,
        received_at: datetime,
        ts: datetime,
        siblings: Siblings | None,
    ) -> dict[str, str]:
        """Return flags by JSON pointer; the first rule that applies to a pointer wins."""
        found: list[Finding] = []
        if len(device) == VIN_CHARACTERS:
            found += [(f"/{DEVICE}", flag) for flag, wrong in self._device if wrong(device)]
        for name, wrong, evidence, finding in self._plain:
            value = sample.get(name)
            if value is not None and wrong(value) and (evidence is None or evidence(sample)):
                found.append(finding)
        off = received_at - ts
        if not self._behind <= off <= self._near:
            found += [("/ts", flag) for flag, at_fault in self._clock if at_fault(off, sample)]
        around: Around | None = None
        for name, tests in self._alone if siblings is None else self._with_siblings:
            value = sample.get(name)
            if value is not None:
                around = around or Around(self._stream, ts, siblings or _ALONE)
                for test in tests:
                    found += test(value, sample, around)
        return dict(reversed(found)) if found else _NOTHING


_ALONE = Siblings()
_NOTHING: dict[str, str] = {}


def check_rules(document: Any, where: str) -> list[Mapping[str, Any]]:
    """Return the rules of a file; raises SchemaError if one is incomplete or has no known test."""
    rules = document.get("rules") if isinstance(document, dict) else None
    if not isinstance(rules, list):
        raise SchemaError(f'{where}: no list "rules"')
    for number, rule in enumerate(rules):
        try:
            _clock(rule) if rule["test"] == "clock" else _test(rule)
            complete = isinstance(rule["flag"], str) and isinstance(rule["streams"], list)
        except (KeyError, TypeError):
            complete = False
        if not complete:
            raise SchemaError(f"{where}: rule {number} names no known test or lacks what it needs")
    return rules


def _steps(rule: Mapping[str, Any], key: str = "field") -> list[str]:
    return str(rule[key]).split("/")[1:]


def _test(rule: Mapping[str, Any]) -> Test:
    """Return the test of a rule, of any kind except `clock`."""
    if rule["test"] in _WRONG:
        _evidence(rule)
        return _each(rule, _WRONG[rule["test"]](rule))
    return _TESTS[rule["test"]](rule)


def _each(rule: Mapping[str, Any], wrong: Wrong) -> Test:
    """Return a test of every single value that a rule's field leads to.

    `*` also leads to members that no schema knows; their values may be of any type.
    """
    flag, (first, *rest) = rule["flag"], _steps(rule)
    of_numbers = rule["test"] in _OF_NUMBERS
    any_wrong = _any_outside(rule) if rule["test"] == "outside" else None

    def test(value: Any, _sample: dict[str, Any], _around: Around) -> Iterable[Finding]:
        if any_wrong is not None and not any(map(any_wrong, leaves(value, rest))):
            return ()
        found = (
            (at, flag)
            for at, found in find(value, rest, f"/{first}")
            if (not of_numbers or is_number(found)) and wrong(found)
        )
        return list(islice(found, _MOST_FINDINGS))

    return test


def _any_outside(rule: Mapping[str, Any]) -> Callable[[Collection[Any]], bool]:
    """Return a fast check of whether any of many values is outside; usually all are inside."""
    low, high = rule["minimum"], rule["maximum"]

    def any_outside(together: Collection[Any]) -> bool:
        numbers = [value for value in together if type(value) is float or type(value) is int]
        return bool(numbers) and (min(numbers) < low or max(numbers) > high)

    return any_outside


def _evidence(rule: Mapping[str, Any]) -> Evidence | None:
    """Return the test of `if_any` (another field is above a number, or is a word), if it is there.

    Only rules of one field without steps below it may have it.
    """
    if "if_any" not in rule:
        return None
    tests = []
    for one in rule["if_any"]:
        (name,) = _steps(one)
        tests.append((name, one.get("above"), one["is"] if "above" not in one else None))

    def evidence(sample: dict[str, Any]) -> bool:
        for name, above, word in tests:
            value = sample.get(name)
            if above is None:
                if value == word:
                    return True
            elif is_number(value) and value > above:
                return True
        return False

    return evidence


def _inside(rule: Mapping[str, Any]) -> Wrong:
    above, most = rule["above"], rule["most"]
    return lambda value: above < value <= most


def _outside(rule: Mapping[str, Any]) -> Wrong:
    low, high = rule["minimum"], rule["maximum"]
    return lambda value: not low <= value <= high


def _equals(rule: Mapping[str, Any]) -> Wrong:
    wanted = rule["value"]
    return lambda value: bool(value == wanted)


def _vin(_rule: Mapping[str, Any]) -> Wrong:
    return lambda value: not check_digit_agrees(value)


_WRONG: dict[str, Callable[[Mapping[str, Any]], Wrong]] = {
    "equals": _equals,
    "inside": _inside,
    "outside": _outside,
    "vin": _vin,
}


_OF_NUMBERS = {"inside", "outside"}


def _near(rule: Mapping[str, Any]) -> timedelta:
    """Return how far a clock may be off before a rule looks at it."""
    apart = rule.get("apart_s")
    seconds = rule["beyond_s"] if apart is None else apart - rule["within_s"] - 1
    return timedelta(seconds=seconds)


def _clock(rule: Mapping[str, Any]) -> tuple[str, Callable[[timedelta, dict[str, Any]], bool]]:
    near, apart, within = _near(rule), rule.get("apart_s"), rule.get("within_s", 0)

    def at_fault(off: timedelta, sample: dict[str, Any]) -> bool:
        if -near <= off <= near or sample.get("resend") is True:
            return False
        return apart is None or bool(abs(abs(off.total_seconds()) - apart) <= within)

    return rule["flag"], at_fault


def _decreasing(rule: Mapping[str, Any]) -> Test:
    flag, (name,) = rule["flag"], _steps(rule)

    def test(value: Any, _sample: dict[str, Any], around: Around) -> Iterable[Finding]:
        fallen = around.siblings.fallen(around.stream, name)
        return ((f"/{name}", flag),) if fallen and value < fallen.get(around.ts, value) else ()

    return test


def _extreme(rule: Mapping[str, Any]) -> Test:
    flag, (first, *rest), within = rule["flag"], _steps(rule), rule["within"]
    highest = {"highest": True, "lowest": False}[rule["is"]]
    of, path, total = rule["in"], rule["of"], rule.get("total")

    def test(value: Any, sample: dict[str, Any], around: Around) -> Iterable[Finding]:
        found = around.siblings.array(of, around.ts, path, sample)
        if not found.number:
            return ()
        bound = found.highest if highest else found.lowest
        cells = around.siblings.array(of, around.ts, total, sample) if total else None
        all_there = cells is not None and found.number == cells.total
        wrong = []
        for at, reported in find(value, rest, f"/{first}"):
            missed = bound - reported if highest else reported - bound
            if missed > within or (all_there and -missed > within):
                wrong.append((at, flag))
        return wrong

    return test


def _absent(rule: Mapping[str, Any]) -> Test:
    """Return a test for numbers missing at `of` or, with `above`, higher than all numbers there."""
    flag, (first, *rest), of, path = rule["flag"], _steps(rule), rule["in"], rule["of"]
    above = bool(rule.get("above"))

    def test(value: Any, sample: dict[str, Any], around: Around) -> Iterable[Finding]:
        there = around.siblings.array(of, around.ts, path, sample)
        if not there.number:
            return ()
        return [
            (at, flag)
            for at, named in find(value, rest, f"/{first}")
            if is_number(named) and (named > there.highest if above else named not in there.values)
        ]

    return test


def _lone_first(rule: Mapping[str, Any]) -> Test:
    """Return a test for lists that begin with a given value and hold only nulls after it."""
    flag, (first, *rest), wanted = rule["flag"], _steps(rule), rule["value"]

    def test(value: Any, _sample: dict[str, Any], _around: Around) -> Iterable[Finding]:
        return [
            (f"{at}/0", flag)
            for at, found in find(value, rest, f"/{first}")
            if len(found) > 1 and found[0] == wanted and found.count(None) == len(found) - 1
        ]

    return test


def _zero_among(rule: Mapping[str, Any]) -> Test:
    """Return a test for zeros in a list of numbers of which another is above a bound."""
    flag, (first, *rest), above = rule["flag"], _steps(rule), rule["above"]

    def test(value: Any, _sample: dict[str, Any], _around: Around) -> Iterable[Finding]:
        wrong: list[Finding] = []
        for at, found in find(value, rest, f"/{first}"):
            # Looking for a zero is fast, and nearly no list has one.
            if 0 in found and any(is_number(one) and one > above for one in found):
                zeros = (number for number, one in enumerate(found) if one == 0 and is_number(one))
                wrong += [(f"{at}/{number}", flag) for number in islice(zeros, _MOST_FINDINGS)]
        return wrong

    return test


_TESTS: dict[str, Callable[[Mapping[str, Any]], Test]] = {
    "absent": _absent,
    "decreasing": _decreasing,
    "extreme": _extreme,
    "lone_first": _lone_first,
    "zero_among": _zero_among,
}
