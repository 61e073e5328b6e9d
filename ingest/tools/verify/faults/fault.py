"""What a fault is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from ingest.tools.verify.world import World

LOAD = 100
"""Messages that have to be under way for a fault to be worth its name."""
MOMENT_S = 10.0
"""How long what should happen at once may take."""

Break = Callable[[World, Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of breakage."""

    name: str
    what: str
    """For people, one line."""
    break_: Break
    needs: str = ""
    """What of `Servers` must be there: `database`, `broker`, `small_disk`, `plain_user` or
    `faketime`."""
