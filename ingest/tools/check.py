"""`check`: what is wrong with configuration, schemas, broker and database, and how to mend it.

At the broker it uses a client identifier, a topic and a group of its own: a visitor in the
workers' group would take its share of their messages and lose it.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from ingest.config import Settings
from ingest.errors import NotReady, SchemaError, Unavailable
from ingest.schema import Catalogue, load_catalogue
from ingest.store import connect, durability_problem, expect_migrated, meaning
from ingest.tools.publisher import client_for

_TIMEOUT_S = 10.0


async def check(settings: Settings) -> list[str]:
    """Every problem found, one sentence each; empty where the service would be ready."""
    problems: list[str] = []
    catalogue: Catalogue = {}
    try:
        catalogue = load_catalogue(settings.schema_dir)
    except SchemaError as exc:
        problems.append(f"schemas: {exc}")
    async with asyncio.TaskGroup() as tasks:
        broker = tasks.create_task(_broker(settings), name="check broker")
        database = tasks.create_task(_database(settings, catalogue), name="check database")
    return [*problems, *broker.result(), *database.result()]


async def _database(settings: Settings, catalogue: Catalogue) -> list[str]:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            connection = await connect(settings, "iov-ingest check")
            try:
                await expect_migrated(connection, catalogue)
                problem = await durability_problem(connection)
                return [f"database: {problem}"] if problem else []
            finally:
                connection.terminate()
    except Exception as exc:
        match meaning(exc):
            case NotReady() as failure:
                return [f"database: {failure}"]
            case Unavailable() as failure:
                return [f"database: not reached ({failure}): is it up, and IOV_DATABASE_URL right?"]
        raise


async def _broker(settings: Settings) -> list[str]:
    where = f"{settings.broker.hostname}:{settings.broker_port}"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            for version in (aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311):
                try:
                    await _round_trip(settings, version)
                except MqttConnectError:
                    if version is aiomqtt.ProtocolVersion.V311:
                        raise
                else:
                    return []
    except TimeoutError:
        return [f"broker: {where} does not answer: is it up, and IOV_MQTT_URL right?"]
    except aiomqtt.MqttError as exc:
        return [f"broker: {where}: {exc}: check IOV_MQTT_URL, user, password and TLS files"]
    return []


async def _round_trip(settings: Settings, version: aiomqtt.ProtocolVersion) -> None:
    """One message through a subscription like the workers', beside theirs."""
    name = f"iov-check-{uuid4().hex[:12]}"
    topic = f"iov-check/{name}"
    filter_ = f"$share/{name}/{topic}" if settings.mqtt_group else topic
    async with client_for(settings, name, version) as client:
        await client.subscribe(filter_, qos=1)
        await client.publish(topic, b"iov-ingest check", qos=1)
        async for _ in client.messages:
            return
