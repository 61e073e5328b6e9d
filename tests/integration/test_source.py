"""Conformance: both ways to read MQTT keep the same promises, against a real broker."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from ingest.lab.embedded import Mosquitto, amqtt, mosquitto
from ingest.lab.proxy import Proxy
from ingest.lab.until import until
from ingest.schema import Catalogue
from tests.support import (
    OwnDatabase,
    publish_many,
    publisher,
    sample,
    working,
)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_sample_is_stored_exactly_once_whatever_its_qos(
    client: str, qos: int, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        async with publisher(broker.url) as publish:
            for seq in range(50):
                await publish(sample(seq), qos=qos)
        await worker.settles(50)
        assert await database.count() == 50
        assert worker.metric("iov_samples_duplicate_total") == 0


async def test_content_encoding_is_undone(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    import gzip

    import orjson

    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        async with publisher(broker.url) as publish:
            await publish(gzip.compress(orjson.dumps([sample(1), sample(2)])), encoding="gzip")
            await publish(sample(3), encoding="brotli")
        await worker.settles(3)
        assert await database.count() == 2
        assert await database.reasons() == ["bad_encoding"]


async def test_a_leading_slash_and_the_case_of_a_property_do_not_matter(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    import gzip

    import aiomqtt
    import orjson
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    packed = gzip.compress(orjson.dumps([sample(1), sample(2)]))
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
    properties.UserProperty = [("k", "v"), ("Content-Encoding", "X-GZIP")]
    async with working(
        broker.url, database.url, catalogue, mqtt_client=client, mqtt_topic="/iov/v1/+/+"
    ) as worker:
        async with aiomqtt.Client(
            "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5
        ) as vehicle:
            await vehicle.publish("/iov/v1/V1/nev", packed, qos=1, properties=properties)
            await vehicle.publish("/iov/v1/V1/nev", gzip.compress(b'{"ts": 1e999}'), qos=1)
        await worker.settles(3)
        assert await database.count() == 2
        assert await database.reasons() == ["bad_timestamp"]


async def test_nothing_is_acknowledged_before_it_is_committed(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    """While the table is locked the worker holds the messages; killed, it leaves them all."""
    import asyncpg

    lock = await asyncpg.connect(database.url)
    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        transaction = lock.transaction()
        await transaction.start()
        await lock.execute("LOCK TABLE iov.nev")
        async with publisher(broker.url) as publish:
            for seq in range(20):
                await publish(sample(seq))
        await until(lambda: worker.in_flight == 20, "20 messages in flight")
        await worker.kill()
        await transaction.rollback()
    assert await database.count() == 0
    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        await worker.settles(20)
        assert await database.count() == 20
    await lock.close()


async def test_after_a_reconnect_the_subscription_and_the_session_go_on(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with Proxy("127.0.0.1", broker.port) as proxy:
        url = f"mqtt://127.0.0.1:{proxy.port}"
        async with working(url, database.url, catalogue, mqtt_client=client) as worker:
            proxy.refuse()
            await until(lambda: worker.metric("iov_mqtt_connected") == 0, "the loss")
            assert worker.service.problems()
            await publish_many(broker.url, [sample(seq) for seq in range(30)])
            proxy.flow()
            await worker.settles(30)
            assert worker.metric("iov_reconnects_total", peer="broker") == 1
            assert worker.metric("iov_sessions_lost_total") == 0
        assert await database.count() == 30


async def test_no_old_acknowledgement_reaches_a_new_message(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    """The broker restarts without its store and gives the same packet identifiers anew."""
    import asyncpg

    lock = await asyncpg.connect(database.url)
    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        transaction = lock.transaction()
        await transaction.start()
        await lock.execute("LOCK TABLE iov.nev")
        async with publisher(broker.url) as publish:
            for seq in range(3):
                await publish(sample(seq))
        await until(lambda: worker.in_flight == 3, "the old messages")
        await broker.stop()
        broker.forget()
        await broker.start()
        await until(lambda: worker.metric("iov_sessions_lost_total") == 1, "the lost session")
        async with publisher(broker.url) as publish:
            for seq in range(10, 13):
                await publish(sample(seq))
        await until(lambda: worker.in_flight == 6, "the new messages")
        # The old batch commits now, and its acknowledgements have nowhere to go. Held by the lock
        # in turn, the new messages stay unacknowledged; killed, the worker must get them again.
        await transaction.rollback()
        await until(lambda: worker.settled() >= 3, "the old batch")
        transaction = lock.transaction()
        await transaction.start()
        await lock.execute("LOCK TABLE iov.nev")
        await worker.kill()
        await transaction.rollback()
    await lock.close()
    async with working(broker.url, database.url, catalogue, mqtt_client=client) as worker:
        await until(lambda: _has_all(database), "every message")


async def _has_all(database: OwnDatabase) -> bool:
    rows = await database.all("SELECT seq FROM iov.nev ORDER BY seq")
    return [row[0] for row in rows] == [0, 1, 2, 10, 11, 12]


async def test_the_window_bounds_what_is_in_flight_and_nothing_is_lost(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    """QoS 0 knows no Receive Maximum: only the paused socket can hold it back."""
    import asyncpg

    lock = await asyncpg.connect(database.url)
    async with working(
        broker.url, database.url, catalogue, mqtt_client=client, mqtt_receive_maximum="50"
    ) as worker:
        async with lock.transaction():
            await lock.execute("LOCK TABLE iov.nev")
            async with publisher(broker.url) as publish:
                # Far more than the window and the sockets' buffers hold together.
                for seq in range(2_000):
                    await publish(sample(seq, sw_version="v" * 60, pad="p" * 4_000), qos=0)
                for seq in range(2_000, 2_100):
                    await publish(sample(seq))
            await until(lambda: worker.service.source.inbox.full, "a full window")
            # One read of the socket may go over the window, no more.
            assert worker.in_flight < 50 + 256 * 1024 / 4_000 + 50
        await worker.settles(2_100)
        assert await database.count() == 2_100
        assert worker.metric("iov_reconnects_total", peer="broker") == 0
    await lock.close()


async def test_two_workers_in_one_group_share_the_load(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with (
        working(broker.url, database.url, catalogue, mqtt_client_id="a", mqtt_client=client) as one,
        working(broker.url, database.url, catalogue, mqtt_client_id="b", mqtt_client=client) as two,
    ):
        await publish_many(broker.url, [sample(seq) for seq in range(200)])
        await until(lambda: one.settled() + two.settled() >= 200, "200 samples")
        assert one.settled() == two.settled() == 100
    assert await database.count() == 200


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def tls_broker(tmp_path: Path, authority: trustme.CA) -> AsyncIterator[Mosquitto]:
    """A broker that speaks TLS and asks for a client certificate."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = authority.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    worker = authority.issue_cert("worker@example.org")
    worker.private_key_pem.write_to_path(tmp_path / "worker.key")
    worker.cert_chain_pems[0].write_to_path(tmp_path / "worker.pem")
    extra = (
        f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/server.pem\n"
        f"keyfile {tmp_path}/server.key\nrequire_certificate true\n"
    )
    async with mosquitto(extra) as running:
        yield running


async def test_tls_with_client_certificates(
    client: str, tls_broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, tmp_path: Path
) -> None:
    files: dict[str, Any] = {
        "mqtt_ca_file": str(tmp_path / "ca.pem"),
        "mqtt_cert_file": str(tmp_path / "worker.pem"),
        "mqtt_key_file": str(tmp_path / "worker.key"),
    }
    url = f"mqtts://localhost:{tls_broker.port}"
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    context.load_cert_chain(tmp_path / "worker.pem", tmp_path / "worker.key")
    async with working(url, database.url, catalogue, mqtt_client=client, **files) as worker:
        plain = f"mqtt://localhost:{tls_broker.port}"
        async with publisher(plain, tls_context=context) as publish:
            for seq in range(300):
                await publish(sample(seq))
        await worker.settles(300)
        assert await database.count() == 300


async def test_a_certificate_of_another_authority_is_refused(
    client: str, tls_broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    url = f"mqtts://localhost:{tls_broker.port}"
    async with working(
        url, database.url, catalogue, wait=False, mqtt_client=client,
        mqtt_ca_file=str(tmp_path / "other.pem"),
    ) as worker:  # fmt: skip
        await until(lambda: "certificate" in str(worker.service.source.problem).lower(), "refusal")


async def test_user_and_password(
    client: str, database: OwnDatabase, catalogue: Catalogue, tmp_path: Path
) -> None:
    import subprocess

    passwords = tmp_path / "passwords"
    passwords.touch()
    # Where mosquitto is not installed, it is unpacked beside this Python.
    places = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
    subprocess.run(  # noqa: ASYNC221  before anything runs
        ["mosquitto_passwd", "-b", passwords, "worker", "s3cr3t"], check=True, env={"PATH": places}
    )
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t\n")
    async with mosquitto(f"allow_anonymous false\npassword_file {passwords}\n") as broker:
        good: dict[str, Any] = {"mqtt_username": "worker", "mqtt_password_file": str(secret)}
        async with working(broker.url, database.url, catalogue, mqtt_client=client, **good):
            pass
        wrong: dict[str, Any] = {"mqtt_username": "worker", "mqtt_password": "wrong"}
        async with working(
            broker.url, database.url, catalogue, wait=False, mqtt_client=client, **wrong
        ) as worker:
            await until(lambda: "authorized" in str(worker.service.source.problem).lower(), "why")
            assert "wrong" not in str(worker.service.source.problem)


async def test_websockets(database: OwnDatabase, catalogue: Catalogue) -> None:
    from ingest.lab.embedded import free_port

    port = free_port()
    async with mosquitto(f"listener {port} 127.0.0.1\nprotocol websockets\n") as broker:
        url = f"ws://127.0.0.1:{port}/mqtt"
        async with working(url, database.url, catalogue) as worker:
            await publish_many(broker.url, [sample(seq) for seq in range(20)])
            await worker.settles(20)
            assert await database.count() == 20


async def test_auto_reads_a_broker_that_only_speaks_mqtt_3(
    database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with (
        amqtt() as url,
        working(url, database.url, catalogue, mqtt_group="") as worker,
    ):
        async with publisher(url, version_5=False) as publish:
            for seq in range(20):
                await publish(sample(seq))
        await worker.settles(20)
        assert await database.count() == 20


async def test_a_maximum_packet_size_is_asked_of_the_broker(
    client: str, broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with working(
        broker.url, database.url, catalogue, mqtt_client=client, max_payload_bytes="1000"
    ) as worker:
        async with publisher(broker.url) as publish:
            await publish(b"x" * 1_001)
            await publish(b"x" * 5_000)  # the broker discards it
            await publish(sample(1))
        await worker.settles(2)
        assert await database.reasons() == ["too_large"]
        assert await database.count() == 1
