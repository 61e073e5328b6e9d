"""The virtual environment of `make`: made once, and anew where it cannot work any more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
# Makes what a Python and its pip would, and takes note of it.
case "$*" in
"-m venv "*)
    mkdir -p "$3/bin"
    touch "$3/pyvenv.cfg"
    cp "$0" "$3/bin/python"
    for name in pip iov-ingest; do
        printf '#!/bin/sh\\nexec "%s/%s/bin/python"\\n' "$PWD" "$3" >"$3/bin/$name"
        chmod +x "$3/bin/$name"
    done
    echo made >>made ;;
"-m pip "*) echo "$*" | tr ' ' '\\n' | tail -n 1 >>made ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "first"
    (place / "deploy").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "deploy/make-venv"):
        shutil.copy(ROOT / name, place / name)
    script(place / "deploy" / "install-mosquitto", "#!/bin/sh\n")
    script(place / "python", PYTHON)
    return place


def script(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def made(place: Path, target: str = "demo", *arguments: str) -> list[str]:
    """Say what `make` has made and installed for a target, in order."""
    (place / "made").write_text("")
    command = ["make", target, "PYTHON=./python", *arguments]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return (place / "made").read_text().split()


def test_it_is_made_once(checkout: Path) -> None:
    assert made(checkout) == ["made", ".[demo]"]
    assert made(checkout) == []
    assert made(checkout, "setup") == [".[test]"]
    assert made(checkout, "setup") == []
    assert made(checkout) == []


def test_in_a_checkout_that_was_moved_it_is_made_anew(checkout: Path) -> None:
    made(checkout)
    moved = checkout.rename(checkout.parent / "second place")
    assert made(moved) == ["made", ".[demo]"]
    assert made(moved) == []


def test_if_its_python_is_gone_it_is_made_anew(checkout: Path) -> None:
    made(checkout)
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/bin/python-that-was")
    assert made(checkout, "setup") == ["made", ".[test]"]


def test_a_directory_that_is_no_virtual_environment_keeps_what_it_has(checkout: Path) -> None:
    (checkout / "mine").mkdir()
    (checkout / "mine" / "letter").touch()
    made(checkout, "demo", "VENV=mine")
    assert (checkout / "mine" / "letter").exists()
