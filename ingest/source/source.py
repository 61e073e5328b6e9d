"""Keeps a worker connected to the broker, and hands the deliveries to the pipeline.

After each end of a connection it waits with jittered backoff, waits for room in the window, then
connects and subscribes again. It writes one log line per change of state.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from math import inf
from random import Random
from time import monotonic

import structlog

from ingest.backoff import Backoff
from ingest.broker import Broker
from ingest.cancelled import unless_cancelled
from ingest.errors import Unavailable
from ingest.metrics import Metrics
from ingest.source.aiomqtt import AiomqttClient
from ingest.source.client import (
    Client,
    NoSession,
    Stage,
    Stay,
    TakenOver,
    UnsupportedVersion,
)
from ingest.source.inbox import Inbox
from ingest.source.mqtt5 import Mqtt5Client
from ingest.trouble import Trouble

_FIRST_DELAY_S, _MOST_DELAY_S = 0.2, 30.0
_TAKEN_OVER_DELAY_S = 60.0
"""Seconds to wait after our session was taken over.

Two workers with the same client id would otherwise disconnect each other again and again.
"""
_LASTING_S = 10.0
"""Seconds that a connection must hold before its end resets the delay to the shortest.

If it breaks sooner, the delays go on growing, because not every broker says that the session was
taken over (mosquitto 2.0.11 just closes).
"""
_LOG_EVERY = 20
"""Number of attempts per log line while the same failure repeats."""

log = structlog.get_logger(__name__)


class Source:
    """The one reader of a worker. Iterating over `inbox` yields lists of deliveries."""

    def __init__(self, broker: Broker, metrics: Metrics, random: Random) -> None:
        self.inbox = Inbox(broker.receive_maximum)
        self.trouble = Trouble(f"broker {broker.address}", "not connected yet")
        self.found_session: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Session Present at our first subscription; True if the broker had a session of ours."""
        self._broker = broker
        self._metrics = metrics
        self._stay = Stay(broker.subscription)
        self._client = self._first_client()
        self._backoff = Backoff(_FIRST_DELAY_S, _MOST_DELAY_S, random)
        self._connections = 0
        self._failures = 0
        self._subscribed_s = inf
        metrics.watch_in_flight(lambda: self.inbox.in_flight)
        metrics.window.set(broker.receive_maximum)
        metrics.broker_window.set_function(lambda: self.inbox.broker_window.limit or 0)

    @property
    def problem(self) -> str | None:
        """Reason why nothing is being received; None while subscribed."""
        return self.trouble.text

    @property
    def stage(self) -> Stage:
        """Progress of this worker in leaving its session."""
        return self._stay.stage

    async def run(self) -> None:
        """Connect again and again, until cancelled or `LEFT`; the last connection ends in order."""
        try:
            while self.stage < Stage.LEFT:
                # Each new connection brings the unacknowledged messages again, while their last
                # copies still wait for the store. Without this wait, every restart of the broker
                # would add another copy of them.
                await self.inbox.room()
                delay_s = await self._one_session()
                unless_cancelled()
                self._metrics.mqtt_connected.set(0)
                await asyncio.sleep(delay_s)
        finally:
            self._metrics.mqtt_connected.set(0)
            self.trouble.text = "disconnected from the broker"

    async def leave(self) -> bool:
        """Unsubscribe; messages that the broker has queued for this worker still come.

        Return whether the broker has answered; if not, the next connection unsubscribes. Calling
        this again changes nothing; each answer comes after all that the broker sent before it.
        """
        self._stay.reach(Stage.LEAVING)
        try:
            await self._client.unsubscribe()
        except Unavailable as exc:
            log.warning("not unsubscribed", why=str(exc))
            return False
        return True

    def end_session(self) -> None:
        """Make the session end when this connection ends."""
        self._stay.reach(Stage.EMPTY)

    async def take_over(self, filter_: str) -> None:
        """Take out what the broker keeps for a worker that is gone, over one connection.

        It ends with that connection, by an exception: NoSession if the broker keeps no session,
        Unavailable for any other reason. It does not connect again, because an owner that comes
        back must find us gone.
        """
        self._stay = Stay(filter_, Stage.LEAVING)
        self._client = self._first_client()
        try:
            await self._client.session(self._subscribed)
        except UnsupportedVersion as exc:
            self._without_version_5(str(exc))
        except NoSession:
            raise
        except Unavailable:
            if self._connections:
                raise
            # We were never connected, so we have not disconnected the owner and may try once more;
            # aiomqtt may have switched to MQTT 3.1.1.
        await self._client.session(self._subscribed)

    async def _one_session(self) -> float:
        """Hold one connection to its end; return the seconds to wait before the next."""
        self._subscribed_s = inf
        try:
            await self._client.session(self._subscribed)
        except UnsupportedVersion as exc:
            return self._without_version_5(str(exc))
        except TakenOver as exc:
            self.trouble.text = str(exc)
            log.error(  # noqa: TRY400  who took it is not in our stack
                "session taken over",
                why=str(exc),
                hint="is the client id used twice?",
                client_id=self._broker.client_id,
                wait_s=_TAKEN_OVER_DELAY_S,
            )
            return _TAKEN_OVER_DELAY_S
        except NoSession as exc:
            self.trouble.text = str(exc)
        except Unavailable as exc:
            self._lost(str(exc))
        if monotonic() - self._subscribed_s >= _LASTING_S:
            self._backoff.reset()
        return self._backoff.delay_s()

    def _lost(self, why: str) -> None:
        repeated = why == self.problem
        self.trouble.text = why
        self._failures = self._failures + 1 if repeated else 1
        if self._failures % _LOG_EVERY == 1:
            broker = self._broker.address
            log.warning("not connected", why=why, broker=broker, attempts=self._failures)

    def _without_version_5(self, why: str) -> float:
        self.trouble.text = why
        if self._broker.client == "auto" and self._client.name == "mqtt5":
            log.warning("falling back to MQTT 3.1.1", why=why)
            self._client = AiomqttClient(self._broker, self.inbox, self._stay, version_5=False)
            return 0.0
        log.error("MQTT 5 refused", why=why, hint="set IOV_MQTT_CLIENT to auto or aiomqtt")
        return self._backoff.delay_s()

    def _subscribed(self, session_present: bool) -> None:  # noqa: FBT001  a callback
        self._subscribed_s = monotonic()
        away_s = (datetime.now(UTC) - self.trouble.since).total_seconds()
        self.trouble.text = None
        self._failures = 0
        self._metrics.mqtt_connected.set(1)
        if self._connections:
            self._metrics.reconnects.labels("broker").inc()
            if not session_present:
                self.session_lost()
        if not self.found_session.done():
            self.found_session.set_result(session_present)
        self._connections += 1
        log.info(
            "subscribed" if self.stage is Stage.STAYING else "unsubscribed",
            broker=self._broker.address,
            filter=self._stay.filter,
            client=self._client.name,
            client_id=self._broker.client_id,
            session_present=session_present,
            # A broker that has restarted may have kept nothing of what was published meanwhile.
            away_s=round(away_s, 1),
        )

    def session_lost(self) -> None:
        """Say that the broker had forgotten our session."""
        self._metrics.sessions_lost.inc()
        log.error(
            "session lost",
            hint="the broker had forgotten our session; what it had "
            "queued for us is gone: check its persistence and session expiry",
        )

    def _first_client(self) -> Client:
        if self._broker.client == "aiomqtt" or self._broker.is_web:
            return AiomqttClient(self._broker, self.inbox, self._stay)
        return Mqtt5Client(self._broker, self.inbox, self._stay)
