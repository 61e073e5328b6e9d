"""Processes of our own: each ends with us, and Ctrl-C in our terminal is not for them."""

from __future__ import annotations

import asyncio
import ctypes
import signal
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


async def child(*command: str | Path, **options: Any) -> asyncio.subprocess.Process:
    """Start a process; `options` are those of `asyncio.create_subprocess_exec`."""
    # Ctrl-C in a terminal is for every process of the group: a server would end before we have
    # settled what it holds, and a worker would be told to stop twice. So each has its own session.
    return await asyncio.create_subprocess_exec(
        *command, start_new_session=True, preexec_fn=_die_with_parent, **options
    )


def _die_with_parent() -> None:
    """Have the kernel tell this process to stop when its parent is gone (Linux, prctl(2)).

    Orphans would go on: workers would fight those of the next supervisor for their client ids.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
