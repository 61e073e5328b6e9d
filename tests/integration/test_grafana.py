"""The dashboards: every panel asks what its data source can answer, and shows something."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from ingest.commands.message import Message
from ingest.commands.publisher import Publisher
from ingest.config import load
from ingest.lab.embedded import Mosquitto
from ingest.lab.fleet import Fleet, Mischief
from ingest.lab.until import until
from ingest.schema import Catalogue
from tests.grafana import FLEET, OPERATIONS, SHIPPED, dashboard, panels, promql, sql
from tests.prometheus import ask, program, prometheus
from tests.support import (
    OwnDatabase,
    Worker,
    environment,
    working,
)

BOTH = [OPERATIONS, FLEET]
SPAN = timedelta(minutes=10)
AT_REST = {
    "Fullest window", "In flight ÷ window", "Account", "Alerts firing",
    "Reconnects and lost sessions",
}  # fmt: skip
"""Panels that show zeros while all is well."""

RARE: list[tuple[str, dict[str, Any]]] = [
    ("odd/nev", {"seq": 1, "soc_pct": 0.7, "speed_kmh": 50, "new": 1}),
    ("odd/nev", {"seq": 2, "soc_pct": 0.7, "speed_kmh": 50}),
    ("odd/alarm", {"max_level": 3, "flags": ["thermal_event"]}),
    ("odd/ad-event", {
        "event": "takeover_request", "reason": "odd_exit", "initiator": "av_system",
        "speed_kmh": 50, "model": {"version": "1"},
    }),
    ("odd/mobility", {"service": "robotaxi", "remote_assist": {"active": True}}),
]  # fmt: skip
"""What a city does not say every ten minutes."""


@pytest.mark.parametrize("uid", BOTH)
def test_a_dashboard_holds_nothing_that_grafana_does_not_know(uid: str) -> None:
    """Grafana's own types read it and lose nothing of it: a misspelt option would be lost."""
    register_default_plugins()
    document = dashboard(uid)
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    assert not list(lost(document, read))


def lost(given: Any, read: Any, path: str = "") -> Any:
    match given, read:
        case dict(), dict():
            for key, value in given.items():
                if key not in read:
                    yield f"{path}/{key}"
                else:
                    yield from lost(value, read[key], f"{path}/{key}")
        case list(), list():
            assert len(given) == len(read), path
            for place, (one, other) in enumerate(zip(given, read, strict=True)):
                yield from lost(one, other, f"{path}/{place}")
        case _ if given != read:
            yield f"{path}: {given} became {read}"


@pytest.mark.parametrize("uid", BOTH)
def test_panels_have_a_place_each_and_ask_the_chosen_data_source(uid: str) -> None:
    document = dashboard(uid)
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        cells = {
            (at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    (source,) = {target["datasource"]["uid"] for p in panels(uid) for target in p["targets"]}
    assert source == "${datasource}"
    for panel in panels(uid):
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters) > 0


def test_what_is_provisioned_is_there() -> None:
    (provider,) = yaml.safe_load((SHIPPED / "provisioning/dashboards/iov-ingest.yaml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    sources = yaml.safe_load((SHIPPED / "provisioning/datasources/iov-ingest.yaml").read_text())
    kinds = {source["type"] for source in sources["datasources"]}
    wanted = {dashboard(uid)["templating"]["list"][0]["query"] for uid in BOTH}
    assert kinds == wanted


async def fill(broker: Mosquitto, database: OwnDatabase, worker: Worker) -> None:
    """What a city said in the last ten minutes, with what is wrong with it."""
    fleet = Fleet(60, 7, mischief=Mischief(bad=0.02, duplicate=0.02, late=0.02))
    start = datetime.now(UTC) - SPAN

    async def messages() -> AsyncIterator[Message]:
        for number in range(4_000):
            yield fleet.message(start + SPAN * number / 4_000)
        now = datetime.now(UTC).isoformat()
        for topic, rare in RARE:
            yield Message(f"iov/v1/{topic}", json.dumps({"ts": now} | rare).encode(), 1)

    async with Publisher(load(environ=environment(broker.url, database.url)).broker) as publisher:
        sent = 0

        def done(message: Message) -> None:
            nonlocal sent
            sent += message.samples

        await publisher.publish_all(messages(), done)
    await worker.settles(sent)


@pytest.fixture
async def filled(
    broker: Mosquitto, database: OwnDatabase, catalogue: Catalogue
) -> AsyncIterator[Worker]:
    async with working(broker.url, database.url, catalogue, dead_letters_per_minute="1") as running:
        yield running


async def test_every_expression_of_the_operations_dashboard_has_an_answer(
    filled: Worker, broker: Mosquitto, database: OwnDatabase, tmp_path: Path
) -> None:
    program("prometheus")
    assert filled.service.http_port is not None
    async with prometheus(tmp_path, filled.service.http_port) as url:
        await until(lambda: ask(url, "iov_ready == 1"), "the first scrape")
        await fill(broker, database, filled)
        total = filled.settled()
        stored = "sum({__name__=~'iov_samples_(stored|duplicate|rejected)_total'})"
        await until(lambda: ask(url, f"{stored} == {total}"), "the last scrape")
        for panel in panels(OPERATIONS):
            shown: list[float] = []
            for target in panel["targets"]:
                expression = promql(target["expr"], "1m")
                values = [float(series["value"][1]) for series in await ask(url, expression)]
                assert any(map(isfinite, values)), (panel["title"], expression)
                shown += filter(isfinite, values)
            assert any(shown) or panel["title"] in AT_REST, panel["title"]
        for variable in dashboard(OPERATIONS)["templating"]["list"][1:]:
            assert "label_values(iov_build_info" in variable["query"]["query"]
            (build,) = await ask(url, "iov_build_info")
            assert build["metric"][variable["name"]]


async def test_every_query_of_the_fleet_dashboard_has_an_answer(
    filled: Worker, broker: Mosquitto, database: OwnDatabase
) -> None:
    await fill(broker, database, filled)
    reader = await asyncpg.connect(await database.user("plain_reader", "iov_reader"))
    chosen = {
        variable["name"]: [row[0] for row in await reader.fetch(variable["query"])]
        for variable in dashboard(FLEET)["templating"]["list"][1:]
    }
    assert all(chosen.values())
    now = datetime.now(UTC)
    for panel in panels(FLEET):
        (target,) = panel["targets"]
        text = sql(target["rawSql"], now - SPAN - timedelta(minutes=5), now, 30, chosen)
        rows = await reader.fetch(text)
        assert rows, panel["title"]
        assert any(value for row in rows for value in row.values()), panel["title"]
        columns = list(rows[0].keys())
        for place, column in enumerate(columns):
            assert any(row[place] is not None for row in rows), (panel["title"], column)
        if target["format"] == "time_series":
            assert columns[0] == "time", panel["title"]
            assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    await reader.close()
