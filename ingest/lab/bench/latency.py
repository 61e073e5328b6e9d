"""Latency of messages, from being published to being acknowledged by the service.

The service acknowledges after the commit, so this is an upper bound of publish → commit. A relay
between broker and service notes when PUBACKs pass; acknowledgements come in the order of messages
(MQTT 5, 4.6), so the n-th PUBACK is for the n-th message, and one clock serves for both. The
relay's own tenths of a millisecond are in the figures.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import mqtt5

from ingest.errors import ServerError
from ingest.lab.bench.figures import Figures, figure
from ingest.lab.bench.plan import BenchPlan
from ingest.lab.bench.publisher import Traffic, connected
from ingest.lab.bench.stand import Load, Stand
from ingest.lab.proxy import Listener, Proxy
from ingest.source.packets import PacketReader

RATES = (1_000, 10_000)
"""Messages per second, measured in addition to the shares of the maximum."""
SHARES = (0.01, 0.1, 0.5, 0.9)
_TICK_S = 0.002
_PACKET_BYTES = 1024 * 1024
_QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
_SETTLE_S = 30.0


async def latency(stand: Stand, plan: BenchPlan) -> Figures:
    """Measure p50, p99 and p99.9 at shares of one worker's maximum, and at set rates."""
    maximum = (await stand.run(Load(), plan.seconds, plan.warm_up_s, plan.say)).committed_per_s
    rates = {f"{share:.0%}": max(1, round(maximum * share)) for share in SHARES}
    rates |= {f"{rate}_per_s": rate for rate in RATES}
    found: Figures = {"maximum_per_s": round(maximum)}
    acknowledgements = _Acknowledgements()
    proxy = Proxy("127.0.0.1", stand.broker.port, listener=acknowledgements.listener)
    async with (
        stand.database(devices=1_000) as url,
        proxy as relay,
        stand.service(url, Load(), relay.port),
    ):
        publisher = await connected(stand.broker.port)
        traffic = Traffic()
        for name, rate in rates.items():
            runs = []
            for number in range(plan.runs):
                plan.say(f"{rate:,} messages/s, run {number + 1} of {plan.runs}")
                first = traffic.sent
                sent = _Times()
                started_s = time.monotonic()
                while (elapsed_s := time.monotonic() - started_s) < plan.seconds:
                    due = round(rate * elapsed_s) - (traffic.sent - first)
                    if due > 0:
                        packets = traffic.next(due)
                        sent.note(due)
                        await publisher.send(packets)
                    await asyncio.sleep(_TICK_S)
                await acknowledgements.wait(traffic.sent)
                runs.append(_between(sent, acknowledgements.times, first))
            found[name] = {"rate_per_s": rate} | {
                label: figure((_quantile(run, q) * 1e3 for run in runs), 2)
                for label, q in _QUANTILES.items()
            }
        publisher.close()
    return found


class _Times:
    """Times of events, noted in groups: a time, and the number of events at it."""

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.numbers: list[int] = []

    def note(self, number: int) -> None:
        self.at_s.append(time.monotonic())
        self.numbers.append(number)

    def each(self) -> list[float]:
        """Return the time of every single event."""
        return [at_s for at_s, n in zip(self.at_s, self.numbers, strict=True) for _ in range(n)]


class _Acknowledgements:
    """Listener that notes when PUBACKs pass."""

    def __init__(self) -> None:
        self.times = _Times()
        self._reader = PacketReader(_PACKET_BYTES)
        self._total = 0

    def listener(self) -> Listener:
        self._reader = PacketReader(_PACKET_BYTES)
        return Listener(self._request, lambda _: None)

    def _request(self, data: bytes) -> None:
        self._reader.free()[: len(data)] = data
        packets = self._reader.filled(len(data))
        number = sum(isinstance(packet, mqtt5.PubAckPacket) for packet in packets)
        if number:
            self.times.note(number)
            self._total += number

    async def wait(self, total: int) -> None:
        """Wait until `total` PUBACKs have passed since the beginning."""
        deadline_s = time.monotonic() + _SETTLE_S
        while self._total < total:
            if time.monotonic() > deadline_s:
                raise ServerError(f"{total - self._total} messages were not acknowledged in time")
            await asyncio.sleep(_TICK_S)


def _between(sent: _Times, acknowledged: _Times, first: int) -> list[float]:
    """Return the seconds to the PUBACK for each message from number `first` on."""
    published = sent.each()
    settled = acknowledged.each()[first : first + len(published)]
    return [later - earlier for earlier, later in zip(published, settled, strict=True)]


def _quantile(values: list[float], q: float) -> float:
    return statistics.quantiles(values, n=1_000, method="inclusive")[round(q * 1_000) - 1]
