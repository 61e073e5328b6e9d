"""Two MQTT clients behind one small Protocol; messages arrive as lists of deliveries."""

from ingest.source.client import Client, NoSession, Stage
from ingest.source.inbox import Inbox
from ingest.source.source import Source

__all__ = ["Client", "Inbox", "NoSession", "Source", "Stage"]
