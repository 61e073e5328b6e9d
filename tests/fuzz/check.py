"""Coverage-guided fuzzing of decode, check and GB/T 32960: `make fuzz`, or this file by itself.

The first byte of an input chooses topic, content-encoding and content type, the rest is the
payload. Whatever it is: no exception, every sample one outcome, every row one that COPY can take
and every dead letter one that PostgreSQL can store. A slow input is found by libFuzzer's own
`-timeout`. Options are libFuzzer's: `python tests/fuzz/check.py -max_total_time=60 CORPUS`.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["ingest"]):
    from ingest import gbt32960
    from ingest.batch import Batch, DeadLetter
    from ingest.budget import Budget
    from ingest.check import Checker
    from ingest.config import Settings
    from ingest.lab.fleet import Fleet
    from ingest.model import GBT32960, Arrival, Checked, Delivery, Reason, Rejected, Row
    from ingest.schema import default_directory, load_catalogue
from tests.fuzz.corpus import sow

CATALOGUE = load_catalogue()
STREAMS = [*CATALOGUE, GBT32960]
ENCODINGS = [None, "gzip", "deflate", "zstd"]
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
CHECKER = Checker.of(CATALOGUE, Settings())
_WHOLE_NUMBERS = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}


class _Nobody:
    def acknowledge(self, packet_ids: Any) -> None:
        pass


def delivery(data: bytes) -> Delivery:
    """What an input stands for: 13 topics, four encodings, and every fourth one a frame."""
    choice = data[0]
    stream = STREAMS[choice % len(STREAMS)]
    encoding = ENCODINGS[choice // len(STREAMS) % len(ENCODINGS)]
    content_type = gbt32960.CONTENT_TYPE if choice // 64 == 3 else None
    arrival = Arrival(NOW, time.monotonic())
    return Delivery(
        f"iov/v1/FUZZ/{stream}", data[1:], encoding, content_type, 1, arrival, _Nobody()
    )


def one_input(data: bytes) -> None:
    """Check one input; an assertion that fails is a finding."""
    if not data:
        return
    message = delivery(data)
    checked = CHECKER.check(message)
    assert checked.outcomes, "a message without an outcome"
    counted = sum((checked.samples or {checked.stream: len(checked.outcomes)}).values())
    assert counted == len(checked.outcomes), "the account does not close"
    _as_a_batch(message, checked)
    for position, outcome in enumerate(checked.outcomes):
        if isinstance(outcome, Row):
            _can_be_copied(outcome)
            CHECKER.samples_json(message, [outcome.position])
        else:
            assert isinstance(outcome, Rejected)
            assert outcome.reason in Reason, position
            assert outcome.reason is not Reason.INTERNAL_ERROR


def _as_a_batch(message: Delivery, checked: Checked) -> None:
    batch = Batch(0.0)
    batch.add(message, checked, Budget(1_000_000, 1 << 40), 0.0)
    for letter in batch.dead_letters:
        assert isinstance(letter, DeadLetter)
        for text in (letter.topic, letter.device, letter.stream, letter.reason, letter.detail):
            assert text is None or "\0" not in text
            (text or "").encode()


def _can_be_copied(row: Row) -> None:
    stream = CATALOGUE[row.stream]
    names = stream.layout.columns(row.present)
    values = dict(zip(names, row.record, strict=True))
    assert isinstance(row.ts, datetime)
    assert row.ts.tzinfo is not None
    assert values["ts"] is row.ts
    assert type(values["seq"]) is int
    assert -(2**32) <= values["seq"] < 2**32
    assert values["received_at"] == NOW
    assert values["resend"] is row.resend
    assert isinstance(row.resend, bool)
    for column in stream.columns:
        value = values.get(column.name)
        bound = _WHOLE_NUMBERS.get(column.sql_type)
        if bound is not None and value is not None:
            assert -bound <= value < bound, f"{column.name} is out of its type"
        if isinstance(value, str):
            assert "\0" not in value, f"{column.name} holds U+0000"
            value.encode()


def seeds() -> Iterator[bytes]:
    """Inputs to begin with: the schemas' examples, a simulated city, frames, packed ones."""
    directory = default_directory()
    for number, stream in enumerate(STREAMS):
        for example in sorted((directory / stream).glob("*/*.json")):
            text = example.read_bytes()
            yield bytes([number]) + text
            yield bytes([number]) + b"[" + text + b"," + text + b"]"
            yield bytes([number + len(STREAMS)]) + gzip.compress(text, mtime=0)
    fleet = Fleet(20, 1, STREAMS)
    for _ in range(400):
        message = fleet.message(NOW)
        yield bytes([STREAMS.index(message.topic.rsplit("/", 1)[1])]) + message.payload


def words() -> str:
    """What to put into inputs: the words of JSON, what numbers can be, the names of the schemas."""
    json = ["null", "true", "[]", "{}", "[[", ":{", "1.5", "-1", "1e9", "1e400", "NaN", "\\\\u0000"]
    json += [str(2**bits) for bits in (7, 15, 31, 32, 53, 63, 64)]
    names = {name for stream in CATALOGUE.values() for c in stream.columns for name in c.path}
    quoted = [f'\\"{name}\\"' for name in sorted(names)]
    return "".join(f'"{word}"\n' for word in [*json, *quoted])


def main() -> None:
    """Fuzz until libFuzzer's options say stop; the first directory named receives `seeds`."""
    directory = sow(seeds())
    if directory is not None:
        dictionary = directory.with_suffix(".dict")
        dictionary.write_text(words())
        sys.argv.append(f"-dict={dictionary}")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
