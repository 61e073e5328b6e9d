"""Reasons why a server was not reached, in words that say where to look."""

from __future__ import annotations

import errno
import socket
import ssl

_OTHER_HOST = {62, 64}
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH (OpenSSL, x509_vfy.h)."""
_OTHER_AUTHORITY = {2, 18, 19, 20, 21}
"""Codes for a missing issuer and for a self-signed certificate (OpenSSL, x509_vfy.h)."""
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH}
_WORDS: dict[type[Exception], str] = {
    TimeoutError: "no answer: is the address right, or a firewall in the way?",
    ConnectionRefusedError: "connection refused: nothing listens there",
    ConnectionResetError: "it hung up: is the port right, and TLS on both sides or on neither?",
    FileNotFoundError: "there is no such socket: is the server up, and the directory right?",
}


def why(exc: Exception, authority: str) -> str:
    """Return in words why a connection failed; `authority` names the setting for its CA."""
    match exc:
        case socket.gaierror():
            return f"the name of the host is not known: {exc.strerror}"
        case ssl.SSLCertVerificationError() if exc.verify_code in _OTHER_HOST:
            return "its certificate is for another host: connect by the name that is in it"
        case ssl.SSLCertVerificationError() if exc.verify_code in _OTHER_AUTHORITY:
            return f"its certificate is of an authority that is not trusted here: set {authority}"
        case ssl.SSLCertVerificationError():
            return f"its certificate is refused: {exc.verify_message}"
        case ssl.SSLError():
            return f"no TLS with it ({_reason(exc)}): does it speak TLS on this port?"
        case OSError() if exc.errno in _UNREACHABLE:
            return f"no way there: {exc.strerror}"
    return _WORDS.get(type(exc)) or str(exc) or type(exc).__name__


def _reason(exc: ssl.SSLError) -> str:
    return (exc.reason or str(exc)).lower().replace("_", " ")
