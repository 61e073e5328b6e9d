"""Faults: coroutines that break something, wait, and mend it before they return.

A fault that has an effect only at a certain moment (a COPY has begun, a PUBACK is held back)
waits for that moment. It raises ServerError if the moment does not come.
"""

from ingest.lab.verify.faults import broker, database, messages, workers
from ingest.lab.verify.faults.fault import Fault

FAULTS = {
    fault.name: fault
    for fault in (*workers.FAULTS, *database.FAULTS, *broker.FAULTS, *messages.FAULTS)
}

__all__ = ["FAULTS", "Fault"]
