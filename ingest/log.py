"""Structured logs: one line per change of state, key=value or JSON, on standard error.

If standard error is systemd's journal, a line begins with its priority and has no time, because the
journal adds the time (systemd, sd-daemon(3); systemd.exec(5), JOURNAL_STREAM).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Literal

import structlog

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029",
}  # fmt: skip
_render = structlog.processors.LogfmtRenderer(
    key_order=["timestamp", "level", "logger", "event"], drop_missing=True, bool_as_flag=False
)


def _logfmt(
    logger: structlog.typing.WrappedLogger, name: str, event: structlog.typing.EventDict
) -> str:
    """Return the event as one line; control characters from a vehicle or server are escaped."""
    return str(_render(logger, name, event)).translate(_CONTROL)


_PRIORITIES = {
    logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2,
}  # fmt: skip


class _Journal(logging.Formatter):
    """Formatter that puts the priority of syslog(3) before the lines of another formatter."""

    def __init__(self, lines: logging.Formatter) -> None:
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 5)}>{self._lines.format(record)}"


def _is_journal() -> bool:
    """Return whether standard error goes directly to the journal, not through a pipe."""
    try:
        own = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{own.st_dev}:{own.st_ino}"


def configure(form: Literal["logfmt", "json"], level: str) -> None:
    """Send our log from `level` up and the libraries' warnings to standard error, in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.format_exc_info,
    ]
    journal = _is_journal()
    if not journal:
        shared.insert(0, structlog.processors.TimeStamper(fmt="iso", utc=True))
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else _logfmt
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(_Journal(formatter) if journal else formatter)
    logging.basicConfig(handlers=[out], level=logging.WARNING, force=True)
    # Every module has a logger of its own name, below this one.
    logging.getLogger("ingest").setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


class Seldom:
    """Rate limit for a log message that could otherwise repeat with every batch."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._said_s: dict[str, float] = {}

    def allows(self, what: str) -> bool:
        """Return whether `what` may be logged now; if so, remember it as logged."""
        now_s = time.monotonic()
        if now_s < self._said_s.get(what, -self._every_s) + self._every_s:
            return False
        self._said_s[what] = now_s
        return True
