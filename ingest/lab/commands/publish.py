"""Publishing with a bar that shows what is acknowledged, for `simulate` and `replay`."""

from __future__ import annotations

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ingest.commands.common import people
from ingest.commands.publisher import Publisher
from ingest.config import Settings
from ingest.lab.replay import Replay
from ingest.lab.simulate import Simulation
from ingest.worker.service import signals


async def publish(settings: Settings, qos: int, work: Simulation | Replay, total: int) -> None:
    """Run a simulation or a replay of `total` messages with a progress bar.

    SIGINT and SIGTERM stop it: nothing new is published, what is under way is waited for.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with signals(work.stop), Progress(*columns, console=people, transient=True) as bar:
        task = bar.add_task("messages acknowledged", total=total)

        def waiting(whom: str) -> None:
            bar.console.print(f"waiting for {escape(whom)}", soft_wrap=True)

        async with Publisher(settings.broker, qos, waiting=waiting) as publisher:
            await work.run(publisher, lambda: bar.advance(task))
