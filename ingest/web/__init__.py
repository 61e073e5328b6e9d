"""What is asked over HTTP: metrics, liveness, readiness."""

from ingest.web.server import serve

__all__ = ["serve"]
