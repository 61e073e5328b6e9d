"""`bench`: measures what the service can do on this machine, and what the machine can do.

Everything runs on it: PostgreSQL with `fsync` and `synchronous_commit` on, mosquitto, a publisher
that only sends packets encoded beforehand, and the service as processes of its own. A figure is the
median of several runs, with the lowest and the highest; each run starts the service anew.

The figures are biased: one or two cores do all of the work, all samples are valid and in time, and
the publisher is as cheap as it can be.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from ingest.lab.bench.drive import Run
from ingest.lab.bench.figures import Figures, conditions, figure, loop_s
from ingest.lab.bench.hostile import hostile
from ingest.lab.bench.latency import latency
from ingest.lab.bench.limits import limits
from ingest.lab.bench.memory import memory
from ingest.lab.bench.peer import peer
from ingest.lab.bench.plan import BenchPlan, Peer
from ingest.lab.bench.profile import profile
from ingest.lab.bench.publisher import FastPublisher
from ingest.lab.bench.stages import stages
from ingest.lab.bench.stand import Load, Stand, service_settings, stand
from ingest.lab.bench.throughput import pipeline, scale, sources, stores

__all__ = ["PARTS", "BenchPlan", "FastPublisher", "Load", "Peer", "Run", "bench", "measure"]

_LOOPS = 3
"""Number of runs of a loop before each part, because a shared machine's speed changes."""

Part = Callable[[Stand, BenchPlan], Awaitable[Figures]]


PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (
        limits,
        stages,
        hostile,
        pipeline,
        profile,
        sources,
        latency,
        memory,
        scale,
        stores,
        peer,
    )
}
"""Parts by name, in the order in which `all` measures them."""


async def bench(load: Load, plan: BenchPlan) -> Figures:
    """Do one run; return the keys of `bench --json` without parts."""
    async with stand() as here:
        run = await here.run(load, plan.seconds, plan.warm_up_s, plan.say)
    return {
        "committed_per_s": round(run.committed_per_s),
        "cpu_us_per_message": round(run.cpu_us, 2),
        "rss_mb": round(run.rss_mb, 1),
        "messages": run.committed,
        "seconds": round(run.seconds, 3),
        "source": load.source,
    }


async def measure(names: Sequence[str], plan: BenchPlan, server_url: str | None = None) -> Figures:
    """Measure some parts; return their figures and the conditions they were measured under."""
    started_s = time.monotonic()
    async with stand(server_url) as here:
        version, settings = await here.server()
        found, loops = {}, []
        for name in names:
            loops += [loop_s() for _ in range(_LOOPS)]
            found[name] = await PARTS[name](here, plan)
    return {
        "conditions": conditions(service_settings(), settings, version),
        "loop_ms": figure((loop * 1e3 for loop in loops), 1),
        "runs": plan.runs,
        "run_s": plan.seconds,
        "parts": found,
        "seconds": round(time.monotonic() - started_s, 1),
    }
