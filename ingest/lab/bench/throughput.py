"""Parts that measure messages per second: of the pipeline, and of different kinds of load.

If two or more loads are compared, their runs are taken in turn, A B A B, because the machine is
faster in one minute than in the next.
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
    """Do `plan.runs` runs of each load, in turn."""
    found: dict[str, list[Run]] = {name: [] for name in loads}
    for number in range(plan.runs):
        for name, load in loads.items():

            def say(text: str, name: str = name, number: int = number) -> None:
                plan.say(f"{name}, run {number + 1} of {plan.runs}: {text}")

            found[name].append(await stand.run(load, plan.seconds, plan.warm_up_s, say))
    return found


def told(runs: list[Run]) -> Figures:
    """Return the figures of some runs."""
    return {
        "committed_per_s": figure(run.committed_per_s for run in runs),
        "cpu_us": figure((run.cpu_us for run in runs), 2),
        "rss_mb": figure((run.rss_mb for run in runs), 1),
    }


async def pipeline(stand: Stand, plan: BenchPlan) -> Figures:
    """Measure one worker with one `nev` sample per message, QoS 1."""
    found = await alternate(stand, plan, {"pipeline": Load()})
    return told(found["pipeline"])


async def sources(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare the two ways to read MQTT."""
    loads = {name: Load(source=name) for name in ("mqtt5", "aiomqtt")}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}


async def workers(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare one worker process and two."""
    loads = {str(number): Load(workers=number) for number in (1, 2)}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}


async def devices(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare a load from a thousand devices and one from `plan.devices`."""
    numbers = (1_000, plan.devices)
    async with AsyncExitStack() as stack:
        loads = {}
        for number in numbers:
            url = await stack.enter_async_context(stand.database(devices=number))
            loads[str(number)] = Load(devices=number, database=url)
        found = await alternate(stand, plan, loads)
    return {name: told(runs) for name, runs in found.items()}


async def rows(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare an empty table and one that holds `plan.rows` rows."""
    async with stand.database() as empty, stand.database() as filled:
        await stand.fill(filled, plan.rows, plan.say)
        loads = {"0": Load(database=empty), str(plan.rows): Load(database=filled)}
        found = await alternate(stand, plan, loads)
    return {name: told(runs) for name, runs in found.items()}


async def samples(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare 1, 20 and 100 samples in a message; the figures are per sample."""
    loads = {str(number): Load(samples=number) for number in (1, 20, 100)}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}


async def stores(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare native partitions and hypertables, if the server has the extension."""
    if not await stand.has_timescaledb():
        return {"left_out": "this PostgreSQL has no timescaledb; --server names one that has"}
    loads = {name: Load(settings={"IOV_STORE": name}) for name in ("postgres", "timescaledb")}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}


async def streams(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare one stream and all streams in turn."""
    all_ = tuple(load_catalogue())
    loads = {"1": Load(), str(len(all_)): Load(streams=all_)}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}
