"""A seeded city of vehicles and roadside units: the same seed, the same devices, the same words.

What a device says belongs together: one motion, one battery, one set of alarms are behind all of
its streams.
"""

from ingest.lab.fleet.fleet import STREAMS, Fleet
from ingest.lab.fleet.mischief import Mischief

__all__ = ["STREAMS", "Fleet", "Mischief"]
