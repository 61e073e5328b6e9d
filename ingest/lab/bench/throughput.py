"""Parts that ask how many messages a second: the pipeline, and how the figure bends with the work.

Where two or more are compared their runs are taken in turn, A B A B, for the machine is faster in
one minute than in the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack

from ingest.lab.bench.drive import Run
from ingest.lab.bench.figures import Figures, figure
from ingest.lab.bench.plan import BenchPlan
from ingest.lab.bench.stand import Load, Stand
from ingest.schema import load_catalogue


async def alternate(
    stand: Stand, plan: BenchPlan, loads: Mapping[str, Load]
) -> dict[str, list[Run]]:
    """So many runs of each, in turn."""
    found: dict[str, list[Run]] = {name: [] for name in loads}
    for number in range(plan.runs):
        for name, load in loads.items():

            def say(text: str, name: str = name, number: int = number) -> None:
                plan.say(f"{name}, run {number + 1} of {plan.runs}: {text}")

            found[name].append(await stand.run(load, plan.seconds, plan.warm_up_s, say))
    return found


def told(runs: list[Run]) -> Figures:
    """The figures of some runs."""
    return {
        "committed_per_s": figure(run.committed_per_s for run in runs),
        "cpu_us": figure((run.cpu_us for run in runs), 2),
        "rss_mb": figure((run.rss_mb for run in runs), 1),
    }


async def pipeline(stand: Stand, plan: BenchPlan) -> Figures:
    """One worker, one `nev` sample per message, QoS 1."""
    found = await alternate(stand, plan, {"pipeline": Load()})
    return told(found["pipeline"])


async def sources(stand: Stand, plan: BenchPlan) -> Figures:
    """The two ways to read MQTT."""
    loads = {name: Load(source=name) for name in ("mqtt5", "aiomqtt")}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}


async def workers(stand: Stand, plan: BenchPlan) -> Figures:
    """One process and two."""
    loads = {str(number): Load(workers=number) for number in (1, 2)}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}


async def devices(stand: Stand, plan: BenchPlan) -> Figures:
    """A thousand devices, and many."""
    numbers = (1_000, plan.devices)
    async with AsyncExitStack() as stack:
        loads = {}
        for number in numbers:
            url = await stack.enter_async_context(stand.database(devices=number))
            loads[str(number)] = Load(devices=number, database=url)
        found = await alternate(stand, plan, loads)
    return {name: told(runs) for name, runs in found.items()}


async def rows(stand: Stand, plan: BenchPlan) -> Figures:
    """Into an empty table, and one that holds many."""
    async with stand.database() as empty, stand.database() as filled:
        await stand.fill(filled, plan.rows, plan.say)
        loads = {"0": Load(database=empty), str(plan.rows): Load(database=filled)}
        found = await alternate(stand, plan, loads)
    return {name: told(runs) for name, runs in found.items()}


async def samples(stand: Stand, plan: BenchPlan) -> Figures:
    """One, twenty and a hundred samples in a message; the figures are per sample."""
    loads = {str(number): Load(samples=number) for number in (1, 20, 100)}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}


async def stores(stand: Stand, plan: BenchPlan) -> Figures:
    """Native partitions and hypertables, where the server has the extension."""
    if not await stand.has_timescaledb():
        return {"left_out": "this PostgreSQL has no timescaledb; --server names one that has"}
    loads = {name: Load(settings={"IOV_STORE": name}) for name in ("postgres", "timescaledb")}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}


async def streams(stand: Stand, plan: BenchPlan) -> Figures:
    """One stream and all of them in turn."""
    all_ = tuple(load_catalogue())
    loads = {"1": Load(), str(len(all_)): Load(streams=all_)}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}
