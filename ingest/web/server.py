"""`/metrics`, `/livez` and `/readyz`.

Alive means that the event loop answers. Ready means that a message would be stored and
acknowledged now; where not, the answer says what is in the way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ingest.errors import Unavailable

_JSON = "application/json"

Problems = Callable[[], list[str]]
"""What keeps the service from being ready, in words; empty while nothing does."""


def application(registry: CollectorRegistry, problems: Problems) -> web.Application:
    """The routes, over what they read."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def livez(_: web.Request) -> web.Response:
        return web.Response(body=b'{"alive":true}', content_type=_JSON)

    async def readyz(_: web.Request) -> web.Response:
        found = problems()
        body = {"ready": not found, "reason": "; ".join(found) or None, "problems": found}
        return web.Response(
            status=503 if found else 200, body=orjson.dumps(body), content_type=_JSON
        )

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    return app


@asynccontextmanager
async def serve(
    host: str, port: int, registry: CollectorRegistry, problems: Problems
) -> AsyncIterator[int]:
    """Listen while the block runs; yields the port, which is chosen where `port` is 0.

    Raises Unavailable where the address cannot be had.
    """
    runner = web.AppRunner(application(registry, problems), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as exc:
            raise Unavailable(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
