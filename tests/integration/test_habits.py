"""What the repository promises of itself: hosted CI runs `.ci/run`, and a release is whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def workflow(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
    return document


def test_hosted_ci_runs_the_same_on_every_python_the_project_says() -> None:
    jobs = workflow("ci.yml")["jobs"]
    pythons = [
        found[1]
        for line in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert jobs["run"]["strategy"]["matrix"]["python"] == pythons
    assert jobs["run"]["steps"][-1] == {"run": "bash .ci/run"}
    assert jobs["wheel"]["steps"][-1] == {"run": "make wheel"}
    assert jobs["lowest"]["steps"][-1] == {"run": "make lowest ARGS=tests"}


def test_every_dependency_says_the_lowest_version_that_works() -> None:
    """`make lowest` reads them to install exactly these."""
    for wanted in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+(,<[\d.]+)?", wanted), wanted


def test_what_workflows_and_scripts_call_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = [workflow("ci.yml"), workflow("audit.yml"), (ROOT / ".ci/run").read_text()]
    scripts.append((ROOT / ".ci/release").read_text())
    called = set(re.findall(r"\bmake ([a-z]+)\b", str(scripts)))
    (loop,) = re.findall(r"for target in ([a-z ]+);", str(scripts))
    assert {"wheel", "audit", "image", "lint", "lowest"} <= called | set(loop.split()) <= targets


@pytest.mark.parametrize("form", ["wrong.yml", "field.yml"])
def test_the_forms_have_what_a_form_needs(form: str) -> None:
    document = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / form).read_text())
    assert document["name"]
    assert document["description"]
    ids = [part["id"] for part in document["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 2


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with this one's recipe, whose checks take no time."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/release", tmp_path / ".ci")
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    checks(tmp_path, "true")
    (tmp_path / "Makefile").write_text("wheel:\n\t@mkdir -p dist\n")
    for command in (
        ["init", "--quiet"], ["config", "user.name", "t"], ["config", "user.email", "t@localhost"],
        ["add", "--all"], ["commit", "--quiet", "--message", "begin"],
    ):  # fmt: skip
        git(tmp_path, *command)
    return tmp_path


def checks(clone: Path, command: str) -> None:
    run = clone / ".ci" / "run"
    run.write_text(f"#!/bin/sh\n{command}\n")
    run.chmod(0o755)


def git(clone: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=clone, text=True)


def release(clone: Path, *to: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [".ci/release", *to], cwd=clone, capture_output=True, text=True, check=False
    )


def test_a_release_has_its_version_its_day_and_its_tag(clone: Path) -> None:
    ended = release(clone, "7.1.0")
    assert ended.returncode == 0, ended.stderr
    assert tomllib.loads((clone / "pyproject.toml").read_text())["project"]["version"] == "7.1.0"
    heads = re.findall(r"^## (.*)$", (clone / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert re.fullmatch(r"7\.1\.0 \(\d{4}-\d\d-\d\d\)", heads[1])
    assert git(clone, "describe") == "v7.1.0\n"
    assert git(clone, "status", "--porcelain") == ""
    assert "git push --follow-tags" in ended.stdout
    again = release(clone, "7.2.0")
    assert "nothing under Unreleased" in again.stderr


def test_what_is_not_ready_is_not_released(clone: Path) -> None:
    for to, why in (((), "say which"), (("7.1",), "say which"), (("0.0.1",), "is before")):
        assert why in release(clone, *to).stderr
    checks(clone, "false")
    assert "not committed" in release(clone, "7.1.0").stderr
    git(clone, "commit", "--quiet", "--all", "--message", "a check that fails")
    failed = release(clone, "7.1.0")
    assert failed.returncode == 1
    assert "a check failed" in failed.stderr
    assert git(clone, "status", "--porcelain") == ""
    assert git(clone, "tag") == ""


def test_the_version_is_in_one_place() -> None:
    """A second one would be forgotten. Changelog and generated files tell of other things too."""
    files = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
    version = re.compile(rf"(?<![\d.]){re.escape(PROJECT['version'])}(?![\d.])")
    elsewhere = [
        name
        for name in files
        if name.startswith(("ingest/", "deploy/", "k8s/", "README", "Makefile", ".ci", ".github"))
        if name.rpartition(".")[2] not in {"png", "json"}
        if version.search((ROOT / name).read_text())
    ]
    assert elsewhere == []
