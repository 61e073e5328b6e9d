"""Frees unused memory: runs the garbage collector, and gives free memory back to the system.

Connections that have ended, and exceptions with their frames, form reference cycles. The collector
is set to leave batches alone, so it seldom looks for these cycles. Also, glibc keeps the memory
that a burst has used, in pieces between memory that is still needed. Without this module, a worker
that lost its broker and was frozen now and then held 243 MB after an hour of `verify`, of which it
used 86 MB.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

EVERY_S = 30.0


def trimmer() -> Callable[[], None]:
    """Return a function that gives free memory back to the system.

    It does nothing if the C library has no malloc_trim (musl, macOS).
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return lambda: None
    return lambda: trim(0)


async def give_back() -> None:
    """Collect garbage and give free memory back every `EVERY_S` seconds until cancelled.

    Giving back 40 MB takes 6 ms, collecting with 33,000 lists to look at 8 ms (measured).
    """
    trim = trimmer()
    while True:
        await asyncio.sleep(EVERY_S)
        gc.collect()
        trim()
