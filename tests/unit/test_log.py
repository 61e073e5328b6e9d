from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from ingest import log


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
    structlog.get_logger("service").info("looked at", topic=said)
    (line,) = capsys.readouterr().err.splitlines()
    assert shown in line
    assert "\x1b" not in line
