"""The bench, as small as it goes, so that it cannot rot; its figures here mean nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.lab.bench import PARTS, BenchPlan, Peer, measure
from ingest.lab.bench.picture import draw

pytestmark = pytest.mark.slow

PEER = Path(__file__).parent / "peer.py"


def said(_: str) -> None:
    pass


def medians(found: Any) -> list[float]:
    """Every figure in it."""
    if not isinstance(found, dict):
        return []
    if "median" in found:
        return [found["median"]]
    return [figure for part in found.values() for figure in medians(part)]


async def test_every_part_measures_something_and_is_drawn(tmp_path: Path) -> None:
    peer = Peer(f"{sys.executable} {PEER} {{mqtt_url}} {{database_url}}", "peer")
    plan = BenchPlan(
        said,
        runs=1,
        seconds=0.5,
        warm_up_s=0.0,
        outage_s=1.0,
        devices=2_000,
        rows=2_000,
        peer=peer,
        streams={"mobility"},
    )
    found = await measure(list(PARTS), plan)
    parts = found["parts"]
    assert list(parts) == list(PARTS)
    assert list(parts["stores"]) == ["left_out"]
    for name in set(parts) - {"stores", "memory", "profile"}:
        assert medians(parts[name]), name
        assert min(medians(parts[name])) > 0, name
    assert parts["memory"]["full_load_mb"] > parts["memory"]["idle_mb"] > 20
    assert set(parts["scale"]) == {"workers", "devices", "rows", "samples", "streams"}
    assert {"commit", "python", "postgresql", "cores"} <= set(found["conditions"])
    assert found["conditions"]["settings"]["IOV_BATCH_ROWS"] == 2_000
    assert found["conditions"]["postgresql_settings"]["fsync"] == "on"
    assert orjson.loads(orjson.dumps(found)) == found
    draw(found, tmp_path)
    for name in ("scale", "stages", "latency", "compared"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_two_latencies_at_one_rate_are_drawn(tmp_path: Path) -> None:
    figure = {"median": 2.0, "low": 1.0, "high": 3.0}
    other = {"median": 2.5, "low": 1.0, "high": 3.0}
    one = {"rate_per_s": 100, **dict.fromkeys(("p50_ms", "p99_ms", "p999_ms"), figure)}
    draw(
        {"parts": {"latency": {"maximum_per_s": 100, "1%": one, "2%": one | {"p50_ms": other}}}},
        tmp_path,
    )
    assert (tmp_path / "latency.png").exists()
