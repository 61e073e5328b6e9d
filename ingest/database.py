"""The database as a client sees it: its URL, the servers in the URL, and errors in the URL.

No text about a URL contains its password.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_OF_LIBPQ = frozenset({
    "channel_binding", "connect_timeout", "gssdelegation", "gssencmode", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts",
    "require_auth", "requirepeer", "sslcertmode", "sslcompression", "sslsni", "tcp_user_timeout",
})  # fmt: skip
"""Parameters of libpq (PostgreSQL, 32.1.2) that asyncpg does not know and would send the server."""
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_DEFAULT_ROOT = Path(os.path.expanduser("~/.postgresql/root.crt"))  # noqa: PTH111  a user may have no home
_HOST = re.compile(r"(\[[\w:.%]+\]|[\w.-]*)(:[0-9]{0,5})?")
_NOT_ENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORT, _MOST_PORT = "5432", 65_535
_FORM = (
    "is not postgresql://user:password@host:port/database; in the password "
    "/ # ? @ : % are written %2F %23 %3F %40 %3A %25"
)


@dataclass(frozen=True, slots=True)
class Database:
    """Settings of the database."""

    url: str = field(repr=False)
    """URL for the driver only, because it may hold a password."""

    @property
    def address(self) -> str:
        """`host:port,…/database`, from the URL or, for parts it lacks, from the `PG*` variables."""
        parts = _split(self.url)
        hosts = _hosts(parts) if parts is not None else []
        if parts is None or not hosts:
            return "of IOV_DATABASE_URL"
        query = _query(parts)
        own = unquote(parts.path[1:]) or query.get("dbname") or query.get("database")
        user = unquote(parts.username or "") or query.get("user") or os.environ.get("PGUSER")
        return f"{','.join(hosts)}/{own or os.environ.get('PGDATABASE') or user or ''}"

    def asked_in_clear(self) -> list[tuple[str, int]]:
        """Return (host, port) of the servers that the driver does not ask for TLS first."""
        parts = _split(self.url)
        if parts is None:
            return []
        mode = _query(parts).get("sslmode") or os.environ.get("PGSSLMODE", "prefer")
        if mode not in {"disable", "allow"}:
            return []
        named = [host.rpartition(":") for host in _hosts(parts) if not host.startswith("/")]
        return [(host.strip("[]"), int(port)) for host, _, port in named]


def url_problems(url: str) -> list[str]:
    """Return the errors that keep the driver from using the URL."""
    found = []
    parts = _split(url)
    if parts is None or not _hosts(parts):
        return [_FORM]
    query = _query(parts)
    mode = query.get("sslmode", "prefer")
    if mode not in _SSL_MODES:
        found.append(f"sslmode is one of {', '.join(_SSL_MODES)}")
    found += [
        f"{name} is libpq's and not known here: leave it out"
        for name in sorted(query.keys() & _OF_LIBPQ)
    ]
    found += _wrong_files(query)
    known = "sslrootcert" in query or "PGSSLROOTCERT" in os.environ or _DEFAULT_ROOT.is_file()
    by_socket = all(host.startswith("/") for host in _hosts(parts))
    if mode.startswith("verify-") and not known and not by_socket:
        found.append(f"sslmode={mode} needs sslrootcert=FILE, the authority of the server")
    return found


def _wrong_files(query: dict[str, str]) -> list[str]:
    """Return the errors of the TLS files: unreadable, or a root file without a certificate."""
    found = []
    for name in _FILES:
        path = query.get(name)
        if path is not None and not (Path(path).is_file() and os.access(path, os.R_OK)):
            found.append(f"{name}: {path} cannot be read")
    if not found and (root := query.get("sslrootcert")):
        try:
            ssl.create_default_context(cafile=root)
        except ssl.SSLError:
            found.append(f"sslrootcert: {root} holds no certificate (PEM)")
    return found


def _split(url: str) -> SplitResult | None:
    """Split a URL; return None if it is invalid or if a part may hold a piece of a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    # If a password is not encoded, a / or ? in it ends the host part, and an @ ends the password.
    cut = "@" not in parts.netloc and ":" in parts.netloc and "@" in parts.path + parts.query
    cut |= parts.netloc.count("@") > 1 or bool(parts.fragment)
    return None if cut or _NOT_ENCODED.search(parts.netloc) else parts


def _hosts(parts: SplitResult) -> list[str]:
    """Return each host's `host:port` or Unix socket directory; an empty list if one is invalid."""
    query = _query(parts)
    own = parts.netloc.rpartition("@")[2]
    named = own or query.get("host") or os.environ.get("PGHOST", "")
    # A port in the query does not apply to hosts that stand before the path.
    ports = ((not own and query.get("port")) or os.environ.get("PGPORT") or _PORT).split(",")
    hosts = []
    for number, host in enumerate(map(unquote, named.split(","))):
        if host.startswith("/"):
            hosts.append(host)
        elif _HOST.fullmatch(host):
            name, port = _HOST.fullmatch(host).groups()  # type: ignore[union-attr]  # it matches
            port = (port or "").removeprefix(":") or ports[min(number, len(ports) - 1)]
            if int(port) > _MOST_PORT:
                return []
            hosts.append(f"{name or 'localhost'}:{port}")
        else:
            return []
    return hosts


def _query(parts: SplitResult) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(parts.query).items()}
