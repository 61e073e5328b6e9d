"""`/`, `/status` and `/events`: the live page, its data as JSON, and its data once a second.

Only a viewer who has the token sees devices, positions and details. If no token is set, a viewer on
this machine sees them. A viewer counts as being on this machine if the request

- comes from a loopback address
- has no header of a proxy
- asks for a loopback name; otherwise another site could make its own host name point to this
  machine (DNS rebinding), and its page would get the details

A proxy on this machine that adds no such header looks like a viewer on this machine: if you have
such a proxy, set a token.
"""

from __future__ import annotations

import asyncio
import hmac
from importlib.resources import files
from ipaddress import ip_address

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from ingest.web.live import Live

_EVERY_S = 1.0
_MOST_VIEWERS = 20
"""Number of viewers with details at a time; as many viewers without details are allowed too.

The two groups are counted separately, so strangers cannot keep out a viewer who has the token.
"""
_JSON = "application/json"
_END = b""
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
_LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


TRUSTED = web.AppKey("trusted", set[web.RequestHandler])
"""Connections by which somebody has shown the token."""


class Page:
    """The routes, and who is looking."""

    def __init__(self, live: Live, token: str | None) -> None:
        self._live, self._token = live, token
        self._viewers: dict[asyncio.Queue[bytes], bool] = {}
        """Queue of one viewer's next event → whether this viewer may see details."""
        self._somebody = asyncio.Event()
        self._html = (files("ingest.web") / "page.html").read_bytes()

    def routes(self) -> dict[str, Handler]:
        """Return the handlers by path."""
        return {"/": self._page, "/status": self._status, "/events": self._events}

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._html, content_type="text/html", charset="utf-8", headers=_HEADERS
        )

    async def _status(self, request: web.Request) -> web.Response:
        details = self._may_see_details(request)
        found = self._live.status(details=details)
        return web.Response(body=orjson.dumps(found), content_type=_JSON, headers=_HEADERS)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send server-sent events (WHATWG HTML, 9.2), one a second until the viewer goes."""
        details = self._may_see_details(request)
        alike = list(self._viewers.values()).count(details)
        if alike >= _MOST_VIEWERS:
            raise web.HTTPServiceUnavailable(text=f"{_MOST_VIEWERS} pages are open already")
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        events: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._viewers[events] = details
        self._open_map()
        try:
            known = self._live.positions() if details else None
            await response.write(_event(self._live.status(details=details), known))
            self._somebody.set()
            while event := await events.get():
                await response.write(event)
        except ConnectionResetError:
            pass  # the viewer is gone
        finally:
            del self._viewers[events]
            self._open_map()
        return response

    def _open_map(self) -> None:
        self._live.map_is_open = any(self._viewers.values())

    async def run(self) -> None:
        """Send every viewer an event each second until cancelled; a slow viewer misses some."""
        try:
            while True:
                if not self._viewers:
                    self._somebody.clear()
                    await self._somebody.wait()
                    self._live.rates()
                await asyncio.sleep(_EVERY_S)
                self._tell()
        finally:
            for events in self._viewers:
                if events.full():
                    events.get_nowait()
                events.put_nowait(_END)

    def _tell(self) -> None:
        rates, moved = self._live.rates(), self._live.moved()
        told = {}
        for details in set(self._viewers.values()):
            document = self._live.status(details=details, fresh=False) | {"rates": rates}
            told[details] = _event(document, moved if details else None)
        for events, details in self._viewers.items():
            if not events.full():
                events.put_nowait(told[details])

    def _may_see_details(self, request: web.Request) -> bool:
        if not self._is_trusted(request):
            return False
        if self._token:
            request.app[TRUSTED].add(request.protocol)
        return True

    def _is_trusted(self, request: web.Request) -> bool:
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else request.query.get("token", "")
        if self._token:
            return hmac.compare_digest(given.encode(errors="replace"), self._token.encode())
        return (
            _is_loopback(request.remote)
            and request.url.host in _LOOPBACK_NAMES
            and not any(name in request.headers for name in _FORWARDED)
        )


def _is_loopback(address: str | None) -> bool:
    try:
        return address is not None and ip_address(address).is_loopback
    except ValueError:
        return False


def _event(document: dict[str, object], positions: dict[str, list[object]] | None) -> bytes:
    if positions is not None:
        document = document | {"positions": positions}
    return b"data: " + orjson.dumps(document) + b"\n\n"
