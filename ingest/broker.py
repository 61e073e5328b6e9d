"""The broker as a client sees it: address, client id, subscription and credentials."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from ingest.errors import Unavailable

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_APPLICATION_NAME_BYTES = 63
"""Number of bytes at which PostgreSQL cuts `application_name`: NAMEDATALEN - 1."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Settings of the broker and of this worker's session there.

    For another worker's session, only `client_id` differs.
    """

    url: str | None
    """`mqtt`, `mqtts`, `ws` or `wss://host[:port]`; it holds no secret."""
    client_id: str
    group: str
    """Name of the shared subscription; if empty, the subscription is not shared."""
    topic: str
    client: Literal["auto", "mqtt5", "aiomqtt"]
    """Client that reads MQTT."""
    receive_maximum: int
    """Number of messages in flight that the broker is asked not to exceed."""
    session_expiry_s: int
    max_payload_bytes: int
    name: str | None = None
    """Name of the broker in the register of workers; None: its address."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def _parts(self) -> SplitResult:
        assert self.url is not None
        return urlsplit(self.url)

    @property
    def scheme(self) -> str:
        """`mqtt`, `mqtts`, `ws` or `wss`."""
        return self._parts.scheme

    @property
    def is_web(self) -> bool:
        """True if MQTT goes over WebSocket."""
        return self.scheme in {"ws", "wss"}

    @property
    def host(self) -> str:
        """Host name or address."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """Port from the URL, or the scheme's default port."""
        return self._parts.port or DEFAULT_PORTS[self.scheme]

    @property
    def path(self) -> str:
        """Path of a WebSocket's URL."""
        return self._parts.path or "/mqtt"

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def id(self) -> str:
        """Name of the broker; this name and the client id together identify a worker."""
        return self.name or self.address

    @property
    def subscription(self) -> str:
        """Filter sent in SUBSCRIBE: shared if there is a group."""
        return f"$share/{self.group}/{self.topic}" if self.group else self.topic

    @property
    def application_name(self) -> str:
        """Name of the worker in PostgreSQL: client id, group and broker, or their digest.

        The name must be unique, because a worker ends every connection that has it. The client id
        alone is not enough: workers at two brokers with one database may have the same client id.
        """
        name = f"iov-ingest {self.client_id}"
        if self.url:
            name += f" {self.group}@{self.id}"
        if len(name.encode()) <= _APPLICATION_NAME_BYTES:
            return name
        return "iov-ingest " + hashlib.sha256(name.encode()).hexdigest()[:32]

    def secret(self) -> str | None:
        """Return the password from its setting, or from its file without trailing line breaks.

        This and `tls` read their files again for each connection, because secrets are renewed
        while we run. Both raise Unavailable if a file cannot be read.
        """
        if self.password_file:
            try:
                return self.password_file.read_text().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as exc:
                why = type(exc).__name__
                raise Unavailable(f"the password file cannot be read: {why}") from None
        return self.password

    def tls(self) -> ssl.SSLContext | None:
        """Return a TLS context (1.2 or later, host name checked); None for a plain connection."""
        if self.scheme not in {"mqtts", "wss"}:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as exc:  # includes SSLError
            raise Unavailable(f"the TLS files cannot be used: {exc}") from exc
        return context
