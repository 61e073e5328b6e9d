"""Digests that stand for private values: equal values have equal digests.

ICCIDs and drivers' ids have few possible values. A plain SHA-256 of one can be found by trying them
all; HMAC-SHA-256 (RFC 2104) with a secret key cannot.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ingest.errors import ConfigError

Digest = Callable[[str], str]
"""Function from a text to its digest in hexadecimal, `CHARACTERS` long."""
CHARACTERS = 64
"""Length of a digest."""
_DIGEST = re.compile(rf"[0-9a-f]{{{CHARACTERS}}}")
LEAST_KEY_BYTES = 32
"""Length of a SHA-256 digest, below which a key is weaker than the digest (RFC 2104, 3)."""


def sha256(text: str) -> str:
    """Return the SHA-256 digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def keyed(key: bytes, text: str) -> str:
    """Return the HMAC-SHA-256 of a text."""
    return hmac.digest(key, text.encode(), "sha256").hex()


def once(digest: Digest) -> Digest:
    """Return a digest that leaves a text as it is if it is a digest already."""
    return lambda text: text if _DIGEST.fullmatch(text) else digest(text)


def digest_of(key_file: Path | None) -> Digest:
    """Return the digest with the key in a file, plain SHA-256 if there is no file.

    White space around the key does not belong to it. Raises ConfigError if the file cannot be read
    or its key is too short.
    """
    if key_file is None:
        return sha256
    try:
        key = key_file.read_bytes().strip()
    except OSError as exc:
        raise ConfigError([f"IOV_DIGEST_KEY_FILE: {key_file}: {exc.strerror}"]) from exc
    if len(key) < LEAST_KEY_BYTES:
        told = f"{len(key)} bytes, at least {LEAST_KEY_BYTES}: openssl rand -hex 32 makes a key"
        raise ConfigError([f"IOV_DIGEST_KEY_FILE: {key_file}: {told}"])
    return partial(keyed, key)
