"""`verify`: breaks broker, database and workers under load, and accounts for every message.

It publishes samples with known keys. As soon as the broker has acknowledged a sample, the sample is
a debt: it must be stored exactly once and unaltered, and no worker may acknowledge it before its
commit. Faults follow a seeded schedule. After the last one, when all is at rest, every debt is
checked.
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
