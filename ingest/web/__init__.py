"""What is asked over HTTP: metrics, liveness, readiness, where the metrics are."""

from ingest.web.server import group, serve, worker

__all__ = ["group", "serve", "worker"]
