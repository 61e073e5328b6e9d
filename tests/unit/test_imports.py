from __future__ import annotations

import subprocess
import sys

import pytest


def test_a_check_does_not_load_the_simulator() -> None:
    code = "import sys, ingest.commands.check; print([m for m in sys.modules if '.fleet' in m])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_sentence_is_read_without_a_database() -> None:
    code = "import sys, ingest.pipeline; print([m for m in sys.modules if m == 'asyncpg'])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["ingest.worker.service", "ingest.commands.run", "ingest.cli"])
def test_a_worker_does_not_load_the_laboratory(module: str) -> None:
    code = f"import sys, {module}; print([m for m in sys.modules if 'ingest.lab' in m])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
