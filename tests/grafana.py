"""The shipped dashboards, and what Grafana makes of their variables and macros.

Source: Grafana's documentation, "Prometheus query editor", "PostgreSQL data source: macros" and
"Variable syntax".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

SHIPPED = Path(__file__).parents[1] / "deploy" / "grafana"
OPERATIONS, FLEET = "iov-operations", "iov-fleet"
Panel = dict[str, Any]


def dashboard(uid: str) -> dict[str, Any]:
    """Return a dashboard as it is shipped."""
    document: dict[str, Any] = orjson.loads((SHIPPED / "dashboards" / f"{uid}.json").read_bytes())
    return document


def panels(uid: str) -> Iterator[Panel]:
    """Yield a dashboard's panels, without the row headings."""
    yield from (panel for panel in dashboard(uid)["panels"] if panel["type"] != "row")


def promql(expression: str, rate_interval: str) -> str:
    """Return the expression with its variables set to every worker."""
    expression = expression.replace("$__rate_interval", rate_interval)
    expression = expression.replace("$job", ".*").replace("$instance", ".*")
    assert "$" not in expression, expression
    return expression


def sql(
    text: str, start: datetime, end: datetime, interval_s: int, chosen: Mapping[str, Sequence[str]]
) -> str:
    """Return the SQL with macros, and variables by their chosen values, replaced."""
    for name, values in chosen.items():
        text = text.replace(f"${{{name}:sqlstring}}", ", ".join(f"'{value}'" for value in values))
    text = re.sub(
        r"\$__timeFilter\((\w+)\)",
        rf"\1 BETWEEN '{start.isoformat()}' AND '{end.isoformat()}'",
        text,
    )
    text = re.sub(
        r"\$__timeGroup\((\w+), \$__interval\)",
        rf"floor(extract(epoch FROM \1) / {interval_s}) * {interval_s}",
        text,
    )
    assert "$" not in text, text
    return text
