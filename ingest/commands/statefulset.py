"""Test whether a Kubernetes StatefulSet removes this pod for good, or only starts it again.

Source: Kubernetes, "StatefulSet" (ordinals, start ordinal), "Accessing the Kubernetes API from a
Pod".
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from ingest.errors import ConfigError, Unavailable

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = aiohttp.ClientTimeout(total=10)


async def scaled_in(
    pod: str | None = None, environ: Mapping[str, str] = os.environ, account: Path = _ACCOUNT
) -> bool:
    """Return whether the replicas of a StatefulSet no longer include `pod`.

    `pod` is this host's name by default. False if the set is being deleted or is gone: it may come
    back, and its workers need their sessions then. Raises

    - ConfigError outside a pod of a StatefulSet
    - Unavailable if the API does not answer, or does not let the service account `get` the set
    """
    name, _, ordinal = (pod or socket.gethostname()).rpartition("-")
    try:
        host, port = environ["KUBERNETES_SERVICE_HOST"], environ["KUBERNETES_SERVICE_PORT"]
        namespace = (account / "namespace").read_text().strip()
        token = (account / "token").read_text().strip()
        trusted = ssl.create_default_context(cafile=account / "ca.crt")
    except (KeyError, OSError) as exc:
        raise ConfigError(
            [f"--if-scaled-in is for a pod with a service account: no {exc}"]
        ) from exc
    if not (name and ordinal.isdecimal()):
        raise ConfigError(["--if-scaled-in is for a pod of a StatefulSet, whose name ends in -N"])
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"https://{authority}/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"
    found = await _get(url, token, trusted)
    if found is None or "deletionTimestamp" in found["metadata"]:
        return False
    first: int = found["spec"].get("ordinals", {}).get("start", 0)
    replicas: int = found["spec"].get("replicas", 1)
    return int(ordinal) >= first + replicas


async def _get(url: str, token: str, trusted: ssl.SSLContext) -> dict[str, Any] | None:
    """Return an object of the API; None if it does not exist."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as client,
            client.get(url, headers={"Authorization": f"Bearer {token}"}, ssl=trusted) as answer,
        ):
            if answer.status == HTTPStatus.NOT_FOUND:
                return None
            if not answer.ok:
                raise Unavailable(f"the Kubernetes API says {answer.status} to GET {url}")
            document: dict[str, Any] = await answer.json()
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise Unavailable(f"the Kubernetes API does not answer: {type(exc).__name__}") from exc
    return document
