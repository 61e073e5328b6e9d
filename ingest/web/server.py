"""HTTP server of one worker, or of a group of workers.

A worker has `/metrics`, `/livez`, `/readyz` and the live page; a group has `/targets`, `/livez` and
`/readyz`. Alive means that the event loop answers. Ready means that a message would be stored and
acknowledged now; if not, the answer says what is in the way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ingest.errors import Unavailable
from ingest.web.page import TRUSTED, Page

_JSON = "application/json"
MOST_CONNECTIONS = 200
IDLE_S = 30.0

Problems = Callable[[], list[str]]
"""Function that returns the reasons why the service is not ready; empty while it is ready."""


def worker(registry: CollectorRegistry, problems: Problems, page: Page) -> web.Application:
    """Return the application of one worker.

    `/metrics?name[]=NAME` returns only the metrics with these names, as Prometheus' own clients do.
    """

    async def metrics(request: web.Request) -> web.Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        except TypeError as exc:  # a version in it is not a number
            raise ValueError from exc
        names = request.query.getall("name[]", None)
        asked = registry if names is None else registry.restricted_registry(names)
        return web.Response(body=encode(asked), headers={"Content-Type": content_type})

    async def readyz(_: web.Request) -> web.Response:
        return _readiness(problems())

    routes: dict[str, Handler] = {"/metrics": metrics, "/livez": _livez, "/readyz": readyz}
    return _application(routes | page.routes())


def group(ports: Sequence[int], problems: Callable[[], Awaitable[list[str]]]) -> web.Application:
    """Return the application of several workers on one machine, with metrics on these ports.

    `/targets` is a list for Prometheus (`http_sd_configs`), with the host name of the request.
    """

    async def targets(request: web.Request) -> web.Response:
        found = [{"targets": [f"{request.url.host}:{port}" for port in ports], "labels": {}}]
        return web.Response(body=orjson.dumps(found), content_type=_JSON)

    async def readyz(_: web.Request) -> web.Response:
        return _readiness(await problems())

    return _application({"/targets": targets, "/livez": _livez, "/readyz": readyz})


async def _livez(_: web.Request) -> web.Response:
    return web.Response(body=b'{"alive":true}', content_type=_JSON)


def _readiness(problems: list[str]) -> web.Response:
    body = {"ready": not problems, "reason": "; ".join(problems) or None, "problems": problems}
    return web.Response(
        status=503 if problems else 200, body=orjson.dumps(body), content_type=_JSON
    )


def _application(routes: dict[str, Handler]) -> web.Application:
    app = web.Application(middlewares=[_odd_is_400])
    app[TRUSTED] = set()
    for path, handler in routes.items():
        app.router.add_get(path, handler)
    return app


@web.middleware
async def _odd_is_400(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a header or query that cannot be read with 400, not with an error of ours."""
    try:
        return await handler(request)
    except ValueError as exc:  # includes UnicodeError and yarl's errors
        raise web.HTTPBadRequest(text="a header or the query cannot be read") from exc


def _is_ours(record: logging.LogRecord) -> bool:
    """Return False for a line about a malformed request: anybody may send any number of them."""
    exc = record.exc_info[1] if record.exc_info else None
    return not isinstance(exc, HttpProcessingError)


logging.getLogger("aiohttp.server").addFilter(_is_ours)


class _Refused(asyncio.Protocol):
    """A connection that is one too many: it is closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close the new connection."""
        transport.close()


@asynccontextmanager
async def serve(host: str, port: int, application: web.Application) -> AsyncIterator[int]:
    """Listen while the block runs; yields the port, which the system chooses if `port` is 0.

    A connection without a request, or with an unfinished request head, is closed after `IDLE_S`.
    Beyond `MOST_CONNECTIONS` the oldest connection that has not sent the token is closed, so that
    strangers can keep out neither a viewer with the token nor a probe. Raises Unavailable if the
    address cannot be used.
    """
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=IDLE_S)
    await runner.setup()
    try:
        accept = runner.server
        assert accept is not None

        def protocol() -> asyncio.Protocol:
            connections = accept.connections
            trusted = application[TRUSTED]
            trusted.intersection_update(connections)
            if len(connections) >= MOST_CONNECTIONS:
                victim = next((one for one in connections if one not in trusted), None)
                if victim is None:
                    return _Refused()
                victim.force_close()
            return accept()

        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(protocol, host, port)
        except OSError as exc:
            raise Unavailable(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
    finally:
        await runner.cleanup()
