"""Resident memory at full load, and while the database is away."""

from __future__ import annotations

import asyncio
import time

from ingest.lab.bench.drive import drive, rss_mb
from ingest.lab.bench.figures import Figures
from ingest.lab.bench.plan import BenchPlan
from ingest.lab.bench.publisher import Traffic, connected
from ingest.lab.bench.stand import Load, Stand

_RATE = 5_000
"""Messages a second during the outage, all of which stay with the broker."""
_TICK_S = 0.1


async def memory(stand: Stand, plan: BenchPlan) -> Figures:
    """Measure one worker: before load, under full load, in an outage of the database, after it."""
    if stand.postgres is None:
        return {"left_out": "needs a database server of its own, to stop it"}
    async with stand.database(devices=1_000) as url, stand.service(url, Load()) as service:
        (pid,) = service.pids
        idle_mb = rss_mb(pid)
        publisher = await connected(stand.broker.port)
        traffic = Traffic()
        plan.say("full load")
        full = await drive(
            publisher, traffic, service.look, plan.seconds * plan.runs, plan.warm_up_s, plan.say
        )
        stand.postgres.stop()
        outage: list[float] = []
        started_s = time.monotonic()
        while (elapsed_s := time.monotonic() - started_s) < plan.outage_s:
            await publisher.send(traffic.next(round(_RATE * _TICK_S)))
            outage.append(rss_mb(pid))
            plan.say(f"the database has been away for {elapsed_s:.0f} s, {outage[-1]:.0f} MB")
            await asyncio.sleep(_TICK_S)
        stand.postgres.start()
        after = await drive(
            publisher, traffic, service.look, plan.seconds, plan.warm_up_s, plan.say
        )
        publisher.close()
        outage_mb = {"begin": round(outage[0], 1), "most": round(max(outage), 1)}
    return {
        "idle_mb": round(idle_mb, 1),
        "full_load_mb": round(full.rss_mb, 1),
        "outage_s": plan.outage_s,
        "outage_mb": outage_mb | {"end": round(outage[-1], 1)},
        "after_mb": round(after.rss_mb, 1),
    }
