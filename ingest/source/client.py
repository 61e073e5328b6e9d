"""What the two ways to read MQTT have in common: a small Protocol and its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ingest.errors import Unavailable

KEEP_ALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
"""For the TCP connection and the TLS handshake."""
ANSWER_TIMEOUT_S = 5.0
"""For CONNACK and for SUBACK."""
FLUSH_TIMEOUT_S = 5.0
"""How long a leaving client waits for its last acknowledgements to go out."""

MOST_TOPIC_CHARACTERS = 1_024
"""What is longer names no device of ours and is cut: 63 kB each would be memory nobody counts."""
MOST_PROPERTY_CHARACTERS = 100
"""The same for the two properties that are looked at."""
PACKET_PER_PAYLOAD = 4
"""Maximum Packet Size asked of the broker, in payload limits.

What is above the payload limit and still comes through becomes a dead letter `too_large`; beyond
this the broker discards it itself (MQTT 5, 3.1.2.11.4), which bounds what one packet may take.
"""


class UnsupportedVersion(Unavailable):
    """The broker does not speak MQTT 5."""


class TakenOver(Unavailable):
    """Another client connected with our client id (MQTT 5, 3.14.2.1, 0x8E)."""


class NoSession(Unavailable):
    """The broker keeps no session of that client id: there is nothing to take out of it."""


Subscribed = Callable[[bool], None]
"""Called with Session Present, once per connection, when SUBACK or UNSUBACK has come."""


class Stage(IntEnum):
    """How far a worker is on its way out of its session at the broker; it never turns back."""

    STAYING = 0
    """Connections subscribe, and leave the session to the next one."""
    LEAVING = 1
    """Connections unsubscribe instead; what the broker has queued still comes."""
    EMPTY = 2
    """The broker has nothing more for the session: it ends with its connection."""
    LEFT = 3
    """The broker was told that the session ends."""


@dataclass(slots=True)
class Stay:
    """A worker's stay in its session; it outlives every connection."""

    filter: str
    """What the session is subscribed to."""
    stage: Stage = Stage.STAYING


class Client(Protocol):
    """One way to hold a connection to the broker."""

    name: str
    """As in the setting `IOV_MQTT_CLIENT`."""

    async def session(self, subscribed: Subscribed) -> None:
        """Connect, subscribe, receive into the inbox until the connection ends.

        It always ends with an exception: Unavailable with the reason in words, or one of those
        above. If it is cancelled, what was acknowledged goes out first, then DISCONNECT.

        What else it does depends on the stage of the `Stay`:

        - staying: it subscribes, and the broker keeps the session
        - leaving: it unsubscribes instead; if the broker has kept no session, the one that
          CONNECT has just made is empty, and it raises NoSession
        - empty: the end of the connection ends the session, and the stage becomes left
        """

    async def unsubscribe(self) -> None:
        """Unsubscribe on the connection there is; raises Unavailable if that does not work."""
