from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


def test_no_two_classes_have_one_name() -> None:
    root, found = Path(__file__).parents[2], dict[str, list[Path]]()
    for file in [*root.glob("ingest/**/*.py"), *root.glob("tests/**/*.py")]:
        for name in re.findall(r"^class ([A-Z]\w*)", file.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(file.relative_to(root))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_predicates_ask_and_do_nothing() -> None:
    root = Path(__file__).parents[2]
    source = "\n".join(file.read_text() for file in root.glob("ingest/**/*.py"))
    assert len(re.findall(r"\n *def _?(?:may|is)_", source)) > 10
    # What waits asks somebody else to do something.
    assert re.findall(r"\n *async def (_?(?:may|is)_\w*)", source) == []
