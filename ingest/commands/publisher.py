"""Publisher on aiomqtt: many messages at a time, each sent until the broker acknowledges it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Self
from uuid import uuid4

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from ingest.broker import Broker
from ingest.cancelled import unless_cancelled
from ingest.commands.message import Message
from ingest.errors import Unavailable

_AT_ONCE = 100
_RETRY_S = 0.5
_ATTEMPTS, _FIRST_ATTEMPTS = 60, 10
"""Numbers of attempts: 30 s for a broker that was reached before, 5 s for one that never was."""
_TIMEOUT_S = 10.0
_QUIET = 1_000_000
"""Number of pending calls above which aiomqtt warns; its default of ten is low for a publisher."""


class Publisher:
    """Publisher over one connection, which it makes again if it breaks."""

    def __init__(
        self,
        broker: Broker,
        qos: int = 1,
        *,
        timeout_s: float = _TIMEOUT_S,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare to publish a message again if it is unacknowledged for `timeout_s`.

        `waiting` is called with the reason when the publisher has to wait, once for each reason.
        """
        self._waiting, self._told = waiting, ""
        self._was_there = False
        self._broker = broker
        self._qos = qos
        self._timeout_s = timeout_s
        self._client: aiomqtt.Client | None = None
        self._versions = [aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311]
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._leave(self._client)

    async def publish(
        self,
        topic: str,
        payload: bytes,
        user_properties: Mapping[str, str] | None = None,
        content_type: str | None = None,
    ) -> None:
        """Publish and wait for the acknowledgement of the QoS; again if the connection breaks.

        Raises Unavailable if the broker stays away. MQTT 3.1.1 has no properties.
        """
        properties = None
        if user_properties or content_type:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
            if user_properties:
                properties.UserProperty = list(user_properties.items())
            if content_type:
                properties.ContentType = content_type
        for _ in range(_ATTEMPTS):
            client = await self._connected()
            try:
                await client.publish(topic, payload, qos=self._qos, properties=properties)
            except aiomqtt.MqttError as exc:
                unless_cancelled(exc)
                await self._broken(client)
            else:
                unless_cancelled()
                return
        raise Unavailable(f"{self._named}: it accepts no messages")

    async def publish_all(
        self, messages: AsyncIterator[Message], done: Callable[[Message], None]
    ) -> None:
        """Publish messages as they come, 100 at a time; call `done` when each is acknowledged."""
        waiting: asyncio.Queue[Message | None] = asyncio.Queue(_AT_ONCE)

        async def work() -> None:
            while (message := await waiting.get()) is not None:
                user = {"content-encoding": message.encoding} if message.encoding else None
                await self.publish(message.topic, message.payload, user, message.content_type)
                done(message)

        async with asyncio.TaskGroup() as tasks:
            for number in range(_AT_ONCE):
                tasks.create_task(work(), name=f"publish {number}")
            async for message in messages:
                await waiting.put(message)
            for _ in range(_AT_ONCE):
                await waiting.put(None)

    async def _connected(self) -> aiomqtt.Client:
        why = ""
        async with self._lock:
            for _ in range(_ATTEMPTS if self._was_there else _FIRST_ATTEMPTS):
                if self._client is not None:
                    return self._client
                client = client_for(
                    self._broker,
                    f"iov-publish-{uuid4().hex[:12]}",
                    self._versions[0],
                    timeout_s=self._timeout_s,
                )
                try:
                    await client.__aenter__()
                except MqttConnectError as exc:
                    if len(self._versions) == 1:
                        raise Unavailable(f"{self._named}: it refused us: {exc}") from exc
                    del self._versions[0]
                except aiomqtt.MqttError as exc:
                    why = str(exc)
                    if why != self._told:
                        self._told = why
                        self._waiting(f"{self._named}: {why}")
                    await asyncio.sleep(_RETRY_S)
                else:
                    client.pending_calls_threshold = _QUIET
                    self._client, self._was_there = client, True
                unless_cancelled()
            raise Unavailable(f"{self._named}: {why}")

    @property
    def _named(self) -> str:
        return f"broker {self._broker.address}"

    async def _broken(self, client: aiomqtt.Client) -> None:
        async with self._lock:
            if self._client is client:
                self._client = None
                await self._leave(client)

    async def _leave(self, client: aiomqtt.Client) -> None:
        with contextlib.suppress(aiomqtt.MqttError):
            await client.__aexit__(None, None, None)


def client_for(
    broker: Broker,
    name: str,
    version: aiomqtt.ProtocolVersion,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> aiomqtt.Client:
    """Return a client of that name at the configured broker, with a clean session."""
    return aiomqtt.Client(
        broker.host,
        broker.port,
        username=broker.username,
        password=broker.secret(),
        identifier=name,
        protocol=version,
        max_inflight_messages=_AT_ONCE,
        tls_context=broker.tls(),
        transport="websockets" if broker.is_web else "tcp",
        websocket_path=broker.path if broker.is_web else None,
        timeout=timeout_s,
    )
