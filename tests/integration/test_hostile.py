"""Hostile and broken input: each has one defined outcome, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import mqtt5
import orjson

from ingest.lab.bench.publisher import connected
from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from ingest.schema import Catalogue
from tests.support import (
    OwnDatabase,
    publish_many,
    publisher,
    sample,
    working,
)

AT = datetime.now(UTC).isoformat()


def raw(fields: str) -> bytes:
    """A `nev` sample as text, so that it may say what no writer of JSON writes."""
    return f'{{"ts": "{AT}", "seq": 1, {fields}}}'.encode()


QOS_1 = mqtt5.QoS.AT_LEAST_ONCE
STORED = "stored"
INPUTS: dict[str, tuple[bytes, str]] = {
    "nested 2,000 deep": (raw('"x": ' + "[" * 2_000 + "]" * 2_000), "bad_json"),
    "nested 900 deep": (raw('"x": ' + "[" * 900 + "]" * 900), "bad_json"),
    "nested 100 deep": (raw('"x": ' + "[" * 100 + "]" * 100), STORED),
    "brackets that never close": (b"[" * 70_000, "bad_json"),
    "more brackets": (b"[" * 200_000, "too_large"),
    "a number beyond all floats": (raw('"speed_kmh": 1e400'), "schema"),
    "a number of 10,000 digits": (raw('"x": ' + "9" * 10_000), "bad_json"),
    "2**64 in an unknown field": (raw('"x": 18446744073709551616'), STORED),
    "2**63 where an integer fits": (raw('"insulation_kohm": 9223372036854775808'), "schema"),
    "NaN": (raw('"speed_kmh": NaN'), "schema"),
    "Infinity": (raw('"speed_kmh": Infinity'), "schema"),
    "minus zero": (raw('"speed_kmh": -0.0'), STORED),
    "a lone surrogate": (raw('"trip_id": "\\ud800"'), "bad_json"),
    "a NUL in a field": (raw('"trip_id": "a\\u0000b"'), "refused_by_store"),
    "a NUL in an unknown field": (raw('"x": {"y": ["\\u0000"]}'), "refused_by_store"),
    "a NUL in a name": (raw('"x\\u0000": 1'), "refused_by_store"),
    "a raw NUL": (raw('"trip_id": "a\0b"'), "bad_json"),
    "a key twice: the last counts": (raw('"soc_pct": 1, "soc_pct": 2'), STORED),
    "ts twice: the last counts": (raw('"ts": "yesterday"'), "bad_timestamp"),
    "a text of 100 kB": (raw('"x": "' + "y" * 100_000 + '"'), STORED),
    "a text of 100 kB where 64 fit": (raw('"trip_id": "' + "y" * 100_000 + '"'), "schema"),
    "10,000 unknown fields": (raw(",".join(f'"n{n}": 1' for n in range(10_000))), STORED),
    "nothing": (b"", "bad_json"),
    "white space": (b" \n\t ", "bad_json"),
    "a byte order mark": (b"\xef\xbb\xbf" + raw('"x": 1'), "stored"),
    "Latin-1": (raw('"trip_id": "caf\xe9"').decode().encode("latin-1"), "bad_json"),
    "a cut UTF-8 sequence": (raw('"trip_id": "') + b'\xe4\xb8"}', "bad_json"),
    "UTF-16": (raw('"x": 1').decode().encode("utf-16"), "bad_json"),
    "a number": (b"42", "bad_envelope"),
    "null": (b"null", "bad_envelope"),
    "an empty array": (b"[]", "bad_envelope"),
    "an empty object": (b"{}", "bad_envelope"),
    "JavaScript": (b"{ts: 1}", "bad_json"),
    "random bytes": (bytes(range(256)), "bad_json"),
    "260 kB": (raw('"x": "' + "y" * 262_144 + '"'), "too_large"),
}


async def test_each_has_its_outcome(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue) as worker:
        async with publisher(broker.url) as publish:
            for number, (payload, _) in enumerate(INPUTS.values()):
                await publish(payload, f"iov/v1/D{number}/nev")
                await publish(sample(2), "iov/v1/NEIGHBOUR/nev")
        await worker.settles(2 * len(INPUTS))
        assert worker.metric("iov_samples_received_total") == worker.settled() == 2 * len(INPUTS)
    outcomes = dict.fromkeys(INPUTS, "")
    names = list(INPUTS)
    for query in (
        "SELECT device, reason FROM iov.dead_letter",
        f"SELECT device, '{STORED}' FROM iov.nev JOIN iov.device USING (device_id) WHERE seq = 1",
    ):
        for device, outcome in await database.all(query):
            outcomes[names[int(device[1:])]] += outcome
    assert outcomes == {name: outcome for name, (_, outcome) in INPUTS.items()}
    assert await database.one("SELECT count(*) FROM iov.nev WHERE seq = 2") == len(INPUTS)


async def test_the_last_of_two_equal_keys_is_stored(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [INPUTS["a key twice: the last counts"][0]])
        await worker.settles(1)
    assert await database.one("SELECT soc_pct FROM iov.nev") == 2


async def test_a_thousand_samples_are_taken_and_one_more_is_not(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    def array(count: int) -> list[dict[str, Any]]:
        return [{"ts": AT, "seq": seq, "soc_pct": 7} for seq in range(count)]

    async with working(broker.url, database.url, catalogue) as worker:
        await publish_many(broker.url, [array(1_000), array(1_001)])
        await worker.settles(1_001)
        assert worker.metric("iov_samples_received_total") == 1_001
    assert await database.count() == 1_000
    assert await database.reasons() == ["too_large"]


async def test_a_retained_message_is_a_message_like_any_other(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    """A plain subscription gets it when it is made, once; a shared one never (MQTT 5, 4.8.2)."""
    async with publisher(broker.url) as publish:
        await publish(sample(1), retain=True)
    for _ in range(2):
        async with working(broker.url, database.url, catalogue, mqtt_group="") as worker:
            await publish_many(broker.url, [sample(2)])
            await worker.settles(1)
            await until(lambda: not worker.in_flight)
    assert [r[0] for r in await database.all("SELECT seq FROM iov.nev ORDER BY 1")] == [1, 2, 2]
    async with publisher(broker.url) as publish:
        await publish(b"", retain=True)


async def test_a_device_that_sends_only_garbage_harms_nobody(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    kinds = [
        b"\xff\x00 no JSON",
        orjson.dumps({"ts": AT, "soc_pct": 900}),
        orjson.dumps({"ts": "never"}),
        b"[" * 1_000,
    ]
    async with working(broker.url, database.url, catalogue, dead_letters_per_minute="50") as worker:
        flood = asyncio.create_task(flooding(broker.port, [kinds[n % 4] for n in range(40_000)]))
        began_s = time.monotonic()
        for seq in range(20):  # the neighbour, all the while
            await publish_many(broker.url, [sample(seq)], "iov/v1/GOOD/nev")

            async def arrived() -> bool:
                return await database.count() > seq  # noqa: B023  awaited in the same turn

            await until(arrived, "the neighbour's sample", 20)
        await flood
        await worker.settles(40_020)
        assert await database.count() == 20
        kept = await database.count("dead_letter")
        minutes = (time.monotonic() - began_s) // 60 + 2
        assert 50 <= kept <= 50 * minutes
        suppressed = worker.metric("iov_dead_letters_suppressed_total", stream="nev")
        assert kept + suppressed == worker.metric("iov_samples_rejected_total") == 40_000
        assert worker.metric("iov_samples_received_total") == worker.settled()


async def flooding(port: int, payloads: list[bytes]) -> None:
    """Publish at 10,000 a second with QoS 1, and wait for the last acknowledgement."""
    device = await connected(port)
    begin_s = time.monotonic()
    for number, payload in enumerate(payloads):
        packet_id = number % 65_535 + 1
        packet = mqtt5.PublishPacket("iov/v1/BAD/nev", payload, qos=QOS_1, packet_id=packet_id)
        await device.send(packet.write())
        if number % 100 == 0:
            await asyncio.sleep(max(0, begin_s + number / 10_000 - time.monotonic()))
    await until(lambda: device.acknowledged >= len(payloads), "the flood")
    device.close()


async def test_what_the_store_refuses_is_within_the_budget_too(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    """A constraint an operator adds is one way to have the store refuse."""
    await database.execute("ALTER TABLE iov.nev ADD CONSTRAINT c CHECK (soc_pct < 50)")
    async with working(broker.url, database.url, catalogue, dead_letters_per_minute="5") as worker:
        await publish_many(broker.url, [sample(seq, soc_pct=51) for seq in range(40)])
        await worker.settles(40)
        kept = await database.count("dead_letter")
        assert kept == 5
        assert worker.metric("iov_dead_letters_suppressed_total") == 35
        assert worker.metric("iov_samples_rejected_total", reason="refused_by_store") == 40


async def test_a_commit_that_fails_does_not_use_up_the_budget(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    """Two refused samples, a budget of three, and three COMMITs that fail before one does not."""
    await database.execute("ALTER TABLE iov.nev ADD CONSTRAINT c CHECK (soc_pct < 50)")
    await database.execute("CREATE SEQUENCE public.tries")
    await database.execute(
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('public.tries') < 4 THEN RAISE EXCEPTION 'no' "
        "USING ERRCODE = 'serialization_failure'; END IF; RETURN NULL; END $$"
    )
    await database.execute(
        "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON iov.dead_letter DEFERRABLE "
        "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.fail()"
    )
    async with working(broker.url, database.url, catalogue, dead_letters_per_minute="3") as worker:
        await publish_many(broker.url, [[sample(1, soc_pct=51), sample(2, soc_pct=51)]])
        await worker.settles(2)
        assert worker.metric("iov_reconnects_total", peer="database") >= 3
        assert worker.metric("iov_dead_letters_suppressed_total") == 0
    assert await database.reasons() == ["refused_by_store"] * 2
