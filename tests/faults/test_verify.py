"""`iov-ingest verify`, short: every fault once; and that it finds what there is to find."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.config import load
from ingest.lab.embedded import Mosquitto
from ingest.lab.verify import FAULTS, FaultPlan, Result, configured, embedded, run
from ingest.schema import Catalogue
from tests.support import OwnDatabase, environment, working

pytestmark = pytest.mark.slow

_WAITING = ("session_left_behind", "detach_pending")
_SABOTAGE = Path(__file__).with_name("sabotage.py")


def silent(*_: object) -> None:
    pass


async def verified(plan: FaultPlan, logs: Path, *command: str) -> Result:
    async with embedded() as servers:
        faults = [fault for fault in plan.faults if not servers.cannot(fault.needs)]
        possible = replace(plan, faults=faults)
        how = {"command": command} if command else {}
        return await run(servers, possible, silent, logs, **how)


async def test_nothing_is_lost_whatever_breaks(tmp_path: Path) -> None:
    """Faults that take a minute of waiting have servers of their own, beside the others."""
    waiting = [FAULTS[name] for name in _WAITING]
    others = [fault for fault in FAULTS.values() if fault not in waiting]
    logs = [tmp_path / "others", tmp_path / "waiting"]
    for directory in logs:
        directory.mkdir()
    results = await asyncio.gather(
        verified(FaultPlan(others, duration_s=20, rate=200, seed=4, every_s=1), logs[0]),
        # By this seed the session is left behind first, and would get its share of the visitors.
        verified(FaultPlan(waiting, duration_s=1, rate=20, seed=5, every_s=1), logs[1]),
    )
    tried: set[str] = set()
    for result in results:
        told = result.as_json()
        assert result.ok, told
        assert told["published"] == told["stored"] + told["forgotten"]
        assert all(times >= 1 for times in told["faults"].values())
        tried |= told["faults"].keys()
    # These need a mount of their own, and a library.
    assert tried | {"disk_full", "clock_jumps"} == FAULTS.keys()


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("early", "early_acks"),
        ("lose", "lost"),
        ("alter", "altered"),
        ("twice", "duplicated"),
        ("never", "unacknowledged"),
    ],
)
async def test_what_a_spoilt_worker_does_is_found(how: str, what: str, tmp_path: Path) -> None:
    plan = FaultPlan([], duration_s=3, rate=300, rest_s=3)
    result = await verified(plan, tmp_path, sys.executable, str(_SABOTAGE), how)
    told = result.as_json()
    assert not result.ok
    assert told[what] > 0, told
    others = {"early_acks", "lost", "altered", "duplicated", "unacknowledged"} - {what}
    # The second of two has another time than was sent.
    assert [name for name in others if told[name]] == (["altered"] if how == "twice" else [])


async def test_configured_servers_are_left_as_they_were(
    database: OwnDatabase, broker: Mosquitto, catalogue: Catalogue, tmp_path: Path
) -> None:
    """A fleet's own worker hears nothing of it, and the scratch database is gone afterwards."""
    before = await database.all("SELECT datname FROM pg_database ORDER BY 1")
    plan = FaultPlan([FAULTS["broker_cut"], FAULTS["backend_terminated"]], duration_s=5, every_s=1)
    settings = load(environ=environment(broker.url, database.url))
    async with working(broker.url, database.url, catalogue) as worker:
        async with configured(settings) as servers:
            for owned in ("database", "broker", "small_disk"):
                assert servers.cannot(owned)
            result = await run(servers, plan, silent, tmp_path)
        assert result.account.holds
        assert not result.unwell
        assert result.account.published > 0
        assert worker.metric("iov_messages_received_total") == 0
    assert await database.all("SELECT datname FROM pg_database ORDER BY 1") == before
