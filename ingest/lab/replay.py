"""`replay`: publishes a recording, at its own pace or as fast as the broker acknowledges."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from ingest.commands.message import Message
from ingest.commands.publisher import Publisher
from ingest.errors import ConfigError
from ingest.schema import rfc3339

_GZIP = b"\x1f\x8b"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def recorded(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a recording, plain or gzip; raise ConfigError for a bad line."""
    try:
        with file.open("rb") as probe:
            zipped = probe.read(2) == _GZIP
        with gzip.open(file) if zipped else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    entry = orjson.loads(line)
                    topic, _ = entry["topic"], entry["payload"]
                    assert isinstance(topic, str)
                except (orjson.JSONDecodeError, KeyError, TypeError, AssertionError):
                    raise ConfigError(
                        [f'{file}, line {number}: not {{"topic": …, "payload": …}}']
                    ) from None
                yield entry
    except (OSError, EOFError, zlib.error) as exc:
        raise ConfigError([f"{file} cannot be read: {exc}"]) from exc


def instants(payload: Any) -> list[datetime]:
    """Return the `ts` of each sample of a payload; leave out a `ts` that cannot be read."""
    samples = payload if isinstance(payload, list) else [payload]
    found = (_instant(sample.get("ts")) for sample in samples if isinstance(sample, dict))
    return [instant for instant in found if instant is not None]


def shifted(payload: Any, by: timedelta) -> Any:
    """Return `payload` with every readable `ts` moved; text stays text, integers stay integers."""
    if isinstance(payload, list):
        return [shifted(sample, by) for sample in payload]
    if not isinstance(payload, dict) or (ts := _instant(payload.get("ts"))) is None:
        return payload
    moved = ts + by
    if isinstance(payload["ts"], int):
        return payload | {"ts": (moved - _EPOCH) // timedelta(milliseconds=1)}
    return payload | {"ts": moved.isoformat().replace("+00:00", "Z")}


def _instant(ts: Any) -> datetime | None:
    try:
        if isinstance(ts, str):
            return rfc3339(ts)
        if type(ts) is int:
            return _EPOCH + timedelta(milliseconds=ts)
    except (ValueError, OverflowError):
        return None
    return None


class Replay:
    """One run through a recording."""

    def __init__(self, file: Path, speed: float, *, shift: bool) -> None:
        self._file = file
        self._speed = speed
        self._shift = shift
        self._by = timedelta()
        self._stop = asyncio.Event()
        self.total = 0
        """Number of lines of the recording; 0 before `measure`."""
        self.messages = 0
        self.acknowledged = 0
        self.seconds = 0.0

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
            for instant in instants(entry["payload"]):
                last = instant if last is None or instant > last else last
        if self._shift and last is not None:
            self._by = datetime.now(UTC) - last

    async def _paced(self, by: timedelta) -> AsyncIterator[Message]:
        started_s, first = time.monotonic(), None
        for entry in recorded(self._file):
            payload = entry["payload"]
            found = instants(payload)
            if self._speed and found:
                first = first or found[0]
                due_s = started_s + (found[0] - first).total_seconds() / self._speed
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_s - time.monotonic()):
                        await self._stop.wait()
            if self._stop.is_set():
                return
            text = orjson.dumps(shifted(payload, by) if by else payload)
            self.messages += 1
            yield Message(entry["topic"], text, len(payload) if isinstance(payload, list) else 1)

    def account(self) -> dict[str, Any]:
        """Return the keys of `replay --json`."""
        return {
            "messages": self.messages,
            "acknowledged": self.acknowledged,
            "seconds": round(self.seconds, 3),
        }
