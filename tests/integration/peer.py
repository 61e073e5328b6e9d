"""A neighbour for `bench peer`: reads the broker and inserts rows, as simply as can be."""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import urlsplit

import aiomqtt
import asyncpg


async def main(mqtt_url: str, database_url: str) -> None:
    """Store every payload, for ever."""
    broker = urlsplit(mqtt_url)
    database = await asyncpg.connect(database_url)
    await database.execute("CREATE TABLE peer (payload jsonb)")
    async with aiomqtt.Client(broker.hostname or "", broker.port or 1883) as client:
        await client.subscribe("iov/v1/+/+", qos=1)
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            await database.execute("INSERT INTO peer VALUES ($1)", message.payload.decode())


asyncio.run(main(*sys.argv[1:]))
