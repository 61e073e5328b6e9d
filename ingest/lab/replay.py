"""`replay`: publishes a recording, at its own pace or as fast as the broker acknowledges."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import gzip
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from ingest.check import Checker
from ingest.commands.message import Message
from ingest.commands.publisher import Publisher
from ingest.decode import too_deep
from ingest.envelope import instant
from ingest.errors import ConfigError
from ingest.model import Arrival, Delivery, NoConnection, Rejected

_GZIP = b"\x1f\x8b"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMS = '{"topic", "payload"}, {"topic", "payload_base64"}, or of mosquitto_sub -F %j'
_MOST_TOLD = 10
"""Number of kinds of refusals that the account lists."""


class Recorded(NamedTuple):
    """One line of a recording."""

    topic: str
    payload: Any
    """What JSON says, or bytes if it is no JSON."""
    encoding: str | None
    """MQTT 5 user property `content-encoding`."""
    content_type: str | None
    """MQTT 5 property Content Type."""


def recorded(file: Path) -> Iterator[Recorded]:
    """Yield the lines of a recording, plain or gzip; raise ConfigError for a bad one."""
    try:
        with file.open("rb") as probe:
            zipped = probe.read(2) == _GZIP
        with gzip.open(file) if zipped else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield _recorded(orjson.loads(line))
                except (ValueError, LookupError, TypeError, AttributeError):
                    raise ConfigError([f"{file}, line {number}: not {_FORMS}"]) from None
    except (OSError, EOFError, zlib.error) as exc:
        raise ConfigError([f"{file} cannot be read: {exc}"]) from exc


def _recorded(line: dict[str, Any]) -> Recorded:
    """Return what a line says; raises an error if it has none of the forms."""
    topic = line["topic"]
    if not isinstance(topic, str):
        raise TypeError
    if "payload_base64" in line:
        try:
            payload: Any = base64.b64decode(line["payload_base64"], validate=True)
        except binascii.Error as exc:
            raise ValueError from exc
    elif "tst" in line and isinstance(line["payload"], str):
        # mosquitto_sub -F %j writes the payload as a text, %J as JSON; see mosquitto_sub(1).
        payload = line["payload"].encode()
        with contextlib.suppress(orjson.JSONDecodeError):
            payload = orjson.loads(payload)
    else:
        payload = line["payload"]
    properties = line.get("properties") or {}
    encoding = (properties.get("user-properties") or {}).get("content-encoding")
    if not isinstance(payload, bytes) and too_deep(payload):
        raise ValueError
    content_type = properties.get("content-type")
    if not (isinstance(encoding, str | None) and isinstance(content_type, str | None)):
        raise TypeError
    return Recorded(topic, payload, encoding, content_type)


def instants(payload: Any) -> list[datetime]:
    """Return the `ts` of each sample of a payload; leave out a `ts` that cannot be read."""
    samples = payload if isinstance(payload, list) else [payload]
    found = (_instant(sample.get("ts")) for sample in samples if isinstance(sample, dict))
    return [at for at in found if at is not None]


def shifted(payload: Any, by: timedelta) -> Any:
    """Return `payload` with every date-time in it moved by the same span.

    A date-time is an integral `ts` of a sample, or any text of RFC 3339. Texts stay texts, integers
    stay integers.
    """
    if isinstance(payload, list):
        return [shifted(sample, by) for sample in payload]
    if not isinstance(payload, dict):
        return payload
    moved = {name: _moved(value, by) for name, value in payload.items()}
    ts = payload.get("ts")
    if not isinstance(ts, str) and (at := _instant(ts)) is not None:
        with contextlib.suppress(OverflowError):  # beyond the calendar it stays as it is
            moved["ts"] = (at + by - _EPOCH) // timedelta(milliseconds=1)
    return moved


def _moved(value: Any, by: timedelta) -> Any:
    if isinstance(value, dict):
        return {name: _moved(inner, by) for name, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, by) for inner in value]
    if isinstance(value, str) and (at := _instant(value)) is not None:
        with contextlib.suppress(OverflowError):  # as 9999-12-31, which stands for no end
            return (at + by).isoformat().replace("+00:00", "Z")
    return value


def resent(payload: Any) -> Any:
    """Return `payload` with each sample in it marked as sent later than collected."""
    if isinstance(payload, list):
        return [resent(sample) for sample in payload]
    return payload | {"resend": True} if isinstance(payload, dict) else payload


def _instant(ts: Any) -> datetime | None:
    found = instant(ts)
    return found if isinstance(found, datetime) else None


class Replay:
    """One run through a recording."""

    def __init__(
        self, file: Path, speed: float, checker: Checker, *, shift: bool, resend: bool = False
    ) -> None:
        """Use the checker to tell which samples a worker will refuse."""
        self._file = file
        self._speed = speed
        self._checker = checker
        self._shift = shift
        self._resend = resend
        self._by = timedelta()
        self._stop = asyncio.Event()
        self.total = 0
        """Number of lines of the recording; 0 before `measure`."""
        self.messages = 0
        self.acknowledged = 0
        self.seconds = 0.0
        self.refused: Counter[str] = Counter()
        """Number of refused samples by stream, reason and detail, as the schemas here see them."""
        self.refused_fields = 0
        """Number of values that cost their field."""

    def stop(self) -> None:
        """Publish nothing new."""
        self._stop.set()

    async def run(self, publisher: Publisher, tick: Callable[[], None] = lambda: None) -> None:
        """Publish the recording, after `measure`; call `tick` after each acknowledgement."""
        started_s = time.monotonic()

        def done(_: Message) -> None:
            self.acknowledged += 1
            tick()

        await publisher.publish_all(self._paced(self._by), done)
        self.seconds = time.monotonic() - started_s

    def measure(self) -> None:
        """Read the recording: count its lines, and find the shift that makes the last `ts` now."""
        last: datetime | None = None
        for entry in recorded(self._file):
            self.total += 1
            for at in instants(entry.payload):
                last = at if last is None or at > last else last
        if self._shift and last is not None:
            self._by = datetime.now(UTC) - last

    async def _paced(self, by: timedelta) -> AsyncIterator[Message]:
        started_s, first = time.monotonic(), None
        for entry in recorded(self._file):
            payload = entry.payload
            found = instants(payload)
            if self._speed and found:
                first = first or found[0]
                due_s = started_s + (found[0] - first).total_seconds() / self._speed
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_s - time.monotonic()):
                        await self._stop.wait()
            if self._stop.is_set():
                return
            message = self._message(entry, by)
            self._judge(message)
            self.messages += 1
            yield message

    def _message(self, entry: Recorded, by: timedelta) -> Message:
        """Return the message of a line; bytes are published as they are."""
        payload = entry.payload
        if isinstance(payload, bytes):
            return Message(
                entry.topic, payload, 1, encoding=entry.encoding, content_type=entry.content_type
            )
        payload = shifted(payload, by) if by else payload
        payload = resent(payload) if self._resend else payload
        samples = len(payload) if isinstance(payload, list) else 1
        return Message(entry.topic, orjson.dumps(payload), samples, content_type=entry.content_type)

    def _judge(self, message: Message) -> None:
        arrival = Arrival(datetime.now(UTC), time.monotonic())
        checked = self._checker.check(
            Delivery(
                message.topic, message.payload, message.encoding, message.content_type,
                None, arrival, NoConnection(),
            )
        )  # fmt: skip
        for outcome in checked.outcomes:
            if isinstance(outcome, Rejected):
                self.refused[f"{outcome.label} {outcome.reason}: {outcome.detail}"] += 1
            else:
                self.refused_fields += len(outcome.refused_fields)

    def account(self) -> dict[str, Any]:
        """Return the keys of `replay --json`."""
        return {
            "messages": self.messages,
            "acknowledged": self.acknowledged,
            "seconds": round(self.seconds, 3),
            "refused": self.refused.total(),
            "refused_fields": self.refused_fields,
        } | ({"why": dict(self.refused.most_common(_MOST_TOLD))} if self.refused else {})
