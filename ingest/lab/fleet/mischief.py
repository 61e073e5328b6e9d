"""Intentional mistakes of a fleet."""

from __future__ import annotations

from typing import NamedTuple


class Mischief(NamedTuple):
    """Shares of the messages that are bad, duplicate or late, each from 0 to 1."""

    bad: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
