"""What can break, each as one coroutine that breaks it, waits, and has mended it when it returns.

Where a fault needs a moment to be worth anything (a COPY that has begun, a PUBACK that is held)
it waits for that moment, and raises ServerError where it does not come.
"""

from ingest.tools.verify.faults import broker, database, messages, workers
from ingest.tools.verify.faults.fault import Fault

FAULTS = {
    fault.name: fault
    for fault in (*workers.FAULTS, *database.FAULTS, *broker.FAULTS, *messages.FAULTS)
}

__all__ = ["FAULTS", "Fault"]
