"""How much is measured, and who is told about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Peer(NamedTuple):
    """Another program that reads the same broker and writes a table."""

    command: str
    """Run by a shell; `{mqtt_url}` and `{database_url}` are put in."""
    table: str
    """Counted in that database; the command makes it, or finds it made."""


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The same for every part."""

    say: Callable[[str], None]
    """Told what is going on, in words, again and again."""
    runs: int = 5
    seconds: float = 3.0
    """Of one run, after the warm-up."""
    warm_up_s: float = 1.0
    outage_s: float = 60.0
    devices: int = 100_000
    rows: int = 2_000_000
    """How far `scale` goes."""
    peer: Peer | None = None
    streams: int | None = None
    """How many streams' schemas `hostile` goes through; None: all, and frames."""
