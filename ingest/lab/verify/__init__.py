"""`verify`: breaks broker, database and workers under load, and accounts for every message.

An oracle publishes samples with known keys and remembers what the broker acknowledged: from then
on each is a debt. Faults follow a seeded schedule. When they have stopped and all is at rest, every
debt must be paid, once, unaltered, and nothing may have been acknowledged before its commit.
"""

from ingest.lab.verify.faults import FAULTS, Fault
from ingest.lab.verify.plan import FaultPlan, Result
from ingest.lab.verify.run import run
from ingest.lab.verify.servers import Servers, configured, embedded
from ingest.lab.verify.world import World

__all__ = [
    "FAULTS",
    "Fault",
    "FaultPlan",
    "Result",
    "Servers",
    "World",
    "configured",
    "embedded",
    "run",
]
