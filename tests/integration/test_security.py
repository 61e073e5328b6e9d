"""Who may do what: the shipped broker configuration, TLS, the worker's database user, secrets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import asyncpg
import pytest
import trustme

from ingest.child import child
from ingest.config import load
from ingest.errors import NotReady
from ingest.lab.embedded import Mosquitto, free_port, mosquitto_path, reachable
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import migrate
from tests.support import (
    OwnDatabase,
    environment,
    may_not,
    publish_many,
    publisher,
    sample,
    working,
)

DEPLOY = Path(__file__).parents[2] / "deploy" / "mosquitto"
LAST_YEAR = datetime.now(UTC) - timedelta(days=365)


class Identity:
    """Certificate and key of somebody, in files."""

    def __init__(self, directory: Path, name: str, authority: trustme.CA, **more: Any) -> None:
        issued = authority.issue_cert("localhost", common_name=name, **more)
        self.cert, self.key = directory / f"{name}.pem", directory / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(self.cert)
        issued.private_key_pem.write_to_path(self.key)
        for file in (self.cert, self.key):
            file.chmod(0o644)

    def context(self, ca: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(self.cert, self.key)
        return context

    def settings(self, ca: Path) -> dict[str, Any]:
        return {
            "mqtt_ca_file": str(ca),
            "mqtt_cert_file": str(self.cert),
            "mqtt_key_file": str(self.key),
        }


class Shipped:
    """mosquitto with `deploy/mosquitto`, its certificates and ports put in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = {"8883": free_port(), "8884": free_port()}
        self.vehicles, self.workers = trustme.CA(), trustme.CA()
        self.server_ca = directory / "workers-ca.pem"
        self.vehicles.cert_pem.write_to_path(directory / "vehicles-ca.pem")
        self.workers.cert_pem.write_to_path(self.server_ca)
        Identity(directory, "server", self.workers)
        self.url = f"mqtts://localhost:{self.ports['8884']}"

    def configuration(self) -> Path:
        text = (DEPLOY / "mosquitto.conf").read_text()
        acl = self.directory / "acl"
        acl.write_text((DEPLOY / "acl").read_text())
        acl.chmod(0o644)
        text = text.replace("/etc/mosquitto/certs", str(self.directory))
        text = text.replace("/etc/mosquitto/acl", str(acl))
        text = text.replace("/var/lib/mosquitto/", f"{self.directory}/")
        for port, free in self.ports.items():
            text = text.replace(f"listener {port}\n", f"listener {free} 127.0.0.1\n")
        file = self.directory / "mosquitto.conf"
        file.write_text(text + ("user root\n" if os.geteuid() == 0 else ""))
        return file

    def worker(self) -> dict[str, Any]:
        identity = Identity(self.directory, "iov.ingest", self.workers)
        return identity.settings(self.server_ca) | {
            "mqtt_topic": "vehicles/iov/v1/+/+",
            "mqtt_client_id": "iov.ingest-1",
        }

    def thief(self, name: str, **more: Any) -> aiomqtt.Client:
        """A vehicle with a good certificate of its own, and other intentions."""
        context = Identity(self.directory, name, self.vehicles).context(self.server_ca)
        return aiomqtt.Client(
            "localhost", int(self.ports["8883"]), tls_context=context,
            protocol=aiomqtt.ProtocolVersion.V5, **more,
        )  # fmt: skip

    def vehicle(self, name: str, **more: Any) -> Any:
        context = Identity(self.directory, name, self.vehicles).context(self.server_ca)
        return publisher(f"mqtt://localhost:{self.ports['8883']}", tls_context=context, **more)


@pytest.fixture
async def shipped(tmp_path: Path) -> AsyncIterator[Shipped]:
    broker = Shipped(tmp_path)
    path = mosquitto_path()
    assert path is not None
    process = await child(path, "-c", str(broker.configuration()))
    for port in broker.ports.values():
        await reachable("127.0.0.1", port)
    yield broker
    process.terminate()
    await process.wait()


async def test_a_vehicle_publishes_as_itself_and_as_nobody_else(
    shipped: Shipped, database: OwnDatabase, catalogue: Catalogue
) -> None:
    async with working(shipped.url, database.url, catalogue, **shipped.worker()) as worker:
        for topic in ("iov/v1/V2/nev", "vehicles/iov/v1/V2/nev", "../iov/v1/V2/nev"):
            with contextlib.suppress(aiomqtt.MqttError):  # mosquitto hangs up on it
                async with shipped.vehicle("V1", timeout=1) as publish:
                    await publish(sample(1), topic)
        async with shipped.vehicle("V1") as publish:
            await publish(sample(2), "iov/v1/V1/nev")
        await worker.settles(1)
    assert [r[0] for r in await database.all("SELECT device FROM iov.device")] == ["V1"]
    assert await database.reasons() == []


@pytest.mark.parametrize("name", ["THIEF", "iov-ingest", "ingest"])
async def test_a_vehicle_reads_nothing_and_takes_nobodys_turn(
    name: str, shipped: Shipped, database: OwnDatabase, catalogue: Catalogue
) -> None:
    thief = shipped.thief(name)
    async with working(shipped.url, database.url, catalogue, **shipped.worker()) as worker, thief:
        for filter_ in (
            "#", "iov/v1/#", "vehicles/#", "$share/ingest/vehicles/iov/v1/+/+",
            "$share/ingest/iov/v1/+/+", "$share/ingest/#",
        ):  # fmt: skip
            await thief.subscribe(filter_, qos=1)
        async with shipped.vehicle("V1") as publish:
            for seq in range(60):
                await publish(sample(seq), "iov/v1/V1/nev")
        await worker.settles(60)
        assert await database.count() == 60
        assert len(thief.messages) == 0


async def test_a_vehicle_does_not_take_a_workers_session(
    shipped: Shipped, database: OwnDatabase, catalogue: Catalogue
) -> None:
    settings = shipped.worker()
    async with working(shipped.url, database.url, catalogue, **settings):
        pass  # a restart: the broker keeps what comes meanwhile
    async with shipped.vehicle("V1") as publish:
        for seq in range(50):
            await publish(sample(seq), "iov/v1/V1/nev")
    async with shipped.thief("THIEF", identifier="iov.ingest-1", clean_start=True):
        pass
    async with working(shipped.url, database.url, catalogue, **settings) as worker:
        async with shipped.thief("THIEF", identifier="iov.ingest-1", clean_start=True):
            await worker.settles(50)
        assert worker.metric("iov_reconnects_total", peer="broker") == 0
    assert await database.count() == 50


async def test_a_vehicle_is_not_let_in_at_the_workers_door(shipped: Shipped) -> None:
    context = Identity(shipped.directory, "V1", shipped.vehicles).context(shipped.server_ca)
    door = aiomqtt.Client("localhost", shipped.ports["8884"], tls_context=context, timeout=2)
    with pytest.raises(aiomqtt.MqttError):
        async with door:
            pass


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


async def tls_server(
    certificate: trustme.LeafCert, *, most: ssl.TLSVersion | None = None
) -> asyncio.Server:
    """Somebody who shows a certificate and says nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if most is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = most
        context.set_ciphers("ALL:@SECLEVEL=0")

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    return await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.*:DeprecationWarning")
@pytest.mark.parametrize("fault", ["expired", "another host", "another authority", "TLS 1.1"])
async def test_a_broker_that_cannot_be_trusted_is_refused(
    fault: str, client: str, authority: trustme.CA, tmp_path: Path, catalogue: Catalogue
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issuer = trustme.CA() if fault == "another authority" else authority
    host = "elsewhere.example.org" if fault == "another host" else "localhost"
    dates: dict[str, Any] = {"not_after": LAST_YEAR} if fault == "expired" else {}
    most = ssl.TLSVersion.TLSv1_1 if fault == "TLS 1.1" else None
    server = await tls_server(issuer.issue_cert(host, **dates), most=most)
    port = server.sockets[0].getsockname()[1]
    async with working(
        f"mqtts://localhost:{port}", "postgresql:///unused", catalogue, wait=False,
        mqtt_client=client, mqtt_ca_file=str(tmp_path / "ca.pem"),
    ) as worker:  # fmt: skip
        expected = r"version|protocol|alert|Connection|hung up" if most else r"certificate|hostname"
        await until(
            lambda: re.search(expected, str(worker.service.source.problem), re.IGNORECASE),
            "the refusal",
        )
        assert worker.metric("iov_mqtt_connected") == 0
    server.close()


@pytest.mark.parametrize("fault", ["expired", "another authority", "none"])
async def test_a_worker_without_a_good_certificate_is_refused(
    fault: str, client: str, shipped: Shipped, database: OwnDatabase, catalogue: Catalogue
) -> None:
    issuer = trustme.CA() if fault == "another authority" else shipped.workers
    dates: dict[str, Any] = {"not_after": LAST_YEAR} if fault == "expired" else {}
    identity = Identity(shipped.directory, "iov.ingest", issuer, **dates)
    files = identity.settings(shipped.server_ca)
    if fault == "none":
        files = {"mqtt_ca_file": str(shipped.server_ca)}
    async with working(
        shipped.url, database.url, catalogue, wait=False, mqtt_client=client, **files
    ) as worker:
        first = worker.service.source.problem
        await until(lambda: worker.service.source.problem != first, "the refusal")
        assert worker.service.source.problem is not None
        assert worker.metric("iov_mqtt_connected") == 0


@pytest.fixture
async def worker_user(database: OwnDatabase) -> str:
    """A database user that is in iov_worker and in nothing else."""
    return await database.user("plain_worker", "iov_worker")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT vin FROM iov.device",
        "SELECT * FROM iov.device",
        "SELECT kind, region, fleet FROM iov.device",
        "UPDATE iov.device SET vin = 'x'",
        "INSERT INTO iov.device (device, vin, first_seen_at) VALUES ('x', 'y', now())",
        "DELETE FROM iov.nev",
        "UPDATE iov.nev SET soc_pct = 1",
        "TRUNCATE iov.nev",
        "DROP TABLE iov.nev",
        "ALTER TABLE iov.nev ADD COLUMN x int",
        "CREATE TABLE iov.mine (x int)",
        "CREATE TABLE public.mine (x int)",
        "DROP SCHEMA iov CASCADE",
        "SELECT payload FROM iov.dead_letter",
        "DELETE FROM iov.dead_letter",
        "GRANT SELECT ON iov.device TO PUBLIC",
        "COPY iov.nev TO PROGRAM 'cat'",
        "CREATE FUNCTION iov.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT iov.make_partition('device', current_date)",
        "SELECT iov.make_partition('nev; DROP TABLE iov.nev', current_date)",
    ],
)
async def test_the_workers_user_may_not(statement: str, worker_user: str) -> None:
    connection = await asyncpg.connect(worker_user)
    refused = (
        asyncpg.InsufficientPrivilegeError,
        asyncpg.UndefinedTableError,  # what make_partition says of what is no stream
    )
    with pytest.raises(refused):
        await connection.execute(statement)
    await connection.close()


async def test_the_workers_user_may_work(
    worker_user: str, database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    late = datetime.now(UTC) - timedelta(days=20)
    async with working(broker.url, worker_user, catalogue) as worker:
        await publish_many(broker.url, [sample(1), sample(2, late), b"junk"])
        await worker.settles(3)
    assert await database.count() == 2


async def test_migrate_is_for_another_role(worker_user: str, catalogue: Catalogue) -> None:
    changed = load(environ={"IOV_DATABASE_URL": worker_user})
    await may_not(worker_user, "INSERT INTO iov.migration (version) VALUES (99)")
    with pytest.raises(NotReady, match=r"42501 .*: migrate as the owner of schema iov") as refused:
        await migrate(changed, catalogue)
    assert "run iov-ingest migrate" not in str(refused.value)


@pytest.fixture
async def reader_url(database: OwnDatabase) -> str:
    """A database user that is in iov_reader and in nothing else."""
    return await database.user("plain_reader", "iov_reader")


async def test_a_reader_reads_every_stream_and_nothing_private(
    reader_url: str, catalogue: Catalogue
) -> None:
    connection = await asyncpg.connect(reader_url)
    for stream in catalogue.values():
        await connection.fetch(f"SELECT * FROM iov.{stream.table} LIMIT 1")
    await connection.fetch("SELECT device_id, device, kind, region, fleet FROM iov.device")
    await connection.fetch("SELECT * FROM iov.vehicle JOIN iov.nev USING (device_id)")
    await connection.fetch("SELECT reason, detail, topic FROM iov.dead_letter")
    await connection.fetch("SELECT client_id, heartbeat_at FROM iov.worker")
    await connection.close()
    await may_not(
        reader_url,
        "SELECT vin FROM iov.device",
        "SELECT payload FROM iov.dead_letter",
        "SELECT * FROM iov.migration",
        "INSERT INTO iov.device (device, first_seen_at) VALUES ('x', now())",
        "DELETE FROM iov.nev",
        "UPDATE iov.worker SET leave_requested = true",
        "SELECT iov.make_partition('nev', current_date)",
    )


async def test_a_database_that_is_older_than_its_readers_lets_them_in(
    reader_url: str, database: OwnDatabase, catalogue: Catalogue
) -> None:
    await database.execute(
        "DELETE FROM iov.migration WHERE version = 4; DROP TABLE iov.truck;"
        "REVOKE ALL ON ALL TABLES IN SCHEMA iov FROM iov_reader"
    )
    await migrate(load(environ={"IOV_DATABASE_URL": database.url}), catalogue)
    connection = await asyncpg.connect(reader_url)
    for stream in catalogue.values():
        await connection.fetch(f"SELECT * FROM iov.{stream.table} LIMIT 1")
    await connection.close()
    await may_not(reader_url, "SELECT vin FROM iov.device")


SECRETS = ("br0k3r-s3cr3t", "d4t4b4s3-s3cr3t", "t0k3n-s3cr3t")


async def test_no_secret_is_ever_said(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue
) -> None:
    """Everything goes wrong at the most talkative level; then every word is searched."""
    mqtt_secret, database_secret, token = SECRETS
    port = free_port()
    good = database.url.replace("postgres:@", f"postgres:{database_secret}@")
    assert database_secret in good
    said = b""
    unreadable = f"postgresql://nobody:{database_secret}/@127.0.0.1/x"
    for mqtt_url, database_url in (
        (broker.url, good),
        (f"mqtt://127.0.0.1:{free_port()}", good),
        (broker.url, f"postgresql://nobody:{database_secret}@127.0.0.1:{free_port()}/x"),
        (broker.url, unreadable),
    ):
        environ = environment(
            mqtt_url, database_url, http_port=str(port), log_level="debug",
            mqtt_username="worker", mqtt_password=mqtt_secret, http_token=token,
        )  # fmt: skip
        commands = ("run", "check", "migrate", "leave") if "nobody" in database_url else ("run",)
        for command in commands:
            process = await child(
                sys.executable, "-m", "ingest", command, env=os.environ | environ,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            if command == "run" and database_url != unreadable:
                said += await asked(port)
                process.terminate()
            out, _ = await process.communicate()
            said += out
    assert b"started" in said
    assert b"not connected" in said
    for secret in SECRETS:
        assert secret.encode() not in said
    assert catalogue


async def asked(port: int) -> bytes:
    """What a worker says over HTTP, from the moment it answers."""
    said = b""

    async def answers() -> bool:
        nonlocal said
        try:
            async with aiohttp.ClientSession() as client:
                for path in ("/readyz", "/livez", "/metrics", "/status", "/"):
                    async with client.get(f"http://127.0.0.1:{port}{path}") as answer:
                        said += await answer.read() + str(answer.headers).encode()
        except aiohttp.ClientError:
            return False
        return True

    await until(answers, "HTTP")
    await asyncio.sleep(0.5)  # for something to go wrong
    await answers()
    return said
