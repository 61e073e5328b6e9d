"""Finds a cancellation that somebody else's code has put an answer or an error in the place of."""

from __future__ import annotations

import asyncio


def unless_cancelled(exc: Exception | None = None) -> None:
    """Raise CancelledError if this task was told to end, whatever has come instead.

    Call it after what is known to lose a cancellation:

    - asyncpg's roll-back may raise an error of its own, given here as `exc`
    - `asyncio.wait_for`, which aiomqtt waits with, returns an answer that comes in the same moment
      (python/cpython issue 86296; mended in 3.12)
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from exc
