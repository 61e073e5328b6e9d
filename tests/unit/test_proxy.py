"""The proxy that tests and `verify` put between the service and its servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ingest.lab.proxy import Listener, Proxy
from ingest.lab.until import until


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that says everything twice."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1_000):
            writer.write(data * 2)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_what_is_said_passes_and_is_listened_to() -> None:
    asked, answered = bytearray(), bytearray()
    async with echo() as port:
        proxy = Proxy("127.0.0.1", port, listener=lambda: Listener(asked.extend, answered.extend))
        async with proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"ab")
            assert await reader.readexactly(4) == b"abab"
            writer.close()
    assert (bytes(asked), bytes(answered)) == (b"ab", b"abab")


async def test_what_is_held_back_is_listened_to_and_passes_in_order() -> None:
    asked = bytearray()
    async with echo() as port:
        proxy = Proxy("127.0.0.1", port, listener=lambda: Listener(asked.extend, lambda _: None))
        async with proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.stall_requests()
            for word in (b"one ", b"two ", b"three "):
                writer.write(word)
                await until(lambda: asked.endswith(word))  # noqa: B023  awaited in the same turn
            assert proxy.held == 14
            proxy.flow()
            assert (await reader.readexactly(28)).count(b"two ") == 2
            assert proxy.held == 0
            writer.close()


async def test_what_is_held_back_at_a_cut_reaches_nobody() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.stall_requests()
        writer.write(b"lost")
        await until(lambda: proxy.held)
        proxy.cut()
        proxy.flow()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


async def test_a_stall_comes_after_exactly_so_many_bytes() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.stall(after_bytes=3)
        writer.write(b"abcdef")
        await until(lambda: proxy.stalled)
        proxy.flow()
        assert sorted(await reader.readexactly(12)) == sorted(b"abcdef" * 2)
        writer.close()


async def test_abandoned_connections_stay_silent_and_new_ones_do_not() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        old, to_old = await asyncio.open_connection("127.0.0.1", proxy.port)
        to_old.write(b"a")
        assert await old.readexactly(2) == b"aa"
        proxy.abandon()
        to_old.write(b"b")
        new, to_new = await asyncio.open_connection("127.0.0.1", proxy.port)
        to_new.write(b"c")
        assert await new.readexactly(2) == b"cc"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await old.readexactly(1)
        for writer in (to_old, to_new):
            writer.close()


async def test_who_is_refused_is_closed() -> None:
    async with echo() as port, Proxy("127.0.0.1", port) as proxy:
        proxy.refuse()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
