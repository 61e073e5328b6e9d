"""Polling, to wait for an event that nobody reports to us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ingest.errors import ServerError

LIMIT_S = 60.0
_LOOK_EVERY_S = 0.02


async def until(
    condition: Callable[[], Any], what: str = "the event", limit_s: float = LIMIT_S
) -> Any:
    """Wait for `condition`, plain or async, to be true, and return its value.

    Raises ServerError after `limit_s`; its text names `what` was waited for.
    """
    try:
        async with asyncio.timeout(limit_s):
            while True:
                value = condition()
                if asyncio.iscoroutine(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(_LOOK_EVERY_S)
    except TimeoutError:
        raise ServerError(f"waited {limit_s:.0f} s in vain for {what}") from None
