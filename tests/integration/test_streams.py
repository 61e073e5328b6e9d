"""All streams as a city sends them: frames, recordings, devices, and a stream of one file."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest import gbt32960
from ingest.check import Checker
from ingest.commands.devices import import_devices, read_devices
from ingest.commands.publisher import Publisher
from ingest.config import Settings, load
from ingest.errors import ConfigError
from ingest.gbt32960 import Command, Frame
from ingest.gbt32960.tables import Edition
from ingest.lab.embedded import Mosquitto
from ingest.lab.fleet import Fleet
from ingest.lab.replay import Replay
from ingest.lab.until import until
from ingest.schema import Catalogue, default_directory, load_catalogue
from ingest.store import migrate
from tests.support import (
    OwnDatabase,
    Worker,
    environment,
    may_not,
    publisher,
    working,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
VIN = "LSVAA4181E2123456"
OUTCOMES = ("stored", "duplicate", "rejected")


def report(edition: Edition, command: Command = Command.REALTIME, **nev: Any) -> bytes:
    now = datetime.now(timezone(timedelta(hours=8))).replace(microsecond=0)
    samples: dict[str, dict[str, Any]] = {
        "nev": {"speed_kmh": 46.8, "soc_pct": 71} | nev,
        "battery": {"packs": [{"no": 1, "cell_v": [3.9, 3.91], "probe_temps_c": [31]}]},
        "alarm": {"max_level": 2, "flags": ["brake_system"]},
    }
    stamped = {name: {"ts": now.isoformat()} | fields for name, fields in samples.items()}
    return gbt32960.encode(Frame(edition, command, VIN, stamped))


def login() -> bytes:
    now = datetime.now(timezone(timedelta(hours=8))).replace(microsecond=0)
    session = {"ts": now.isoformat(), "session_seq": 1, "iccid": "89860000000000000001"}
    return gbt32960.encode(Frame(2016, Command.LOGIN, VIN, {"session": session}))


async def test_frames_by_topic_and_by_content_type_are_stored_once(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    old, new = report(2016), report(2025, speed_kmh=120.5)
    broken = old[:-1] + bytes([old[-1] ^ 1])
    topic = "iov/v1/F1/gbt32960"
    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        async with publisher(broker.url) as publish:
            await publish(login(), topic)
            await publish(old, topic)
            await publish(old, topic)
            await publish(new, "iov/v1/F1/nev", content_type=gbt32960.CONTENT_TYPE)
            await publish(broken, topic)
            await publish(b'{"ts": 1}', topic)
        await worker.settles(1 + 3 + 3 + 3 + 2)
        speeds = await database.all("SELECT speed_kmh FROM iov.nev ORDER BY 1")
        assert [row[0] for row in speeds] == [46.8, 120.5]
        assert await database.count("battery") == await database.count("alarm") == 2
        assert await database.one("SELECT flags FROM iov.alarm LIMIT 1") == ["brake_system"]
        letters = await database.all("SELECT * FROM iov.dead_letter ORDER BY id")
        assert [(r["reason"], r["stream"]) for r in letters] == [("bad_encoding", "gbt32960")] * 2
        digest = hashlib.sha256(broken).hexdigest()
        assert json.loads(letters[0]["payload"]) == {"bytes": len(broken), "sha256": digest}
        assert worker.metric("iov_messages_received_total", stream="gbt32960") == 6
        assert worker.metric("iov_samples_duplicate_total") == 3
        for name in (*catalogue, "gbt32960", "other"):
            received = worker.metric("iov_samples_received_total", stream=name)
            assert received == sum(
                worker.metric(f"iov_samples_{outcome}_total", stream=name) for outcome in OUTCOMES
            ), name
        # What the frames had no value for was noted, and counted.
        assert worker.metric("iov_quality_flags_total", stream="nev", flag="invalid") > 0
    assert await database.one("SELECT vin FROM iov.device WHERE device = 'F1'") == VIN


async def test_what_a_device_is_comes_from_its_sessions_and_from_nothing_else(
    broker: Mosquitto, database: OwnDatabase, worker: AbstractAsyncContextManager[Worker]
) -> None:
    now = datetime.now(UTC)
    said = {"vin": VIN, "kind": "car", "region": "cn", "fleet": "north"}
    device = "SELECT kind, vin, region, fleet FROM iov.device WHERE device = 'D1'"

    def at(seconds: float, **fields: Any) -> dict[str, Any]:
        return {"ts": (now - timedelta(seconds=seconds)).isoformat(), **fields}

    async with worker as running:
        async with publisher(broker.url) as publish:
            await publish(at(9, **said), "iov/v1/D1/nev")
            await running.settles(1)
            assert tuple((await database.all(device))[0]) == (None, None, None, None)
            await publish(at(8, event="login", **said), "iov/v1/D1/session")
            await running.settles(2)
            assert tuple((await database.all(device))[0]) == ("car", VIN, "cn", "north")
            # Of each field the later word counts, and what is absent stays.
            later = [at(1, event="online", fleet="south"), at(5, event="online", fleet="east")]
            await publish(later, "iov/v1/D1/session")
            await publish(at(6, event="online", fleet="west", kind="bus"), "iov/v1/D1/session")
            await running.settles(5)
        assert tuple((await database.all(device))[0]) == ("bus", VIN, "cn", "south")
    columns = await database.all("SELECT * FROM iov.session LIMIT 1")
    assert not {"vin", "kind", "region", "fleet"} & set(columns[0].keys())


async def test_of_each_field_the_later_word_counts_in_whatever_order_they_come(
    broker: Mosquitto, database: OwnDatabase, worker: AbstractAsyncContextManager[Worker]
) -> None:
    now = datetime.now(UTC)
    device = "SELECT kind, vin, region, fleet FROM iov.device WHERE device = 'D3'"
    words: list[tuple[float, dict[str, str]]] = [
        (9_000, {"kind": "car"}),
        (20, {"kind": "car", "region": "cn"}),  # again, hours later
        (8_000, {"kind": "bus", "vin": VIN}),  # late: between the two
        (10, {"fleet": "north"}),
        (15, {"region": "eu"}),  # older than the newest word, and the newest of its field
    ]
    async with worker as running, publisher(broker.url) as publish:
        for count, (age_s, said) in enumerate(words, 1):
            ts = (now - timedelta(seconds=age_s)).isoformat()
            await publish({"ts": ts, "event": "online", **said}, "iov/v1/D3/session")
            await running.settles(count)
    assert tuple((await database.all(device))[0]) == ("car", VIN, "eu", "north")


async def test_a_worker_that_may_not_read_devices_describes_them(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    url = await database.user("plain_worker", "iov_worker")
    async with working(broker.url, url, catalogue) as worker:
        async with publisher(broker.url) as publish:
            sample = {"ts": datetime.now(UTC).isoformat(), "event": "login", "kind": "truck"}
            await publish(sample, "iov/v1/D2/session")
        await worker.settles(1)
    assert await database.one("SELECT kind FROM iov.device WHERE device = 'D2'") == "truck"
    await may_not(
        url,
        "SELECT vin FROM iov.device",
        "UPDATE iov.device SET vin = 'x'",
        "INSERT INTO iov.device (device, vin, first_seen_at) VALUES ('X', 'x', now())",
    )


async def test_devices_are_imported_from_csv(
    database: OwnDatabase, catalogue: Catalogue, tmp_path: Path
) -> None:
    file = tmp_path / "devices.csv"
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["device", "kind", "vin", "region", "fleet"])
        writer.writerow(["D1", "car", VIN, "cn", ""])
        writer.writerow(["D2", "rsu", "", "cn", "road works, north"])
    await database.execute(
        "INSERT INTO iov.device (device, fleet, first_seen_at) VALUES ('D1', 'kept', now())"
    )
    configured = load(environ={"IOV_DATABASE_URL": database.url})
    found = read_devices(file, catalogue)
    account = await import_devices(configured, catalogue, found)
    assert account == {"devices": 2, "added": 1, "changed": 2, "vin_check_digit": 0}
    rows = await database.all("SELECT device, kind, vin, fleet FROM iov.device ORDER BY device")
    assert [tuple(row) for row in rows] == [
        ("D1", "car", VIN, "kept"),
        ("D2", "rsu", None, "road works, north"),
    ]
    again = await import_devices(configured, catalogue, found)
    assert (again["added"], again["changed"]) == (0, 0)


def test_a_csv_that_is_wrong_is_refused_with_every_line(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    file = tmp_path / "devices.csv"

    def problems(text: str | bytes) -> list[str]:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError) as caught:
            read_devices(file, catalogue)
        return [problem.removeprefix(f"{file}, ") for problem in caught.value.problems]

    text = "device,vin\nD 1,x\nD1,LSVAA41801E2123456789\nD2,\nD2,\nD3,a,b\n"
    assert problems(text) == [
        "line 2: the device is not [A-Za-z0-9_-]{1,64}",
        "line 3: /vin is longer than 17 characters",
        "line 5: D2 was there before",
        "line 6: more fields than the header",
    ]
    assert problems("name,vin\nD1,x\n")[0].startswith("line 1: the header names device")
    assert problems("device,colour\nD1,red\n")[0].startswith("line 1: the header names device")
    assert "is no CSV file in UTF-8" in problems(b"device\n\xff\n")[0]
    many = problems("device\n" + "?\n" * 50)
    assert len(many) == 21
    assert many[-1].endswith(": 30 more")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_devices(tmp_path / "none.csv", catalogue)


@pytest.mark.skipif(not DATA.is_dir(), reason="the recordings are not on this machine")
async def test_a_recording_of_a_real_truck_is_stored_whole(
    database: OwnDatabase, broker: Mosquitto, worker: AbstractAsyncContextManager[Worker]
) -> None:
    recording = Replay(
        DATA / "truck.ndjson.gz", 0, Checker.of(load_catalogue(), Settings()), shift=True
    )
    recording.measure()
    async with worker as running:
        async with Publisher(load(environ=environment(broker.url, database.url)).broker) as truck:
            await recording.run(truck)
        assert recording.account()["acknowledged"] == 895
        await running.settles(895)
        assert running.metric("iov_unknown_fields_total") == 0
    assert await database.count("truck") == 895
    assert await database.reasons() == []
    assert await database.one("SELECT max(gross_weight_kg) FROM iov.truck") == 17_200


async def test_one_more_stream_is_one_file(
    database: OwnDatabase, broker: Mosquitto, tmp_path: Path
) -> None:
    directory = tmp_path / "schemas"
    shutil.copytree(default_directory(), directory)
    envelope = {
        name: {"$ref": f"envelope.schema.json#/$defs/{name}"}
        for name in ("ts", "seq", "resend", "quality")
    }
    field = {"type": ["number", "null"], "minimum": 0, "title": "Ice", "x-unit": "mm"}
    schema = {"type": "object", "required": ["ts"], "properties": envelope | {"ice_mm": field}}
    (directory / "road-ice.schema.json").write_text(json.dumps(schema))
    settings = load(environ={"IOV_DATABASE_URL": database.url, "IOV_SCHEMA_DIR": str(directory)})
    catalogue = load_catalogue(settings.schema_dir)
    assert len(catalogue) == len(load_catalogue()) + 1
    applied = await migrate(settings, catalogue)
    assert [step.what for step in applied] == ["create table iov.road_ice"]
    async with working(broker.url, database.url, catalogue) as worker:
        async with publisher(broker.url) as publish:
            now = datetime.now(UTC).isoformat()
            await publish({"ts": now, "seq": 1, "ice_mm": 3.5, "salt": "no"}, "iov/v1/R1/road-ice")
            await publish({"ts": now, "seq": 2, "ice_mm": -1}, "iov/v1/R1/road-ice")
        await worker.settles(2)
        assert worker.metric("iov_samples_stored_total", stream="road-ice") == 1
    row = (await database.all("SELECT * FROM iov.road_ice"))[0]
    assert (row["ice_mm"], orjson.loads(row["extra"])) == (3.5, {"salt": "no"})
    detail = await database.one("SELECT detail FROM iov.dead_letter")
    assert detail == "/ice_mm is refused (range), and nothing else is left"


async def test_a_city_is_stored_whole_and_nothing_private_of_it(
    database: OwnDatabase, broker: Mosquitto, worker: AbstractAsyncContextManager[Worker]
) -> None:
    fleet, began = Fleet(20, 4), datetime.now(UTC) - timedelta(seconds=200)
    messages = [fleet.message(began + timedelta(milliseconds=100 * n)) for n in range(2_000)]
    samples = sum(message.samples for message in messages)
    private = {"driver": {"heart_rate": 61, "fatigue_pct": 3}, "media": {"artist": "Somebody"}}
    async with worker as running:
        async with publisher(broker.url, max_inflight_messages=200) as publish:
            for message in messages:
                await publish(message.payload, message.topic)
            now = datetime.now(UTC).isoformat()
            await publish({"ts": now, "event": "media", **private}, "iov/v1/C/cockpit")
            await publish({"ts": "now", "event": "media", **private}, "iov/v1/C/cockpit")
        await running.settles(samples + 2)
        assert running.metric("iov_samples_rejected_total") == 1
        assert running.metric("iov_samples_duplicate_total") == 0
    letters = await database.all("SELECT payload FROM iov.dead_letter")
    extras = await database.all("SELECT extra FROM iov.cockpit WHERE extra IS NOT NULL")
    kept = b"".join(row[0] for row in letters).decode() + "".join(row[0] for row in extras)
    assert "fatigue" in kept
    assert "heart" not in kept
    assert "Somebody" not in kept
    assert await until(lambda: database.one("SELECT count(*) FROM iov.v2x")) > 0
