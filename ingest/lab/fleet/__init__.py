"""A seeded city of vehicles and roadside units: the same seed gives the same devices and messages.

The streams of a device agree with each other, because all of them come from one motion, one
battery and one set of alarms.
"""

from ingest.lab.fleet.fleet import STREAMS, Fleet
from ingest.lab.fleet.mischief import Mischief

__all__ = ["STREAMS", "Fleet", "Mischief"]
