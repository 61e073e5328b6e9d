"""Deliveries on their way from a connection to the pipeline, and how many are unsettled.

This is the only queue of the service. It is bounded by pausing the connection: once the window
is full, the socket is not read until half of the window is settled. This works even if the broker
ignores Receive Maximum.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter

from ingest.model import Delivery
from ingest.source.window import BrokerWindow

WINDOW_BYTES = 32 * 1024 * 1024
"""Bytes of unsettled payloads at which the socket is paused as well."""


class Inbox:
    """Lists of deliveries, in the order they came, for one consumer."""

    def __init__(self, window: int, window_bytes: int = WINDOW_BYTES) -> None:
        self._window, self._window_bytes = window, window_bytes
        self._waiting: deque[list[Delivery]] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False
        self._resume: Callable[[], None] | None = None
        self.in_flight = 0
        """Number of messages received and not yet settled."""
        self.in_flight_bytes = 0
        self.taken = 0
        """Number of messages taken in since the start."""
        self.put_s = 0.0
        """Monotonic time of the last delivery."""
        self.waiting_since_s = 0.0
        """Monotonic time of the last settling, or of the first arrival with nothing in flight."""
        self.broker_window = BrokerWindow(window)

    @property
    def full(self) -> bool:
        """True from a full window until half of it is settled; the socket must not be read then."""
        return not self._room.is_set()

    def put(self, deliveries: list[Delivery], resume: Callable[[], None]) -> None:
        """Take in the deliveries of one read; if `full` now, `resume` is called once there is room.

        After `close` it takes in nothing: the broker keeps what is not acknowledged for the next
        worker.
        """
        if self._closed:
            return
        self._waiting.append(deliveries)
        self.taken += len(deliveries)
        self.put_s = deliveries[0].arrival.monotonic_s
        if not self.in_flight:
            self.waiting_since_s = self.put_s
        self.in_flight += len(deliveries)
        self.broker_window.changed(self.in_flight, self.put_s)
        self.in_flight_bytes += sum(len(d.payload) for d in deliveries)
        self._arrived.set()
        if self.in_flight >= self._window or self.in_flight_bytes >= self._window_bytes:
            self._room.clear()
        if self.full:
            self._resume = resume

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge what is committed, in order, each on the connection it came by."""
        for connection, group in groupby(deliveries, key=attrgetter("connection")):
            connection.acknowledge([d.packet_id for d in group if d.packet_id is not None])
        self.in_flight -= len(deliveries)
        self.in_flight_bytes -= sum(len(d.payload) for d in deliveries)
        self.waiting_since_s = time.monotonic()
        self.broker_window.changed(self.in_flight, self.waiting_since_s)
        few = self.in_flight <= self._window // 2
        if few and self.in_flight_bytes <= self._window_bytes // 2:
            self._room.set()
            resume, self._resume = self._resume, None
            if resume:
                resume()

    async def room(self) -> None:
        """Return once it is not full."""
        await self._room.wait()

    def close(self) -> None:
        """Take in nothing more; the consumer's loop ends after the deliveries that are waiting."""
        self._closed = True
        self._arrived.set()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> list[Delivery]:
        """Return the deliveries of one read of the socket; end when closed and empty."""
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()
