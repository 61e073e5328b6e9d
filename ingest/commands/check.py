"""`check`: finds problems of configuration, schemas, broker and database, says how to mend them.

At the broker it uses a client identifier, a topic and a group of its own: a visitor in the
workers' group would receive a share of their messages and lose them. No MQTT packet says how many
messages a broker lets one client have unacknowledged, or how many more it keeps for that client.
So both are measured, with a client that acknowledges nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import uuid4

import aiomqtt
import orjson
import typer
from aiomqtt.exceptions import MqttConnectError
from rich.markup import escape

from ingest.broker import Broker
from ingest.cancelled import unless_cancelled
from ingest.check import Checker
from ingest.commands.common import (
    ConfigOption,
    JsonOption,
    complain,
    ending,
    people,
    run_async,
    settings_of,
)
from ingest.commands.message import Message
from ingest.commands.publisher import Publisher, client_for
from ingest.config import Settings
from ingest.decode import filter_fault
from ingest.errors import ConfigError, SchemaError, Unavailable
from ingest.model import GBT32960
from ingest.schema import Catalogue, digest_of, load_catalogue
from ingest.source import Inbox
from ingest.source.client import Stay, UnsupportedVersion
from ingest.source.mqtt5 import Mqtt5Client
from ingest.store import (
    away,
    connect,
    durability_problem,
    expect_migrated,
    may_be_accepted,
    register,
    translated,
)
from ingest.store.heartbeat import mend

PROBES = 3_000
"""Number of messages sent to measure the broker's window and its queue for one client."""
_FEW = 1_000
"""Number of messages in the broker's window below which `check` warns: the commit's latency limits
the rate then. 200 in 5 ms are 40,000 a second at best, and a slow disk takes 50 ms."""
_TIMEOUT_S = 10.0
_QUIET_S = 0.5
_LOOK_EVERY_S = 0.05
_DATABASE = """
SELECT current_setting('server_version') AS server_version, current_setting('fsync') AS fsync,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('full_page_writes') AS full_page_writes,
    (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS timescaledb,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser
"""


app = typer.Typer()


@dataclass
class Findings:
    """Result of `check`; all is fine if there are no problems."""

    problems: list[str] = field(default_factory=list)
    """Things that lose data or keep the service from being ready, one sentence each."""
    warnings: list[str] = field(default_factory=list)
    """Things that make the service slow, or less safe than it could be."""
    measured: dict[str, Any] = field(default_factory=dict)


@app.command(name="check")
def check_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check configuration, schemas, broker and database: what is wrong, and how to mend it.

    Measures how many messages the broker lets one client have unacknowledged, and how many more it
    keeps for a client that is behind. For this it uses a client, a topic (`iov-check/…`) and a
    group of its own; no worker receives these messages. Ends with status 1 if something loses data
    or keeps the service from being ready.
    """
    try:
        settings = settings_of(config, "IOV_MQTT_URL", "IOV_DATABASE_URL")
    except ConfigError as exc:
        _say_check(Findings(exc.problems), as_json=as_json)
        raise typer.Exit(2) from exc
    with ending():
        found: Findings = run_async(check(settings))
        _say_check(found, as_json=as_json)
        if found.problems:
            raise typer.Exit(1)


def _say_check(found: Findings, *, as_json: bool) -> None:
    for problem in found.problems:
        complain("✗", problem)
    for warning in found.warnings:
        people.print(f"[bold yellow]![/] {escape(warning)}", highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(orjson.dumps({"ok": not found.problems, **asdict(found)}).decode())
        return
    for name, value in found.measured.items():
        typer.echo(f"{name:20} {value}")
    if not found.problems:
        typer.echo("configuration, schemas, broker and database are fine")


async def check(settings: Settings) -> Findings:
    """Check schemas, broker and database; return what was found."""
    found = Findings()
    catalogue: Catalogue = {}
    try:
        catalogue = load_catalogue(settings.schema_dir, digest_of(settings.digest_key_file))
    except SchemaError as exc:
        found.problems.append(f"schemas: {exc}")
    if settings.digest_key_file is None:
        found.warnings.append(
            "IOV_DIGEST_KEY_FILE is not set: digests of ICCIDs and drivers can be guessed"
        )
    Checker.of(catalogue, settings)  # raises ConfigError for a wrong file of units
    fault = filter_fault(settings.mqtt_topic, {*catalogue, GBT32960}) if catalogue else None
    if fault is not None:
        found.problems.append(f"IOV_MQTT_TOPIC {settings.mqtt_topic}: {fault}")
    await _broker(settings, found)
    await _database(settings, catalogue, found)
    return found


async def _database(settings: Settings, catalogue: Catalogue, found: Findings) -> None:
    where, state = f"database {settings.database.address}", dict[str, Any]()
    try:
        with translated(away):
            async with asyncio.timeout(_TIMEOUT_S):
                connection = await connect(settings.database, "iov-ingest check")
                try:
                    state = dict(await connection.fetchrow(_DATABASE))
                    if problem := await durability_problem(connection):
                        accepted = may_be_accepted(problem, settings)
                        told = found.warnings if accepted else found.problems
                        told.append(f"{where}: {problem}")
                    await expect_migrated(connection, catalogue)
                    workers = register.Register(connection, settings.broker)
                    for gone in await workers.silent(register.SILENT_S):
                        found.problems.append(
                            f"worker {gone.client_id} is silent: {mend(gone.client_id)}"
                        )
                finally:
                    connection.terminate()
    except Unavailable as failure:
        found.problems.append(f"{where}: {failure}")
    if state.pop("is_superuser", False):
        found.warnings.append(
            f"{where}: IOV_DATABASE_URL names a superuser: a worker needs the role iov_worker only"
        )
    if state.get("full_page_writes") == "off":
        found.problems.append(f"{where}: full_page_writes is off: a power cut may damage it")
    found.measured |= {name: value for name, value in state.items() if value is not None}


async def _broker(settings: Settings, found: Findings) -> None:
    where = f"broker {settings.broker.address}"
    try:
        async with asyncio.timeout(_TIMEOUT_S * 2):
            if settings.broker.is_web or settings.mqtt_client == "aiomqtt":
                await _round_trip(settings.broker, aiomqtt.ProtocolVersion.V5)
            else:
                await _measure(settings, found)
    except (UnsupportedVersion, MqttConnectError):
        await _version_3(settings, found, where)
    except TimeoutError:
        found.problems.append(f"{where}: no answer: is IOV_MQTT_URL right?")
    except (Unavailable, aiomqtt.MqttError) as exc:
        found.problems.append(f"{where}: {exc}")


async def _version_3(settings: Settings, found: Findings, where: str) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await _round_trip(settings.broker, aiomqtt.ProtocolVersion.V311)
    except TimeoutError:
        found.problems.append(f"{where}: passes no message on within {_TIMEOUT_S:.0f} s")
    except aiomqtt.MqttError as exc:
        found.problems.append(f"{where}: {exc}")
    else:
        found.warnings.append(
            f"{where}: speaks MQTT 3.1.1 only: slower, and its limits are not seen"
        )


async def _round_trip(broker: Broker, version: aiomqtt.ProtocolVersion) -> None:
    """Publish one message and receive it, through a subscription like the workers'."""
    own = _own(broker)
    async with client_for(broker, own.client_id, version) as client:
        await client.subscribe(own.subscription, qos=1)
        await client.publish(own.topic, b"iov-ingest check", qos=1)
        unless_cancelled()
        async for _ in client.messages:
            return


def _own(broker: Broker) -> Broker:
    """Return a visitor's settings: its own name, topic and group; its session is not kept."""
    name = f"iov-check-{uuid4().hex[:12]}"
    return replace(
        broker,
        client_id=name,
        topic=f"iov-check/{name}",
        group=name if broker.group else "",
        receive_maximum=65_535,
        session_expiry_s=0,
    )


async def _measure(settings: Settings, found: Findings) -> None:
    """Measure how many messages come without any acknowledgement, then how many in all."""
    broker = settings.broker
    own, where = _own(broker), f"broker {broker.address}"
    inbox = Inbox(PROBES + 1)
    async with _subscribed(own, inbox) as session:
        if broker.group:
            found.measured["shared_subscriptions"] = True
        if not await _try_to_publish(broker, own.topic, inbox):
            found.warnings.append(
                f"{where}: its limits were not measured: this user may not publish to iov-check/#"
            )
            return
        async with Publisher(settings.broker) as publisher:
            await publisher.publish_all(_probes(own.topic), lambda _: None)
        window = await _quiet(inbox)
        settling = asyncio.create_task(_settle(inbox), name="check settle")
        arrived = await _quiet(inbox)
        inbox.close()
        await settling
        if session.done():
            session.result()  # raises why the connection ended: nothing was measured
    found.measured["broker_window"] = window if window < PROBES else f"at least {PROBES}"
    if window < _FEW:
        found.warnings.append(
            f"{where}: lets a client have {window} messages unacknowledged, so the rate is at most "
            f"{window} in the time of a commit: raise max_inflight_messages (mosquitto) or "
            "mqtt.max_inflight (EMQX)"
        )
    if arrived < PROBES:
        kept = arrived - window
        found.measured["broker_queue"] = kept
        found.problems.append(
            f"{where}: keeps {kept} messages for a client that is behind and drops the rest: set "
            "max_queued_messages 0 (mosquitto) or mqtt.max_mqueue_len (EMQX)"
        )
    else:
        queued = PROBES - window
        found.measured["broker_queue"] = f"at least {queued}" if queued else "no limit seen"


@asynccontextmanager
async def _subscribed(own: Broker, inbox: Inbox) -> AsyncIterator[asyncio.Task[None]]:
    """Hold a subscription of our own while the block runs; raise the error if it cannot be made.

    Yields the session's task, which is done once the connection has ended.
    """
    subscribed = asyncio.Event()
    client = Mqtt5Client(own, inbox, Stay(own.subscription), clean_start=True)
    session = asyncio.create_task(client.session(lambda _: subscribed.set()), name="check session")
    made = asyncio.create_task(subscribed.wait(), name="check subscribed")
    try:
        await asyncio.wait([session, made], return_when=asyncio.FIRST_COMPLETED)
        if session.done():
            session.result()
        yield session
    finally:
        made.cancel()
        session.cancel()
        await asyncio.wait([session])


async def _try_to_publish(broker: Broker, topic: str, inbox: Inbox) -> bool:
    """Publish a message and return whether it comes back; some brokers drop it without a word."""
    name = f"iov-check-{uuid4().hex[:12]}"
    try:
        async with client_for(broker, name, aiomqtt.ProtocolVersion.V5) as client:
            await client.publish(topic, b"iov-ingest check", qos=1, timeout=_QUIET_S)
    except aiomqtt.MqttError as exc:
        unless_cancelled(exc)
        return False
    unless_cancelled()
    return await _quiet(inbox) > 0


async def _probes(topic: str) -> AsyncIterator[Message]:
    for number in range(PROBES - 1):
        yield Message(topic, str(number).encode(), 1)


async def _settle(inbox: Inbox) -> None:
    """Acknowledge what has come and what still comes."""
    async for deliveries in inbox:
        inbox.settle(deliveries)


async def _quiet(inbox: Inbox) -> int:
    """Wait until no message has come for `_QUIET_S`; return how many came in all."""
    taken, since_s = -1, time.monotonic()
    while taken != inbox.taken or time.monotonic() - since_s < _QUIET_S:
        if taken != inbox.taken:
            taken, since_s = inbox.taken, time.monotonic()
        await asyncio.sleep(_LOOK_EVERY_S)
    return taken
