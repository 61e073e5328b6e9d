"""Parts that measure messages per second: of the pipeline, and of different kinds of load.

If two or more loads are compared, their runs are taken in turn, A B A B, because the machine is
faster in one minute than in the next.
"""

from __future__ import annotations

from collections.abc import Mapping

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


async def scale(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare the usual load with more workers, devices, stored rows, samples and streams.

    The usual load has one of each, a thousand devices and an empty table. It runs once in every
    round, and every comparison uses it.
    """
    all_ = tuple(load_catalogue())
    async with stand.database(devices=plan.devices) as crowded, stand.database() as filled:
        await stand.fill(filled, plan.rows, plan.say)
        more = {
            ("workers", "1"): {"2": Load(workers=2)},
            ("devices", "1000"): {str(plan.devices): Load(devices=plan.devices, database=crowded)},
            ("rows", "0"): {str(plan.rows): Load(database=filled)},
            ("samples", "1"): {str(number): Load(samples=number) for number in (20, 100)},
            ("streams", "1"): {str(len(all_)): Load(streams=all_)},
        }
        loads = {"the usual load": Load()} | {
            f"{name} {what}": load
            for (what, _), loads in more.items()
            for name, load in loads.items()
        }
        found = {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}
    return {
        what: {usual: found["the usual load"]} | {name: found[f"{name} {what}"] for name in loads}
        for (what, usual), loads in more.items()
    }


async def stores(stand: Stand, plan: BenchPlan) -> Figures:
    """Compare native partitions and hypertables, if the server has the extension."""
    if not await stand.has_timescaledb():
        return {"left_out": "this PostgreSQL has no timescaledb; --server names one that has"}
    loads = {name: Load(settings={"IOV_STORE": name}) for name in ("postgres", "timescaledb")}
    return {name: told(runs) for name, runs in (await alternate(stand, plan, loads)).items()}
