"""The shipped Prometheus configuration: as promtool tests it, and on a real worker."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from tests.prometheus import SHIPPED, alertmanager, ask, program, prometheus
from tests.support import (
    Worker,
    publisher,
    sample,
)

ROOT = Path(__file__).parents[2]
METRIC = re.compile(r"\b(iov_[a-z_]+|node_[a-z_]+|up)\b")


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((SHIPPED / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "config", "prometheus.yml"),
        ("promtool", "test", "rules", "alerts_test.yml"),
        ("amtool", "check-config", "alertmanager.yml"),
    ],
)
def test_their_own_tools_have_nothing_against_it(command: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [program(command[0]), *command[1:]],
        cwd=SHIPPED,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_alert_is_tested_and_has_its_paragraph() -> None:
    alerts = [rule["alert"] for rule in rules("alerts.yml")]
    tests = yaml.safe_load((SHIPPED / "alerts_test.yml").read_text())["tests"]
    raised = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert raised == set(alerts)
    for rule in rules("alerts.yml"):
        anchor = "{{ $externalLabels.runbooks }}#" + rule["alert"].lower()
        assert rule["annotations"]["runbook_url"] == anchor
        assert rule["labels"]["severity"] in {"page", "ticket"}
    runbook = (ROOT / "docs" / "alerts.md").read_text()
    assert re.findall(r"^## (.+)$", runbook, re.MULTILINE) == alerts


def named(expressions: Iterator[str]) -> set[str]:
    """The metrics of ours that expressions name; a recorded one has a colon before it."""
    return {
        found
        for expression in expressions
        for found in METRIC.findall(re.sub(r"\w+:iov_\w+:\w+", "", expression))
        if found.startswith("iov_")
    }


async def test_a_real_prometheus_finds_every_metric_that_rules_and_alerts_name(
    broker: Mosquitto, worker: AbstractAsyncContextManager[Worker], tmp_path: Path
) -> None:
    program("prometheus")
    async with worker as running:
        assert running.service.http_port is not None
        async with prometheus(tmp_path, running.service.http_port) as url:
            await until(lambda: ask(url, "iov_ready == 1"), "the first scrape")
            old = datetime.now(UTC) - timedelta(days=1)
            async with publisher(broker.url) as publish:
                await publish(sample(1))
                await publish(sample(2, old, resend=True))
                await running.settles(2)
                # A rate wants two scrapes with something between them.
                await until(lambda: ask(url, 'iov_samples_stored_total{stream="nev"} == 2'))
                await publish(sample(3))
            await running.settles(3)
            recorded, alerts = rules("rules.yml"), rules("alerts.yml")
            for name in named(rule["expr"] for rule in [*recorded, *alerts]):
                await until(partial(ask, url, name), name)
            for rule in recorded:
                await until(partial(ask, url, rule["record"]), rule["record"])
            window = await ask(url, "iov_window_messages")
            assert window[0]["value"][1] == "6000"
            (account,) = await until(lambda: ask(url, "instance:iov_account_open:samples == 0"))
            assert account["metric"]["job"] == "iov-ingest"
            (late,) = await ask(url, 'sum(iov_resent_event_lag_seconds_count{stream="nev"})')
            assert late["value"][1] == "1"
            ahead = await ask(url, "(iov_partitions_until_timestamp_seconds - time()) / 86400")
            assert 3 <= float(ahead[0]["value"][1]) <= 4
            assert not await ask(url, 'ALERTS{alertstate="firing"}')


async def test_a_worker_that_is_gone_wakes_somebody(
    worker: AbstractAsyncContextManager[Worker], tmp_path: Path
) -> None:
    """The whole way: a worker, Prometheus, Alertmanager, and the one who is called."""
    calls: list[dict[str, Any]] = []

    async def called(request: web.Request) -> web.Response:
        calls.append(await request.json())
        return web.Response()

    def fires(name: str) -> dict[str, Any] | None:
        alerts = (alert for call in calls for alert in call["alerts"])
        return next((a for a in alerts if a["labels"]["alertname"] == name), None)

    application = web.Application()
    application.router.add_post("/", called)
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(application)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pager = await stack.enter_async_context(alertmanager(tmp_path, runner_url(runner)))
        async with worker as running:
            assert running.service.http_port is not None
            found = prometheus(tmp_path, running.service.http_port, alertmanager=pager)
            url = await stack.enter_async_context(found)
            await until(lambda: ask(url, "iov_ready == 1"), "the first scrape")
            assert fires("IovWorkerDown") is None
            # Nothing is published here.
            alert = await until(lambda: fires("IovNoData"), "no data, told to somebody")
            assert alert["annotations"]["runbook_url"] == "docs/alerts.md#iovnodata"
            assert "runbooks" not in alert["labels"]
        alert = await until(lambda: fires("IovWorkerDown"), "a worker that is gone, told likewise")
        assert alert["labels"]["severity"] == "page"


def runner_url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}/"
