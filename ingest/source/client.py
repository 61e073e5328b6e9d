"""Common parts of the two MQTT clients: a small Protocol, its limits and its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ingest.errors import Unavailable

KEEP_ALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
"""Seconds for the TCP connection and the TLS handshake together."""
ANSWER_TIMEOUT_S = 5.0
"""Seconds to wait for each of CONNACK, SUBACK and UNSUBACK."""
FLUSH_TIMEOUT_S = 5.0
"""Seconds that a closing client waits for its last acknowledgements to go out."""

MOST_TOPIC_CHARACTERS = 1_024
"""Number of characters that are kept of a topic.

A longer topic names no device of ours, and 63 kB of each would be memory that no limit counts.
"""
MOST_PROPERTY_CHARACTERS = 100
"""Number of characters that are kept of Content Type and of `content-encoding`."""
PACKET_PER_PAYLOAD = 4
"""Maximum Packet Size asked of the broker, as a multiple of the payload limit.

A packet within it whose payload is above the limit becomes a dead letter `too_large`. The broker
discards any larger packet (MQTT 5, 3.1.2.11.4), which bounds the memory that one packet takes.
"""


class UnsupportedVersion(Unavailable):
    """The broker does not speak MQTT 5."""


class TakenOver(Unavailable):
    """Another client connected with our client id (MQTT 5, 3.14.2.1, 0x8E)."""


class NoSession(Unavailable):
    """The broker keeps no session of that client id: there is nothing to take out of it."""


Subscribed = Callable[[bool], None]
"""Callback that gets Session Present, called once per connection after SUBACK or UNSUBACK."""


class Stage(IntEnum):
    """Progress of a worker in leaving its session at the broker; it never goes back."""

    STAYING = 0
    """Each connection subscribes; the broker keeps the session for the next connection."""
    LEAVING = 1
    """Connections unsubscribe instead; what the broker has queued still comes."""
    EMPTY = 2
    """The broker has no more messages for the session, which ends with the connection."""
    LEFT = 3
    """The broker was told that the session ends."""


@dataclass(slots=True)
class Stay:
    """A worker's stay in its session; it outlives every connection."""

    filter: str
    """Topic filter of the session's subscription."""
    stage: Stage = Stage.STAYING

    def reach(self, stage: Stage) -> None:
        """Go on to a stage, unless the stay has reached it or a later one."""
        self.stage = max(self.stage, stage)


class Client(Protocol):
    """One way to hold a connection to the broker."""

    name: str
    """Name of this client in the setting `IOV_MQTT_CLIENT`."""

    async def session(self, subscribed: Subscribed) -> None:
        """Connect, subscribe, receive into the inbox until the connection ends.

        It always ends with an exception: Unavailable with the reason in words, or one of its
        subclasses above. If it is cancelled, it sends the acknowledgements made so far, then
        DISCONNECT.

        What else it does depends on the stage of the `Stay`:

        - staying: it subscribes, and the broker keeps the session
        - leaving: it unsubscribes instead; it raises NoSession if the broker has kept no
          session, because the session that CONNECT has just made is empty
        - empty: the end of the connection ends the session, and the stage becomes left
        """

    async def unsubscribe(self) -> None:
        """Unsubscribe on the current connection; raises Unavailable if that is not possible."""


def content_encoding(properties: Iterable[tuple[str, str]]) -> str | None:
    """Return the value of the last user property `content-encoding`, in any case; None if absent.

    MQTT 5, 3.3.2.3.7 leaves the case of names to the applications; in HTTP it does not matter.
    """
    found = [value for name, value in properties if name.lower() == "content-encoding"]
    return found[-1][:MOST_PROPERTY_CHARACTERS] if found else None
