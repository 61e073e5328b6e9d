"""The only place that knows asyncpg: batches, devices, partitions, migrations, the register."""

from ingest.store.connect import connect, durability_problem, expect_migrated, may_be_accepted
from ingest.store.connection import StoreConnection
from ingest.store.copy import copy
from ingest.store.failures import away, naming, translated
from ingest.store.guard import Guard
from ingest.store.heartbeat import Heartbeat
from ingest.store.maintain import TurnAccount, maintain, maintain_hourly
from ingest.store.migrate import migrate
from ingest.store.partitions import make_ahead
from ingest.store.watch import Watch
from ingest.store.writer import Writer

__all__ = [
    "Guard",
    "Heartbeat",
    "StoreConnection",
    "TurnAccount",
    "Watch",
    "Writer",
    "away",
    "connect",
    "copy",
    "durability_problem",
    "expect_migrated",
    "maintain",
    "maintain_hourly",
    "make_ahead",
    "may_be_accepted",
    "migrate",
    "naming",
    "translated",
]
