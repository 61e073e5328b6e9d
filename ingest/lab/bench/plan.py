"""Extent of the measurements, and the callback for their progress."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple


class Peer(NamedTuple):
    """Another program that reads the same broker and writes a table."""

    command: str
    """Shell command, in which `{mqtt_url}` and `{database_url}` are replaced."""
    table: str
    """Table in that database whose rows are counted; the command makes it if it is not there."""


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """Settings that all parts share."""

    say: Callable[[str], None]
    """Callback that gets a text about the progress, again and again."""
    runs: int = 5
    seconds: float = 3.0
    """Seconds of one run, after the warm-up."""
    warm_up_s: float = 1.0
    outage_s: float = 60.0
    devices: int = 100_000
    rows: int = 2_000_000
    """Numbers of devices and of rows up to which `scale` measures."""
    peer: Peer | None = None
    streams: Collection[str] | None = None
    """Streams whose schemas `hostile` goes through; None for all streams and frames."""
