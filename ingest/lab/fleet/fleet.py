"""Devices of every kind that take turns; `message` returns the next message of any of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any

import orjson

from ingest import gbt32960
from ingest.commands.message import Message
from ingest.gbt32960.tables import Edition
from ingest.lab.fleet.car import Car
from ingest.lab.fleet.device import Device, text
from ingest.lab.fleet.kinds import Bus, DeliveryRobot, Robotaxi, Truck
from ingest.lab.fleet.mischief import Mischief, garbled, soiled, written
from ingest.lab.fleet.roadside import RoadsideUnit

FRAMES = "gbt32960"
STREAMS = (
    "nev", "battery", "alarm", "session", "ad-state", "ad-event", "health", "chassis", "cockpit",
    "v2x", "truck", "mobility", FRAMES,
)  # fmt: skip
"""Names of all twelve streams, and of the topic for binary frames."""
_LATE = timedelta(hours=6)
_GMT_8 = timezone(timedelta(hours=8))
_KINDS: tuple[type[Device], ...] = (
    Car, Robotaxi, Truck, RoadsideUnit, DeliveryRobot, Car, Car, Bus, Car, Car,
)  # fmt: skip
"""Kinds of the first ten devices, and of every ten after them."""

_BAD = (
    lambda sample: sample | {"ts": "2032-90-02T12:00:00Z"},
    lambda sample: {k: v for k, v in sample.items() if k != "ts"},
    lambda sample: sample | {"seq": -1},
    lambda sample: sample | {"ts": int(datetime.fromisoformat(sample["ts"]).timestamp())},
)


class Fleet:
    """A seeded fleet; the same seed and the same moments give the same messages."""

    def __init__(
        self,
        devices: int,
        seed: int,
        streams: Sequence[str] = STREAMS,
        samples_per_message: int = 1,
        mischief: Mischief | None = None,
    ) -> None:
        self._random = Random(seed)
        self._seed = seed
        self._count = devices
        self._streams = tuple(streams)
        self._samples = samples_per_message
        self._mischief = mischief or Mischief()
        self._devices: list[Device] = []
        self._turn = 0
        self._last: Message | None = None
        self._framed: dict[str, int] = {}
        self.said: Counter[str] = Counter()
        """Number of samples by the stream they were published on."""

    def devices(self, now: datetime) -> list[Device]:
        """Return the devices; the first call makes them, with `now` as their time."""
        if not self._devices:
            able = [kind for kind in _KINDS if any(s in kind.weights for s in self._streams)]
            self._devices = [
                able[number % len(able)](
                    f"sim-{self._seed}-{number:06d}", Random(self._seed * 1_000_003 + number), now
                )
                for number in range(self._count)
            ]
        return self._devices

    def message(self, now: datetime) -> Message:
        """Return the next message, with samples up to `now`."""
        chance, mischief = self._random.random(), self._mischief
        if self._last is not None and chance < mischief.duplicate:
            return self._last._replace(kind="duplicate")
        bad = chance < mischief.duplicate + mischief.bad
        late = not bad and self._random.random() < mischief.late
        stream, samples, device = self._next(now)
        dirty = bad and stream != FRAMES and self._random.random() < mischief.dirty
        if stream == FRAMES:
            message = self._frame(device, samples, bad=bad, late=late)
        else:
            if late:
                samples = [self._late(sample) for sample in samples]
            if dirty:
                samples = [soiled(sample, self._random) for sample in samples]
            elif bad:
                samples = [self._random.choice(_BAD)(sample) for sample in samples]
            payload = (
                written(samples, self._random)
                if dirty
                else orjson.dumps(samples[0] if len(samples) == 1 else samples)
            )
            kind = "dirty" if dirty else "bad" if bad else "late" if late else "good"
            message = Message(f"iov/v1/{device.name}/{stream}", payload, len(samples), kind)
        self.said[stream] += message.samples
        if not bad:
            self._last = message
        return message

    def _next(self, now: datetime) -> tuple[str, list[dict[str, Any]], Device]:
        """Return (stream, samples, device) of the next device to publish, its outbox first."""
        devices = self.devices(now)
        for _ in range(len(devices)):
            device = devices[self._turn]
            self._turn = (self._turn + 1) % len(devices)
            device.advance(now)
            while device.outbox and device.reachable:
                stream, samples = device.outbox.popleft()
                if stream in self._streams:
                    return stream, samples, device
            if device.reachable:
                return (*self._speak(device, now), device)
        # All devices are in tunnels: let one of them publish all the same.
        return (*self._speak(devices[self._turn], now), devices[self._turn])

    def _speak(self, device: Device, now: datetime) -> tuple[str, list[dict[str, Any]]]:
        names = device.streams(self._streams)
        second = int(now.timestamp())
        if self._framed.get(device.name) == second and len(names) > 1:
            # Frame times are whole seconds: two frames in one second would be duplicates.
            names = [name for name in names if name != FRAMES]
        stream = self._random.choices(names, [device.weights[name] for name in names])[0]
        if stream == FRAMES:
            self._framed[device.name] = second
            return stream, [device.say(part) for part in ("nev", "battery", "alarm")]
        step = timedelta(milliseconds=100)
        ages = range(self._samples - 1, -1, -1)
        return stream, [device.sample(stream, device.clock - step * age) for age in ages]

    def _late(self, sample: dict[str, Any]) -> dict[str, Any]:
        ts = datetime.fromisoformat(sample["ts"])
        return sample | {"ts": text(ts - _LATE), "resend": True, "sent_at": sample["ts"]}

    def _frame(
        self, device: Device, samples: list[dict[str, Any]], *, bad: bool, late: bool
    ) -> Message:
        """Return a report in the GB/T 32960 edition that the device speaks."""
        clock = device.clock - (_LATE if late else timedelta())
        ts = clock.astimezone(_GMT_8).isoformat(timespec="seconds")
        edition: Edition = 2016 if int(device.name[-1]) % 2 else 2025
        command = gbt32960.Command.RESEND if late else gbt32960.Command.REALTIME
        parts = zip(("nev", "battery", "alarm"), samples, strict=True)
        whole = {name: {"ts": ts} | fields for name, fields in parts}
        payload = gbt32960.encode(
            gbt32960.Frame(edition, command, getattr(device, "vin", device.name), whole)
        )
        if bad:
            payload = garbled(payload, self._random)
        kind = "bad" if bad else "late" if late else "good"
        topic = f"iov/v1/{device.name}/{FRAMES}"
        return Message(topic, payload, 1 if bad else len(samples), kind)
