"""Deliveries on their way from a connection to the pipeline, and how many are unsettled.

The only queue of the service. It is bounded by the connection's pause: above the window the
socket is not read, whatever Receive Maximum the broker honours, until half of it is settled.
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
"""Unsettled payloads together; above it the socket is paused as well."""


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
        """Messages received and not yet settled."""
        self.in_flight_bytes = 0
        self.taken = 0
        """Messages taken in since the start."""
        self.put_s = 0.0
        """Monotonic time of the last delivery."""
        self.waiting_since_s = 0.0
        """Monotonic time of the last settling, or of what came first after there was nothing."""
        self.broker_window = BrokerWindow(window)

    @property
    def full(self) -> bool:
        """True above the window, until half of it is settled: do not read."""
        return not self._room.is_set()

    def put(self, deliveries: list[Delivery], resume: Callable[[], None]) -> None:
        """Take in what one read brought; `resume` is called once if it is `full` now.

        After `close` it takes nothing: unacknowledged, the broker keeps it for the next worker.
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
        """Nothing more will come; the consumer's loop ends after what is waiting."""
        self._closed = True
        self._arrived.set()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> list[Delivery]:
        """What one read of the socket brought; ends when closed and empty."""
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()
