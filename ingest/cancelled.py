"""Detection of a cancellation that other code has replaced with a result or an error."""

from __future__ import annotations

import asyncio


def unless_cancelled(exc: Exception | None = None) -> None:
    """Raise CancelledError if this task was cancelled, even if a result or an error came instead.

    Call it after operations that are known to lose a cancellation:

    - asyncpg's rollback may raise an error of its own instead; pass that error as `exc`
    - `asyncio.wait_for`, which aiomqtt uses, returns the result if it arrives at the same moment as
      the cancellation (python/cpython issue 86296; fixed in 3.12)
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from exc
