"""Publisher of packets that were encoded beforehand, so that it costs little beside the service.

What differs from packet to packet (device, packet identifier, `ts`, `seq`) is put between pieces
that are the same. This takes less than a microsecond for a packet of one sample.
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
_TS_BYTES = len("2026-11-22T12:45:16.004")
_LATE = timedelta(seconds=1)
_MILLISECONDS = [b"%03d" % (n * 617 % 1_000) for n in range(1_000)]
"""Milliseconds of successive samples; neighbours are far apart."""
_IDS = [(n + 1).to_bytes(2, "big") for n in range(65_535)]
_PUBACK_BYTES = 4
_DEVICE = b"bench-" + b"0" * _DEVICE_DIGITS
_SEQ = b'"seq":1' + b"0" * _SEQ_DIGITS


def nev(ts: datetime) -> dict[str, Any]:
    """Return a `nev` sample as a driving car sends it: about 650 bytes, 26 columns filled."""
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
    """Return a sample of a stream: ours for `nev`, otherwise its schema's first valid example."""
    if stream == "nev":
        return nev(ts)
    file = min((default_directory() / stream / "valid").glob("*.json"))
    sample: dict[str, Any] = orjson.loads(file.read_bytes())
    return sample | {"ts": _text(ts)}


def _text(ts: datetime) -> str:
    return ts.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Packets:
    """PUBLISH packets of one stream, numbered consecutively, with `samples` samples in each."""

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
        device = packet.index(_DEVICE) + len(b"bench-")
        # Identifier and properties' length stand between topic and payload (MQTT 5, 3.3.2).
        id_at = len(packet) - len(payload) - 3
        self._head = packet[:device]
        self._topic_end = packet[device + _DEVICE_DIGITS : id_at]
        rest = packet[id_at + 2 :]
        starts = [match.start() + _TS_AT for match in re.finditer(rb'{"ts":"', rest)]
        ends = [match.end() for match in re.finditer(_SEQ, rest)]
        assert len(starts) == len(ends) == samples
        self._before = rest[: starts[0]]
        self._between = rest[starts[0] + _TS_BYTES : ends[0] - _SEQ_DIGITS]
        self._joint = rest[ends[0] : starts[1]] if samples > 1 else b""
        self._after = rest[ends[-1] :]
        self.at(ts)

    def at(self, ts: datetime) -> None:
        """Set the second that samples have from now on."""
        self._second = ts.strftime("%Y-%m-%dT%H:%M:%S.").encode()

    def add(self, run: list[bytes], number: int, device: int) -> None:
        """Add the packet of message `number`, whose samples have seq from 10⁹ + number · samples.

        Milliseconds differ from one to the next, as those of many vehicles do.
        """
        run += (self._head, b"%07d" % device, self._topic_end, _IDS[number % 65_535], self._before)
        first = number * self.samples
        for seq in range(first, first + self.samples):
            if seq > first:
                run.append(self._joint)
            run += (self._second, _MILLISECONDS[seq % 1_000], self._between, b"%09d" % seq)
        run.append(self._after)


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
        """Number of messages so far."""

    def next(self, count: int) -> bytes:
        """Return the next `count` packets in one run of bytes."""
        kinds, devices = self._packets, self._devices
        now = datetime.now(UTC)
        for kind in kinds:
            kind.at(now - _LATE)
        number_of_kinds = len(kinds)
        run: list[bytes] = []
        for n in range(self.sent, self.sent + count):
            kinds[n % number_of_kinds].add(run, n, n // number_of_kinds % devices)
        self.sent += count
        return b"".join(run)


class FastPublisher(asyncio.Protocol):
    """Publisher that sends what it is given, and counts PUBACKs without decoding them."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._connack = 0
        self._bytes = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self.ready = asyncio.Event()

    @property
    def acknowledged(self) -> int:
        """Number of PUBACKs so far; without properties each is four bytes (MQTT 5, 3.4)."""
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
        """Write the packets once the socket has room."""
        assert self._transport is not None
        await self._writable.wait()
        self._transport.write(packets)

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


async def connected(port: int) -> FastPublisher:
    """Return a publisher that is connected to the broker on this port of the loopback."""
    publisher = FastPublisher()
    await asyncio.get_running_loop().create_connection(lambda: publisher, "127.0.0.1", port)
    await publisher.ready.wait()
    return publisher
