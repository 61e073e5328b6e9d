"""Structured logs: one line per change of state, key=value or JSON, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure(form: Literal["logfmt", "json"], level: str) -> None:
    """Send our log and that of the libraries to standard error, in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "logger", "event"], drop_missing=True
        )
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(formatter)
    logging.basicConfig(handlers=[out], level=logging.WARNING, force=True)
    for name in ("service", "source", "store", "pipeline", "tools"):
        logging.getLogger(name).setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
