"""TCP proxy whose connections can be stalled (open and silent), cut, refused and listened to.

It stands between the service and its servers in `verify`, in the bench and in the tests. It listens
on loopback only.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import NamedTuple, Self

_READ_BYTES = 65_536
_HELD_BYTES = 1024 * 1024

Listen = Callable[[bytes], None]


class Listener(NamedTuple):
    """Callbacks for one connection; each gets every piece of data before it is passed on."""

    request: Listen
    """Callback for data from the client; `answer` gets the server's."""
    answer: Listen


def _deaf(_: bytes) -> None:
    """Ignore the data."""


class Proxy:
    """Proxy that passes every connection on to `host` and `port`, or to a Unix socket."""

    def __init__(
        self,
        host: str | None,
        port: int | None,
        path: str | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        listener: Callable[[], Listener] | None = None,
    ) -> None:
        """Prepare a proxy; it calls `listener` for each connection and uses `tls` to the server."""
        self._host, self._port_to, self._path, self._tls = host, port, path, tls
        self._listener = listener or (lambda: Listener(_deaf, _deaf))
        self._requests, self._answers = asyncio.Event(), asyncio.Event()
        self._accepting = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._until_stall = 0
        self.port = 0
        """Port that it listens on, at 127.0.0.1."""
        self.connections = 0
        """Number of connections that were made, including refused ones."""
        self.held = 0
        """Number of bytes that were read and wait for `flow`."""
        self.flow()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stall(self, after_bytes: int = 0) -> None:
        """Let nothing through any more, at once or after `after_bytes` more bytes."""
        self._until_stall = after_bytes
        if not after_bytes:
            self._requests.clear()
            self._answers.clear()

    def stall_requests(self) -> None:
        """Let the server's answers through, but no data from the client."""
        self._requests.clear()

    def abandon(self) -> None:
        """Stall all present connections for ever; let everything through on new connections."""
        self.stall()
        self._requests, self._answers = asyncio.Event(), asyncio.Event()
        self.flow()

    @property
    def stalled(self) -> bool:
        """True while no data from the client gets through."""
        return not self._requests.is_set()

    def flow(self) -> None:
        """Let everything through, and everybody in."""
        self._until_stall = 0
        self._requests.set()
        self._answers.set()
        self._accepting = True

    def cut(self) -> None:
        """Close every connection that is open."""
        for writer in list(self._writers):
            writer.transport.abort()

    def refuse(self) -> None:
        """Cut, and close every new connection at once."""
        self._accepting = False
        self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self._accepting:
            writer.transport.abort()
            return
        try:
            there = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        listener = self._listener()
        ways = (
            (reader, there[1], self._requests, listener.request),
            (there[0], writer, self._answers, listener.answer),
        )
        for source, target, open_, listen in ways:
            self._writers.add(target)
            task = asyncio.create_task(self._pump(source, target, open_, listen), name="proxy")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._path:
            return await asyncio.open_unix_connection(self._path)
        return await asyncio.open_connection(self._host, self._port_to, ssl=self._tls)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        open_: asyncio.Event,
        listen: Listen,
    ) -> None:
        try:
            while data := await source.read(_READ_BYTES):
                listen(data)
                data = await self._held(data, source, open_, listen)
                if self._until_stall:
                    passed, data = data[: self._until_stall], data[self._until_stall :]
                    target.write(passed)
                    self._until_stall -= len(passed)
                    if not self._until_stall:
                        self.stall()
                    data = await self._held(data, source, open_, listen)
                if target.transport.is_closing():
                    return  # cut while it was held
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.transport.abort()
            self._writers.discard(target)

    async def _held(
        self, data: bytes, source: asyncio.StreamReader, open_: asyncio.Event, listen: Listen
    ) -> bytes:
        """Wait until the way is open; return the data that may pass then.

        Until then, go on reading and calling `listen`, up to `_HELD_BYTES`: a PUBACK that is held
        here was sent all the same.
        """
        if open_.is_set():
            return data
        held, more = [data], data
        self.held += len(data)
        opened = asyncio.create_task(open_.wait(), name="proxy opened")
        try:
            while not open_.is_set():
                if more and sum(map(len, held)) < _HELD_BYTES:
                    reading = asyncio.create_task(source.read(_READ_BYTES), name="proxy ahead")
                    try:
                        await asyncio.wait([opened, reading], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        reading.cancel()
                        await asyncio.wait([reading])
                    if reading.cancelled():
                        continue
                    more = reading.result()
                    if more:
                        listen(more)
                        held.append(more)
                        self.held += len(more)
                else:
                    await opened
        finally:
            opened.cancel()
            self.held -= sum(map(len, held))
        return b"".join(held)
