"""Finds out whether a broker that does not answer CONNECT speaks MQTT 3.1.1 only.

A 3.1.1 broker may mistake the properties of an MQTT 5 CONNECT for a long client identifier and
wait for the rest of it (amqtt 0.12 does). To a CONNECT without properties it answers that it does
not know the version.
"""

from __future__ import annotations

import asyncio

import mqtt5

from ingest.broker import Broker

CONNACK_OF_MQTT_3 = bytes.fromhex("20020001")
"""MQTT 3.1.1, 3.2.2.3: unacceptable protocol version. No MQTT 5 CONNACK is that short."""

_TIMEOUT_S = 5.0


async def refuses_mqtt5(broker: Broker) -> bool:
    """Return True if the broker refuses MQTT 5, False if it answers anything else or nothing.

    Uses a client identifier of its own, keeps no session and subscribes to nothing.
    """
    password = broker.secret()
    connect = mqtt5.ConnectPacket(
        f"{broker.client_id}-version",
        username=broker.username,
        password=password.encode() if password is not None else None,
        clean_start=True,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                broker.host, broker.port, ssl=broker.tls()
            )
            try:
                writer.write(connect.write())
                return await reader.readexactly(len(CONNACK_OF_MQTT_3)) == CONNACK_OF_MQTT_3
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
