"""HTTP interface: metrics, liveness, readiness, list of metrics targets, the live page."""

from ingest.web.live import About, Live, WorkerState
from ingest.web.page import Page
from ingest.web.server import group, serve, worker

__all__ = ["About", "Live", "Page", "WorkerState", "group", "serve", "worker"]
