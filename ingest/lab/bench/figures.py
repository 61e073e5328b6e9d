"""Figures of the bench: medians with their spread, and the conditions they were measured under."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

_LIBRARIES = ("aiomqtt", "asyncpg", "jsonschema-rs", "mqtt5", "msgspec", "orjson", "uvloop")

Figures = dict[str, Any]
"""Result of one part, in the form it has in the JSON."""


def figure(values: Iterable[float], digits: int = 0) -> dict[str, float | int]:
    """Return median, lowest and highest value of some runs."""
    found = sorted(values)
    middle = statistics.median(found)
    return {
        "median": _round(middle, digits),
        "low": _round(found[0], digits),
        "high": _round(found[-1], digits),
        "runs": len(found),
    }


def _round(value: float, digits: int) -> float | int:
    return round(value, digits) if digits else round(value)


def loop_s() -> float:
    """Return the CPU seconds of a million additions, to show the machine's present speed."""
    began_s, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return time.process_time() - began_s


def conditions(service: dict[str, int], settings: dict[str, str], server_version: str) -> Figures:
    """Return versions, machine and settings; without them a figure says nothing."""
    return {
        "commit": _commit(),
        "release": version("iov-ingest"),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "settings": service,
        "postgresql": server_version,
        "postgresql_settings": settings,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "kernel": platform.release(),
    }


def _commit() -> str | None:
    """Return the commit of our checkout, marked if files were changed; None without git."""
    here = Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607  whichever git
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def _cpu_model() -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None
