from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from ingest import log
from ingest.lab.until import until
from ingest.metrics import Metrics
from ingest.worker.account import account


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a\nlevel=error event=forged", r"a\nlevel=error event=forged"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\r\x85\u2028b", r"a\r\x85\u2028b"),
        ("Grüße 你好", "Grüße 你好"),
    ],
)
def test_a_line_stays_one_line_whatever_a_vehicle_says(
    said: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("logfmt", "info")
    structlog.get_logger("ingest.worker.service").info("looked at", topic=said)
    (line,) = capsys.readouterr().err.splitlines()
    assert shown in line
    assert "\x1b" not in line


def test_every_module_that_logs_is_heard_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("logfmt", "info")
    named = []
    package = Path(log.__file__).parent
    for file in sorted(package.rglob("*.py")):
        name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        # The laboratory prints; some of it needs a library to draw with.
        if file.stem.startswith("__") or name.startswith("ingest.lab."):
            continue
        logger: Any = getattr(importlib.import_module(name), "log", None)
        if hasattr(logger, "bind"):
            named.append(name)
            logger.info("heard")
            logger.debug("not asked for")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("logger=")[1] for line in lines] == [f"{n} event=heard" for n in named]
    assert {"ingest.worker.supervisor", "ingest.worker.service", "ingest.store.writer"} < set(named)


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_a_line_in_the_journal_has_its_priority_and_no_time_of_its_own(
    form: Literal["logfmt", "json"],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{own.st_dev}:{own.st_ino}")
    with os.fdopen(os.dup(2), "w", buffering=1) as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        log.configure(form, "debug")
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            structlog.get_logger("ingest.worker.service").log(level, "said", why="so")
    lines = capfd.readouterr().err.splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>"]
    assert not any("timestamp" in line for line in lines)
    if form == "json":
        assert json.loads(lines[3][3:])["level"] == "error"
    else:
        assert lines[3] == "<3>level=error logger=ingest.worker.service event=said why=so"


def test_what_is_true_is_written_like_what_is_false(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("logfmt", "info")
    structlog.get_logger("ingest.source").info("subscribed", session_present=True, new=False)
    assert "session_present=true new=false" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [None, "1:2"])
def test_elsewhere_a_line_has_its_time(
    stream: str | None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`JOURNAL_STREAM` is inherited by what writes to a pipe of its own, too."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    with os.fdopen(os.dup(2), "w", buffering=1) as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        log.configure("logfmt", "info")
        structlog.get_logger("ingest.worker.service").warning("said")
    assert capfd.readouterr().err.startswith("timestamp=")


async def test_the_account_tells_what_came_since_the_last_one() -> None:
    metrics = Metrics({"nev": []})
    metrics.samples_stored.labels("nev").inc(7)
    metrics.samples_rejected.labels("nev", "schema").inc(2)
    metrics.samples_rejected.labels("other", "bad_topic").inc()
    with structlog.testing.capture_logs() as lines:
        telling = asyncio.create_task(account(metrics, 0.01))
        await until(lambda: lines)
        assert lines[0] == {
            "event": "account", "log_level": "info", "stored": 7, "duplicate": 0,
            "rejected_schema": 2, "rejected_bad_topic": 1,
        }  # fmt: skip
        metrics.samples_duplicate.labels("nev").inc(3)
        told = len(lines)
        await until(lambda: len(lines) > told)
        telling.cancel()
    assert (lines[told]["stored"], lines[told]["duplicate"]) == (0, 3)
    assert "rejected_schema" not in lines[told]
