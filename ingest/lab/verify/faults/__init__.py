"""Faults, each a coroutine that breaks something, waits, and has mended it when it returns.

If a fault needs a moment to be worth anything (a COPY that has begun, a PUBACK that is held), it
waits for that moment, and raises ServerError if the moment does not come.
"""

from ingest.lab.verify.faults import broker, database, messages, workers
from ingest.lab.verify.faults.fault import Fault

FAULTS = {
    fault.name: fault
    for fault in (*workers.FAULTS, *database.FAULTS, *broker.FAULTS, *messages.FAULTS)
}

__all__ = ["FAULTS", "Fault"]
