"""What the two ways to read MQTT have in common: a small Protocol and its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
"""Called once per connection when SUBACK, or UNSUBACK, has come; tells Session Present."""


@dataclass(slots=True)
class Leaving:
    """What a source tells its client about leaving for good; it holds for every connection."""

    filter: str
    """What the session is subscribed to."""
    unsubscribe: bool = False
    """Take nothing new: connections unsubscribe where they would subscribe."""
    end_session: bool = False
    """The end of the connection is the end of the session."""
    session_ended: bool = False
    """Set by the client: the broker was told so."""


class Client(Protocol):
    """One way to hold a connection to the broker."""

    name: str
    """As in the setting `IOV_MQTT_CLIENT`."""

    async def session(self, subscribed: Subscribed) -> None:
        """Connect, subscribe, receive into the inbox until the connection ends.

        Always ends with an exception: Unavailable with the reason in words, or one of those
        above; cancelling it leaves the broker with DISCONNECT and the session kept, what was
        acknowledged before sent first. With `Leaving.unsubscribe` it does not subscribe but
        unsubscribe, and raises NoSession where the broker keeps none.
        """

    async def unsubscribe(self) -> None:
        """Unsubscribe on the connection there is; raises Unavailable where that does not work."""
