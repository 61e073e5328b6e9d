"""`bench`: committed messages per second, and what one costs the service.

Everything runs on this machine: an embedded PostgreSQL with fsync and synchronous_commit on,
mosquitto, a publisher that only sends packets encoded beforehand, and the service as a process of
its own. Rows are counted in the database; CPU time and memory are the service's own, read from its
/metrics. The publisher keeps a set number of messages ahead of what is committed, so that the
broker's queue neither runs dry nor grows.

The bias, said first: one sample of about 700 bytes per message, few devices, nothing late or bad.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, cast

import aiohttp
import asyncpg
import mqtt5
import orjson
from prometheus_client.parser import text_string_to_metric_families

from ingest.config import load
from ingest.errors import ServerError
from ingest.schema import load_catalogue
from ingest.store import migrate
from ingest.tools.embedded import free_port, mosquitto, postgres

AHEAD = 30_000
"""Messages published beyond what is committed: about a second of work."""
_CHUNK = 500
_DEVICES = 1_000
_LOOK_EVERY_S = 0.25
_PAUSE_S = 0.005
_TIMEOUT_S = 60.0
_SEQ_DIGITS = 10

Source = Literal["mqtt5", "aiomqtt"]


class Sample(NamedTuple):
    """The service's own counters at one moment."""

    at_s: float
    cpu_s: float
    rss_mb: float
    committed: int


def nev_payload(ts: datetime) -> bytes:
    """A `nev` sample of about 700 bytes, its `seq` all zeros and last, to be overwritten."""
    sample = {
        "ts": ts.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
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
    return orjson.dumps(sample)[:-1] + b',"seq":1' + b"0" * (_SEQ_DIGITS - 1) + b"}"


class Template:
    """PUBLISH packets that differ in packet identifier, device and `seq` only."""

    def __init__(self, ts: datetime) -> None:
        payload = nev_payload(ts)
        self.payload_bytes = len(payload)
        self._packets: list[bytearray] = []
        for device in range(_DEVICES):
            topic = f"iov/v1/bench-{device:06d}/nev"
            packet = mqtt5.PublishPacket(
                topic, payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1
            ).write()
            self._packets.append(bytearray(packet))
            # Identifier and properties' length stand between topic and payload (MQTT 5, 3.3.2).
            self._packet_id_at = len(packet) - len(payload) - 3
        self._seq_at = -_SEQ_DIGITS

    def packets(self, first: int, count: int) -> bytes:
        """`count` packets in one run of bytes; message `first` has seq 10⁹ + first."""
        run = []
        for number in range(first, first + count):
            packet = self._packets[number % _DEVICES]
            packet[self._seq_at : -1] = b"%09d" % number
            at = self._packet_id_at
            packet[at : at + 2] = (number % 65_535 + 1).to_bytes(2, "big")
            run.append(bytes(packet))
        return b"".join(run)


class PreEncoded(asyncio.Protocol):
    """A publisher that costs little: it counts PUBACKs without reading them."""

    _PUBACK_BYTES = 4

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
        return max(0, self._bytes - self._connack) // self._PUBACK_BYTES

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


async def bench(
    *, seconds: float, warm_up_s: float, source: Source, progress: Callable[[Sample, float], None]
) -> dict[str, Any]:
    """Measure for `seconds` after a warm-up; the keys of --json. `progress` after each look."""
    settings_pg = {"max_wal_size": "4GB", "checkpoint_timeout": "30min"}
    with postgres(settings_pg) as database:
        async with mosquitto() as broker:
            environ = {
                "IOV_MQTT_URL": broker.url,
                "IOV_DATABASE_URL": database.url,
                "IOV_MQTT_CLIENT": source,
                "IOV_MQTT_CLIENT_ID": "iov-bench",
                "IOV_HTTP_HOST": "127.0.0.1",
                "IOV_HTTP_PORT": str(free_port()),
            }
            settings = load(environ=environ)
            catalogue = load_catalogue(settings.schema_dir)
            await migrate(settings, catalogue)
            async with _service(environ) as look:
                begin, end = await _load(broker.port, look, seconds, warm_up_s, progress)
            connection = await asyncpg.connect(database.url)
            rows = await connection.fetchval("SELECT count(*) FROM iov.nev")
            await connection.close()
    if rows < end.committed:
        raise ServerError(f"{end.committed} counted as committed and {rows} in the table")
    messages, elapsed_s = end.committed - begin.committed, end.at_s - begin.at_s
    return {
        "committed_per_s": round(messages / elapsed_s),
        "cpu_us_per_message": round((end.cpu_s - begin.cpu_s) / max(messages, 1) * 1e6, 2),
        "rss_mb": round(end.rss_mb, 1),
        "messages": messages,
        "seconds": round(elapsed_s, 3),
        "source": source,
    }


async def _load(
    port: int,
    look: Callable[[], Any],
    seconds: float,
    warm_up_s: float,
    progress: Callable[[Sample, float], None],
) -> tuple[Sample, Sample]:
    """Publish ahead of the service; its counters after the warm-up and at the end."""
    publisher = PreEncoded()
    await asyncio.get_running_loop().create_connection(lambda: publisher, "127.0.0.1", port)
    await publisher.ready.wait()
    template = Template(datetime.now(UTC))
    sent = 0
    begin: Sample | None = None
    now: Sample = await look()
    started_s = time.monotonic()
    looked_s = 0.0
    while True:
        if time.monotonic() - looked_s >= _LOOK_EVERY_S:
            looked_s = time.monotonic()
            now = await look()
            progress(now, now.at_s - started_s)
            if begin is None and now.at_s - started_s >= warm_up_s:
                begin = now
            if begin is not None and now.at_s - begin.at_s >= seconds:
                return begin, now
            if now.at_s - started_s > warm_up_s + seconds + _TIMEOUT_S:
                raise ServerError("the service did not keep up with the clock")
        # Not more than the identifiers allow (MQTT 5, 2.2.1), nor far beyond what is committed.
        if sent - now.committed < AHEAD and sent - publisher.acknowledged < AHEAD:
            await publisher.send(template.packets(sent, _CHUNK))
            sent += _CHUNK
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(_PAUSE_S)


@asynccontextmanager
async def _service(environ: dict[str, str]) -> AsyncIterator[Callable[[], Any]]:
    """The service as a process; yields a function that reads its counters."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest", "run",
        env=os.environ | environ | {"IOV_LOG_LEVEL": "warning"},
    )  # fmt: skip
    url = f"http://127.0.0.1:{environ['IOV_HTTP_PORT']}"
    try:
        async with aiohttp.ClientSession(url) as client:
            await _ready(client, process)

            async def look() -> Sample:
                async with client.get("/metrics") as response:
                    return _sample(await response.text())

            yield look
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ready(client: aiohttp.ClientSession, process: asyncio.subprocess.Process) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.returncode is not None:
            raise ServerError(f"the service ended with status {process.returncode}")
        try:
            async with client.get("/readyz") as response:
                if response.ok:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(_LOOK_EVERY_S)
    raise ServerError("the service did not become ready")


def _sample(text: str) -> Sample:
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return Sample(
        time.monotonic(),
        values["process_cpu_seconds_total"],
        values["process_resident_memory_bytes"] / 1e6,
        int(values["iov_samples_stored_total"]),
    )
