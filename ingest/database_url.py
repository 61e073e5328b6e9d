"""What a database URL says: where it leads, and what is wrong with it, without its password."""

from __future__ import annotations

import os
import re
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
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]*)(:[0-9]{1,5})?")
_PORT = "5432"
_FORM = (
    "is not postgresql://user:password@host:port/database; in the password "
    "/ # ? @ : % are written %2F %23 %3F %40 %3A %25"
)


def problems(url: str) -> list[str]:
    """What the driver would not understand, or do without a word."""
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
    for name in _FILES:
        path = query.get(name)
        if path is not None and not (Path(path).is_file() and os.access(path, os.R_OK)):
            found.append(f"{name}: {path} cannot be read")
    if mode.startswith("verify-") and "sslrootcert" not in query and not _DEFAULT_ROOT.is_file():
        found.append(f"sslmode={mode} needs sslrootcert=FILE, the authority of the server")
    return found


def address(url: str) -> str:
    """`host:port/database` of each host, as far as the URL itself says it."""
    parts = _split(url)
    hosts = _hosts(parts) if parts is not None else []
    if parts is None or not hosts:
        return "of IOV_DATABASE_URL"
    query = _query(parts)
    own = unquote(parts.path[1:]) or query.get("dbname") or query.get("database")
    user = unquote(parts.username or "") or query.get("user") or os.environ.get("PGUSER")
    return f"{','.join(hosts)}/{own or os.environ.get('PGDATABASE') or user or ''}"


def _split(url: str) -> SplitResult | None:
    """The parts; None where one of them may hold some of a password that was not encoded."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises what is wrong with it
    except ValueError:
        # Of several hosts only the last has a port for urlsplit.
        if "," not in url:
            return None
        parts = urlsplit(url)
    spilt = "@" in parts.path or "@" in parts.query or parts.netloc.count("@") > 1
    return None if spilt or parts.fragment else parts


def _hosts(parts: SplitResult) -> list[str]:
    """Hosts with their ports; a directory where it is a Unix socket; none if they are not read."""
    query = _query(parts)
    named = parts.netloc.rpartition("@")[2] or query.get("host") or os.environ.get("PGHOST", "")
    ports = (query.get("port") or os.environ.get("PGPORT") or _PORT).split(",")
    hosts = []
    for number, host in enumerate(map(unquote, named.split(","))):
        if host.startswith("/"):
            hosts.append(host)
        elif _HOST.fullmatch(host):
            name, _, own = host.rpartition(":") if re.search(r":\d+$", host) else (host, "", "")
            hosts.append(f"{name or 'localhost'}:{own or ports[min(number, len(ports) - 1)]}")
        else:
            return []
    return hosts


def _query(parts: SplitResult) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(parts.query).items()}
