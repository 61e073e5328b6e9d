"""What a preStop hook asks the Kubernetes API; the API is a fake one, with TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from ingest.commands.statefulset import scaled_in
from ingest.errors import ConfigError, Unavailable

PATH = "/apis/apps/v1/namespaces/cars/statefulsets/iov-ingest"


class Api:
    """Answers GET of one StatefulSet to whoever has the token."""

    def __init__(self, directory: Path) -> None:
        self.account = directory
        self.port = 0
        self.status = 200
        self.document: dict[str, Any] = {"metadata": {}, "spec": {"replicas": 3}}

    async def answer(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer t0ken"
        if request.path != PATH:
            return web.json_response({}, status=404)
        return web.json_response(self.document, status=self.status)

    @property
    def environ(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    async def scaled_in(self, pod: str) -> bool:
        return await scaled_in(pod, self.environ, self.account)


@asynccontextmanager
async def serving(api: Api, authority: trustme.CA) -> AsyncIterator[None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    app = web.Application()
    app.router.add_get("/{anything:.*}", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    api.port = runner.addresses[0][1]
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "namespace").write_text("cars")
    (tmp_path / "token").write_text("t0ken\n")
    made = Api(tmp_path)
    async with serving(made, authority):
        yield made


async def test_a_pod_beyond_the_replicas_is_taken_away_and_others_start_again(api: Api) -> None:
    assert [await api.scaled_in(f"iov-ingest-{n}") for n in (0, 2, 3, 11)] == [
        False, False, True, True,
    ]  # fmt: skip
    api.document["spec"]["ordinals"] = {"start": 5}
    assert [await api.scaled_in(f"iov-ingest-{n}") for n in (5, 7, 8)] == [False, False, True]


async def test_a_set_that_is_deleted_takes_nobody_away(api: Api) -> None:
    assert await api.scaled_in("another-9") is False
    api.document["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert await api.scaled_in("iov-ingest-9") is False


async def test_an_api_that_refuses_or_is_not_ours_is_an_error(api: Api) -> None:
    api.status = 403
    with pytest.raises(Unavailable, match="403"):
        await api.scaled_in("iov-ingest-9")
    trustme.CA().cert_pem.write_to_path(str(api.account / "ca.crt"))
    with pytest.raises(Unavailable, match="does not answer"):
        await api.scaled_in("iov-ingest-9")


async def test_outside_a_pod_of_a_statefulset_it_says_so(api: Api, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ends in -N"):
        await api.scaled_in("iov-ingest-7d9f")
    with pytest.raises(ConfigError, match="service account"):
        await scaled_in("iov-ingest-0", {}, api.account)
    with pytest.raises(ConfigError, match="service account"):
        await scaled_in("iov-ingest-0", api.environ, tmp_path / "nowhere")
