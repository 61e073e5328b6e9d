"""Publishes packets that were encoded beforehand, so that it costs little beside the service.

What differs from packet to packet (device, packet identifier, `ts`, `seq`) has a fixed place and is
overwritten: a microsecond for a packet of one sample.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import mqtt5
import orjson

from ingest.schema import default_directory

_DEVICE_DIGITS, _SEQ_DIGITS = 7, 9
_TS_AT = len('{"ts":"')
_MILLISECONDS_AT = _TS_AT + len("2026-11-22T12:45:16.")
_LATE = timedelta(seconds=1)
_STRIDE = 617
"""Takes the milliseconds in turn, neighbours far apart."""
_PUBACK_BYTES = 4
_DEVICE = b"bench-" + b"0" * _DEVICE_DIGITS
_SEQ = b'"seq":1' + b"0" * _SEQ_DIGITS
_EXAMPLES = {"nev": "driving"}
"""Of a stream's valid examples, the one that is sent; the first where none is named."""


def nev(ts: datetime) -> dict[str, Any]:
    """A `nev` sample of about 650 bytes as a driving car sends it, 26 columns filled."""
    return {
        "ts": _text(ts),
        "status": "started", "charge_status": "not_charging", "run_mode": "ev",
        "speed_kmh": 46.8, "odometer_km": 20214.7, "pack_voltage_v": 351.2,
        "pack_current_a": 13.3, "soc_pct": 71, "dcdc": "working", "gear": "D",
        "drive_force": True, "brake_force": False, "insulation_kohm": 6200,
        "accel_pedal_pct": 14, "brake_pedal_pct": 0,
        "motors": [{
            "no": 1, "state": "consuming", "controller_temp_c": 41, "temp_c": 47,
            "speed_rpm": 4120, "torque_nm": 38.5, "input_v": 350.9, "dc_current_a": 12.1,
        }],
        "location": {"valid": True, "lon": 121.473701, "lat": 31.230416, "heading_deg": 88.5},
        "crs": "WGS84",
        "trip_id": "2b1f0c52-7d3e-4a61-9a40-5f2a6f0f7d11", "sw_version": "4.2.1+build.20261101",
    }  # fmt: skip


def example(stream: str, ts: datetime) -> dict[str, Any]:
    """A sample of any stream: ours for `nev`, else the first of its schema's valid examples."""
    if stream == "nev":
        return nev(ts)
    file = min((default_directory() / stream / "valid").glob("*.json"))
    sample: dict[str, Any] = orjson.loads(file.read_bytes())
    return sample | {"ts": _text(ts)}


def _text(ts: datetime) -> str:
    return ts.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Packets:
    """PUBLISH packets of one stream, numbered through; `samples` in each."""

    def __init__(self, *, stream: str = "nev", samples: int = 1) -> None:
        ts = datetime.now(UTC)
        sample = {k: v for k, v in example(stream, ts).items() if k not in {"ts", "seq"}}
        text = orjson.dumps({"ts": _text(ts)} | sample)[:-1] + b"," + _SEQ + b"}"
        payload = text if samples == 1 else b"[" + b",".join([text] * samples) + b"]"
        self.payload_bytes = len(payload)
        self.samples = samples
        packet = mqtt5.PublishPacket(
            f"iov/v1/{_DEVICE.decode()}/{stream}", payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1
        ).write()
        self._packet = bytearray(packet)
        self._device_at = packet.index(_DEVICE) + len(b"bench-")
        # Identifier and properties' length stand between topic and payload (MQTT 5, 3.3.2).
        self._id_at = len(packet) - len(payload) - 3
        begin = len(packet) - len(payload)
        starts = [
            match.start() for match in re.finditer(rb'{"ts":"', packet) if match.start() >= begin
        ]
        ends = [match.end() for match in re.finditer(_SEQ, packet)]
        self._places = [
            (number, start + _TS_AT, start + _MILLISECONDS_AT, end - _SEQ_DIGITS, end)
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def at(self, ts: datetime) -> None:
        """Samples are of this second from now on."""
        second = ts.strftime("%Y-%m-%dT%H:%M:%S").encode()
        for _, start, *_ in self._places:
            self._packet[start : start + len(second)] = second

    def make(self, number: int, device: int) -> bytes:
        """The packet of message `number`, whose samples have seq from 10⁹ + number · samples.

        Milliseconds differ from one to the next, as those of many vehicles do.
        """
        packet = self._packet
        packet[self._device_at : self._device_at + _DEVICE_DIGITS] = b"%07d" % device
        packet[self._id_at : self._id_at + 2] = (number % 65_535 + 1).to_bytes(2, "big")
        first = number * self.samples
        for place, _, milliseconds_at, begin, end in self._places:
            seq = first + place
            packet[begin:end] = b"%09d" % seq
            packet[milliseconds_at : milliseconds_at + 3] = b"%03d" % (seq * _STRIDE % 1_000)
        return bytes(packet)


class Traffic:
    """Messages of a fleet: `devices` vehicles in turn, one stream after the other."""

    def __init__(
        self,
        *,
        devices: int = 1_000,
        streams: Sequence[str] = ("nev",),
        samples: int = 1,
    ) -> None:
        self._packets = [Packets(stream=stream, samples=samples) for stream in streams]
        self._devices = devices
        self.samples = samples
        self.payload_bytes = sum(p.payload_bytes for p in self._packets) // len(self._packets)
        self.sent = 0
        """Messages so far."""

    def next(self, count: int) -> bytes:
        """The next `count` packets in one run of bytes."""
        kinds, devices = self._packets, self._devices
        now = datetime.now(UTC)
        for kind in kinds:
            kind.at(now - _LATE)
        number_of_kinds = len(kinds)
        run = [
            kinds[n % number_of_kinds].make(n, n // number_of_kinds % devices)
            for n in range(self.sent, self.sent + count)
        ]
        self.sent += count
        return b"".join(run)


class Publisher(asyncio.Protocol):
    """Sends what it is given, and counts PUBACKs without reading them."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._connack = 0
        self._bytes = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self.ready = asyncio.Event()

    @property
    def acknowledged(self) -> int:
        """PUBACKs so far; without properties each is four bytes (MQTT 5, 3.4)."""
        return max(0, self._bytes - self._connack) // _PUBACK_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: send CONNECT."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(mqtt5.ConnectPacket("iov-bench-publisher", clean_start=True).write())

    def data_received(self, data: bytes) -> None:
        """Asyncio: CONNACK first, PUBACKs after."""
        if not self._connack:
            self._connack = mqtt5.read(memoryview(data))[1]
            self.ready.set()
        self._bytes += len(data)

    def pause_writing(self) -> None:
        """Asyncio: the socket is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Asyncio: there is room again."""
        self._writable.set()

    async def send(self, packets: bytes) -> None:
        """Write as the socket takes it."""
        assert self._transport is not None
        await self._writable.wait()
        self._transport.write(packets)

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


async def connected(port: int) -> Publisher:
    """A publisher at the broker on this port of the loopback."""
    publisher = Publisher()
    await asyncio.get_running_loop().create_connection(lambda: publisher, "127.0.0.1", port)
    await publisher.ready.wait()
    return publisher
