"""HTTPS on the router's port: the certificate and its key, loaded and, when their files change, loaded again.

Owns: the server's TLS context. Never: making certificates, refusing to serve because a new one is broken.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

HANDSHAKE_TIMEOUT_S: Final = 10.0
SHUTDOWN_TIMEOUT_S: Final = 2.0
"""How long a client may take to answer our goodbye."""

MISMATCHES: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""What OpenSSL calls a key that is not the certificate's; the last where it is even of another kind."""

Stamp = tuple[tuple[int, int, int], ...]


class TlsError(ValueError):
    """A certificate or its key cannot be used. `str(error)` is one sentence with the cause and the remedy."""


def load(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context that shows the certificate. Raises TlsError."""
    for what, path in (("certificate", certificate), ("key", key)):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise TlsError(
                f"the TLS {what} {path} cannot be read ({error.strerror}): put the file there, or correct server.tls"
            ) from None
        if b"ENCRYPTED" in text:
            raise TlsError(f"the TLS {what} {path} is encrypted: give it without a passphrase, readable by you only")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError, ValueError) as error:
        if getattr(error, "reason", "") in MISMATCHES:
            raise TlsError(
                f"the TLS key {key} does not belong to the certificate {certificate}: give a matching pair"
            ) from None
        reason = str(getattr(error, "reason", None) or error).replace("_", " ").lower()
        raise TlsError(
            f"{certificate} and {key} are no certificate and key that can be used ({reason}): give both as PEM"
        ) from None
    return context


class Certificate:
    """A certificate in use. `context` is what a server listens with; `refresh` looks whether the files have changed.

    The server's context stays the same object for as long as it listens. It hands every handshake to the newest
    certificate, so that no connection that there is notices, and a key of another kind leaves nothing of the old one.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._stamp = self._look()
        self.context = self._newest = load(certificate, key)
        self.context.sni_callback = self._hand_over
        self.problem = ""
        """Why the files as they are now are not in use; "" where they are."""

    def refresh(self) -> None:
        """Use the files where they have changed; where they cannot be used, go on with what there is and say so."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._newest = load(*self._files)
        except TlsError as error:
            self.problem = str(error)
        else:
            self.problem = ""

    def _hand_over(self, handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        handshake.context = self._newest

    def _look(self) -> Stamp:
        """What tells one state of the files from another; through links, since renewals are often a link's new end."""
        found = []
        for path in self._files:
            try:
                seen = path.stat()
                found.append((seen.st_mtime_ns, seen.st_size, seen.st_ino))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)
