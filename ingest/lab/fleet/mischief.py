"""Mistakes of a fleet, by intention."""

from __future__ import annotations

from typing import NamedTuple


class Mischief(NamedTuple):
    """Shares of the messages, from 0 to 1, that are not as they should be."""

    bad: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
