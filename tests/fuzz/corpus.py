"""What fuzzing begins with."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path


def sow(seeds: Iterable[bytes]) -> Path | None:
    """Write seeds into the first directory that the command line names, and return it.

    None where it names files only: each is one input, to be run once.
    """
    named = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    directories = [path for path in named if not path.is_file()]
    if not directories:
        return None
    directories[0].mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (directories[0] / f"seed-{number:04}").write_bytes(seed)
    return directories[0]
