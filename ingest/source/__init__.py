"""Two ways to read MQTT behind one small Protocol; what they bring arrives as lists."""

from ingest.source.client import Client, NoSession, Stage
from ingest.source.inbox import Inbox
from ingest.source.source import Source

__all__ = ["Client", "Inbox", "NoSession", "Source", "Stage"]
