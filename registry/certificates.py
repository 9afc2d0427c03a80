"""Trusting a yard's own certificate: how this machine's commands speak HTTPS with its router.

Owns: the client's TLS context. Never: serving (serving.router.tls).
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from urllib.parse import urlsplit


def trusting(certificate: Path | str, url: str) -> ssl.SSLContext:
    """A context for `url` that trusts the system's authorities and the certificates in a file. Raises OSError.

    The yard's own certificate is for the name that clients use, and is perhaps signed by nobody known. On this machine
    it is recognised by itself: on a loopback address its name is not asked for.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if is_loopback(urlsplit(url).hostname or ""):
        context.check_hostname = False
    return context


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
