"""Child processes that end with us and do not receive Ctrl-C from our terminal."""

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
    # Ctrl-C goes to every process of the terminal's group. Without a session of its own, a server
    # would end before we have settled its messages, and a worker would be told to stop twice.
    return await asyncio.create_subprocess_exec(
        *command, start_new_session=True, preexec_fn=_die_with_parent, **options
    )


def _die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends (Linux, prctl(2)).

    Orphaned workers would go on and compete with the next supervisor's workers for client ids.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
