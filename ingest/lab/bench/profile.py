"""Profile of the service at full load, by a profiler that looks from outside (py-spy)."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from ingest.child import child
from ingest.errors import ServerError
from ingest.lab.bench.drive import drive
from ingest.lab.bench.figures import Figures
from ingest.lab.bench.plan import BenchPlan
from ingest.lab.bench.publisher import Traffic, connected
from ingest.lab.bench.stand import Load, Stand

_SAMPLES_PER_S = 200
_MOST = 25
_LOOP = {"Runner.run runners.py"}
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(?::\d+)?\)")


async def profile(stand: Stand, plan: BenchPlan) -> Figures:
    """Record the stacks of one worker under full load, native frames included."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return {"left_out": "py-spy is not installed: pip install py-spy"}
    with tempfile.TemporaryDirectory(prefix="iov-profile-") as directory:
        file = Path(directory) / "stacks.txt"
        async with stand.database(devices=1_000) as url, stand.service(url, Load()) as service:
            publisher = await connected(stand.broker.port)
            seconds = max(1, round(plan.seconds * plan.runs))
            process = await child(
                program, "record", "--native", "--format", "raw",
                "--duration", str(seconds), "--rate", str(_SAMPLES_PER_S),
                "--output", str(file), "--pid", str(service.pids[0]),
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            traffic = Traffic()
            await drive(publisher, traffic, service.look, seconds, plan.warm_up_s, plan.say)
            publisher.close()
            _, words = await process.communicate()
        if process.returncode:
            raise ServerError(f"py-spy: {words.decode().strip().splitlines()[-1]}")
        stacks = read(file.read_text())
    total = sum(stacks.values())
    own: Counter[str] = Counter()
    for stack, number in stacks.items():
        own[stack[-1]] += number
    return {
        "samples": total,
        "own_percent": {name: round(n / total * 100, 1) for name, n in own.most_common(_MOST)},
        "stacks": {";".join(stack): number for stack, number in stacks.most_common()},
    }


def read(text: str) -> Counter[tuple[str, ...]]:
    """Read py-spy's raw form: one stack and its number on a line, outermost frame first.

    Frames that come before the event loop are left out. Of the frames in C, only the innermost
    function is kept. Different lines of the same function are one frame.
    """
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in text.splitlines():
        frames, _, number = line.rpartition(" ")
        *outer, last = (_name(frame) for frame in frames.split(";"))
        begin = next((n for n, name in enumerate(outer, 1) if name in _LOOP), 0)
        kept = [name for name in outer[begin:] if ".py" in name or "<string>" in name]
        stacks[(*kept, last)] += int(number)
    return stacks


def _name(frame: str) -> str:
    """Return a frame as `function file`, with only the last part of the file's path."""
    match = _FRAME.fullmatch(frame)
    if match is None:
        return frame
    return f"{match['function']} {Path(match['file']).name}"
