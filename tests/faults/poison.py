"""A worker, or whoever drains its session, that dies over one message: `poison.py run|drain`.

Everything else about it is the service as it is.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop

from ingest import log
from ingest.check import Checker
from ingest.config import Settings, load
from ingest.model import Checked, Delivery
from ingest.schema import load_catalogue
from ingest.store import register
from ingest.store.register import Registered
from ingest.worker.service import Service, signals
from ingest.worker.takeover import take_over

check = Checker.check


def deadly(self: Checker, delivery: Delivery) -> Checked:
    """Check as always, but die of one device's messages."""
    if "POISON" in delivery.topic:
        os.abort()
    return check(self, delivery)


async def main(how: str, settings: Settings) -> None:
    """Run one worker until SIGTERM, or take out what the broker keeps for it."""
    catalogue = load_catalogue()
    if how == "run":
        worker = Service(settings, catalogue)
        with signals(worker.stop):
            await worker.run()
        return
    gone = Registered(settings.mqtt_client_id, settings.broker.subscription, alive=False)
    async with register.opened(settings.database, settings.broker) as opened:
        await take_over(settings, catalogue, opened, gone)


if __name__ == "__main__":
    Checker.check = deadly  # type: ignore[method-assign]  # the poison
    configured = load()
    log.configure(configured.log_format, configured.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], configured))
