"""Record of what was published, what of it must be stored (a debt), and who acknowledged it. Pure.

A message's content follows from its number and the seed. So the same seed repeats a run, the
record of an hour needs only some tens of bytes per message, and everything found in the tables
can be compared with what was sent.
"""

from __future__ import annotations

import gzip
from array import array
from binascii import crc32
from datetime import UTC, date, datetime, timedelta
from math import inf
from typing import Any, NamedTuple

import orjson

STREAMS = ("nev", "battery")
_BATTERY_EVERY, _ARRAY_EVERY, _PACKED_EVERY = 4, 10, 7
_LATE_EVERY, _BAD_EVERY = 199, 53
"""Frequencies: one message in so many is for `battery`, is an array, is compressed.

Likewise, one sample in so many is late, is bad.
"""
_SAMPLES = 5
"""Number of samples in an array."""
_PERIOD = timedelta(milliseconds=1)
"""Time from the `ts` of one sample to that of the next, in one device and stream.

It is so short that `ts` never overtakes the clock.
"""
REFUSED = "sent_at"
"""Field whose value, if there is one, the schema refuses and the service sets aside."""
VISITOR = "visitor-"
"""Beginning of the names of visiting devices."""


class Issued(NamedTuple):
    """One message to be published."""

    number: int
    device: str
    stream: str
    payload: bytes
    encoding: str | None


class Ledger:
    """Messages by number: issues them, and records who acknowledged them and when.

    A visitor is a message that a fault sends. Its number is negative, and it does not count as
    published; but its device must end with a row or a dead letter.
    """

    def __init__(self, seed: int, devices: int, started_at: datetime) -> None:
        self._seed = seed
        self._devices = [f"verify-{number:04}" for number in range(devices)]
        self.started_at = started_at.replace(microsecond=0)
        """`ts` of the first samples, except late ones."""
        self._first_seq = array("Q")
        self._published = bytearray()
        self._settled_s = array("d")
        self._forgettable = bytearray()
        self.numbers: dict[tuple[str, str], array[int]] = {
            (device, stream): array("Q") for device in self._devices for stream in STREAMS
        }
        """Numbers of the messages, by device, stream and the `seq` of the sample they hold."""
        self.published = 0
        """Number of messages that the broker acknowledged to the publisher."""
        self.settled = 0
        """Number of messages that a worker was seen to acknowledge, each counted once."""
        self.repeated = 0
        """Number of acknowledgements by workers, not counting the first one of each message."""
        self.visitors = 0
        """Number of visitors so far."""
        self.visiting: set[str] = set()
        """Names of the visitors' devices; each must end with a row or a dead letter."""
        self.visitors_settled: set[int] = set()
        """Numbers of the visitors that a worker was seen to acknowledge."""
        self._closed_days: set[tuple[str, date]] = set()

    @property
    def issued(self) -> int:
        """Number of messages so far, which is also the number of the next message."""
        return len(self._published)

    def issue(self) -> Issued:
        """Return the next message."""
        number = self.issued
        device, stream, count, _ = self._form(number)
        numbers = self.numbers[device, stream]
        first = len(numbers)
        numbers.extend([number] * count)
        self._first_seq.append(first)
        self._published.append(0)
        self._forgettable.append(0)
        self._settled_s.append(inf)
        return self.message(number)

    def message(self, number: int) -> Issued:
        """Return an issued message again, with the same content."""
        device, stream, count, packed = self._form(number)
        first = self._first_seq[number]
        samples = [self.sample(device, stream, first + n) for n in range(count)]
        payload = orjson.dumps(samples if count > 1 else samples[0])
        if packed:
            return Issued(number, device, stream, gzip.compress(payload, 1, mtime=0), "gzip")
        return Issued(number, device, stream, payload, None)

    def acknowledged(self, number: int) -> None:
        """Note that the broker acknowledged it to the publisher: from now on it is a debt."""
        self.published += not self._published[number]
        self._published[number] = 1

    def settle(self, number: int, at_s: float) -> None:
        """Note that a worker acknowledged it at this Unix time; only the first time counts."""
        if number < 0:
            self.visitors_settled.add(number)
        elif number < self.issued and self._settled_s[number] == inf:
            self._settled_s[number] = at_s
            self.settled += 1
        else:
            self.repeated += 1

    def visitor(self, device: str) -> int:
        """Return the number of a new visitor, whose device must end with a row or a dead letter."""
        self.visitors += 1
        self.visiting.add(device)
        return -self.visitors

    def close_day(self, stream: str, day: date) -> None:
        """Allow, from now on, that samples of this day end as dead letters instead of rows."""
        self._closed_days.add((stream, day))

    def may_be_letter(self, stream: str, sample: dict[str, Any]) -> bool:
        """Return whether a good sample may end as a dead letter, because its day was closed."""
        return (stream, datetime.fromisoformat(sample["ts"]).date()) in self._closed_days

    def is_published(self, number: int) -> bool:
        """Return whether the broker acknowledged it to the publisher."""
        return bool(self._published[number])

    def settled_s(self, number: int) -> float:
        """Return the Unix time when a worker first acknowledged it; infinity if no worker has."""
        return self._settled_s[number]

    def is_owed(self, number: int) -> bool:
        """Return whether it must be stored: published, not lost by the broker before our PUBACK."""
        lost = self._forgettable[number] and self._settled_s[number] == inf
        return self.is_published(number) and not lost

    def forget(self) -> int:
        """Note that the broker loses its store now: what we have not acknowledged may be missing.

        Return the number of these messages.
        """
        count = 0
        for number in range(self.issued):
            if self._settled_s[number] == inf and self._published[number]:
                self._forgettable[number] = 1
                count += 1
        return count

    def sample(self, device: str, stream: str, seq: int) -> dict[str, Any]:
        """Return the sample with this `seq`; some are days late, some have a bad value or time."""
        chance = crc32(f"{self._seed}/{device}/{stream}/{seq}".encode())
        ts = self.started_at + seq * _PERIOD
        if chance % _LATE_EVERY == 0:
            ts -= timedelta(days=1 + chance % 20)
        sample: dict[str, Any] = {"ts": _text(ts), "seq": seq, "nonce": f"{chance:08x}"}
        if stream == "nev":
            sample |= {
                "speed_kmh": chance % 2_000 / 10,
                "soc_pct": chance % 101,
                "odometer_km": chance % 1_000_000 / 10,
                "gear": "PRND"[chance % 4],
                "location": {"lon": 121 + chance % 997 / 1_000, "lat": 31 + chance % 991 / 1_000},
            }
        else:
            cells = [3 + chance % (n + 7) / 10 for n in range(12)]
            sample["packs"] = [{"no": 1, "voltage_v": chance % 800, "cell_v": cells}]
        if chance % _BAD_EVERY == 0:
            # A bad time costs the sample, a bad optional value only its field.
            sample["ts" if chance // _BAD_EVERY % 2 else REFUSED] = "when it pleases"
        return sample

    def is_bad(self, sample: dict[str, Any]) -> bool:
        """Return whether a sample must end as a dead letter."""
        return not sample["ts"][:1].isdigit()

    def _form(self, number: int) -> tuple[str, str, int, bool]:
        """Return (device, stream, number of samples, whether packed) of a message."""
        chance = crc32(f"{self._seed}/{number}".encode())
        device = self._devices[number % len(self._devices)]
        stream = STREAMS[chance % _BATTERY_EVERY == 0]
        count = 1 if (chance >> 8) % _ARRAY_EVERY else _SAMPLES
        return device, stream, count, (chance >> 16) % _PACKED_EVERY == 0


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds")
