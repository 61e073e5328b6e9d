"""One way to break something, and what it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from ingest.lab.verify.world import World

LOAD = 100
"""Number of messages to wait for, so that a fault happens under load."""
MOMENT_S = 10.0
"""Seconds allowed for something that should happen at once."""

Break = Callable[[World, Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of breakage."""

    name: str
    what: str
    """Description for people, one line."""
    break_: Break
    needs: str = ""
    """Part of `Servers` that must be there: `database`, `broker`, `small_disk`, `plain_user` or
    `faketime`."""
