"""A broker that gives answers that a real one gives only when something is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import mqtt5


class Caller:
    """One client's connection as the fake broker sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = b""
        self.received: list[Any] = []
        """Every packet the client sent, in order."""

    async def next(self, kind: type[Any]) -> Any:
        """Return the next packet of this kind; packets before it go only to `received`."""
        while True:
            try:
                packet, size = mqtt5.read(memoryview(self._buffer))
            except IndexError:
                data = await self._reader.read(65_536)
                if not data:
                    raise EOFError from None
                self._buffer += data
                continue
            self._buffer = self._buffer[size:]
            self.received.append(packet)
            if isinstance(packet, kind):
                return packet

    def send(self, *packets: Any) -> None:
        for packet in packets:
            self._writer.write(packet if isinstance(packet, bytes) else packet.write())

    async def welcome(self, connack: Any = None, suback: Any = None) -> None:
        """Answer CONNECT and SUBSCRIBE, with success unless other answers are given."""
        await self.next(mqtt5.ConnectPacket)
        self.send(connack or mqtt5.ConnAckPacket())
        packet = await self.next(mqtt5.SubscribePacket)
        code = suback if suback is not None else mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE
        self.send(mqtt5.SubAckPacket(packet.packet_id, [code]))

    async def farewell(self) -> Any:
        """Return the client's DISCONNECT."""
        return await self.next(mqtt5.DisconnectPacket)

    async def closed(self) -> None:
        """Wait until the client has closed."""
        try:
            while True:
                await self.next(object)
        except (EOFError, ConnectionError):
            return


@asynccontextmanager
async def fake_broker(behave: Callable[[Caller], Any]) -> AsyncIterator[tuple[str, list[Caller]]]:
    """Run a broker that calls `behave` for every connection; yield (URL, connections so far)."""
    peers: list[Caller] = []
    tasks: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Caller(reader, writer)
        peers.append(peer)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await behave(peer)
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", peers
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
