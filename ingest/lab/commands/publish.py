"""Publishing with a bar that shows what is acknowledged, for `simulate` and `replay`."""

from __future__ import annotations

from rich.markup import escape

from ingest.commands.common import people, progress
from ingest.commands.publisher import Publisher
from ingest.config import Settings
from ingest.lab.replay import Replay
from ingest.lab.simulate import Simulation
from ingest.worker.service import signals


async def publish(settings: Settings, qos: int, work: Simulation | Replay, total: int) -> None:
    """Run a simulation or a replay of `total` messages with a progress bar.

    SIGINT and SIGTERM stop it: nothing new is published, what is under way is waited for.
    """
    with signals(work.stop), progress("messages acknowledged", total) as advance:

        def waiting(whom: str) -> None:
            people.print(f"waiting for {escape(whom)}", soft_wrap=True)

        async with Publisher(settings.broker, qos, waiting=waiting) as publisher:
            await work.run(publisher, lambda: advance(1))
