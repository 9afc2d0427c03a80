"""The checks of `modelyard doctor` about access: addresses, keys, the admin token, the certificate.

Owns: looking. Never: changing anything; each returns what it found and raises for nothing of it.
"""

from __future__ import annotations

import sqlite3
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from registry.certificates import trusting
from registry.state import StateDir
from registry.terminal import UserError
from serving.commands.check import Check
from serving.config import ServerConfig
from serving.control.access import check_public, tls_files
from serving.router.tls import load

SOON_S: Final = 14 * 86_400.0
EXPIRED: Final = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""


def examine_access(state: StateDir, server: ServerConfig, config: Path | None) -> Iterator[Check]:
    """Every check of this module, for the server that `config` describes (the usual one without it)."""
    yield keys(state, server)
    yield from token(state)
    if server.tls is not None and config is not None:
        yield certificate(server, config.absolute().parent)


def keys(state: StateDir, server: ServerConfig) -> Check:
    """How many keys are in force, and whether the addresses are allowed with so many."""
    made, active = _count(state, time.time())
    try:
        check_public(server, has_keys=made > 0)
    except UserError as error:
        cause, _, remedy = str(error).partition(": ")
        return Check("access", "fail", cause, remedy)
    if active:
        return Check(
            "access", "ok", f"requests need an API key, of which {active} {'is' if active == 1 else 'are'} in force"
        )
    if made or server.require_keys:
        return Check("access", "warn", "requests need an API key, and none is in force", "run `modelyard keys create`")
    return Check("access", "ok", "no API key is needed: the router is for this machine, or keys were waived")


def _count(state: StateDir, now: float) -> tuple[int, int]:
    """Keys ever made, and those in force; without migrating or locking a database that may be older or in use."""
    if not state.database.is_file():
        return 0, 0
    query = "SELECT count(*), sum(revoked_at IS NULL AND (expires_at = 0 OR expires_at > ?)) FROM api_keys"
    try:
        connection = sqlite3.connect(f"{state.database.as_uri()}?mode=ro", uri=True)
        try:
            made, active = connection.execute(query, (now,)).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:  # from before there were keys
        return 0, 0
    return made, active or 0


def token(state: StateDir) -> Iterator[Check]:
    """Whether nobody else can read the admin token."""
    path = state.admin_token
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & 0o077:
        yield Check("admin token", "warn", f"others can read {path}", "stop the yard, delete the file, and start again")


def certificate(server: ServerConfig, base: Path) -> Check:
    """Whether the router could speak HTTPS with its certificate, and for how long."""
    try:
        files = [Path(name) for name in tls_files(server, base)]
        seen = shown(*files)
    except UserError as error:
        cause, _, remedy = str(error).partition(": ")
        return Check("certificate", "fail", cause, remedy)
    except ssl.SSLCertVerificationError as error:
        what = "has expired" if error.verify_code == EXPIRED else f"is not valid ({error.verify_message})"
        return Check("certificate", "fail", f"{server.tls.certificate if server.tls else ''} {what}", "renew it")
    names = ", ".join(value for _, value in seen.get("subjectAltName", ())) or "no name: clients will refuse it"
    left_s = ssl.cert_time_to_seconds(seen["notAfter"]) - time.time()
    detail = f"for {names}, valid for {left_s / 86_400:.0f} days"
    if left_s < SOON_S:
        return Check("certificate", "warn", detail, "renew it: a new file is in use within a second")
    return Check("certificate", "ok", detail)


def shown(certificate: Path, key: Path) -> dict[str, Any]:
    """What a client sees of a certificate: a handshake in memory. Raises ssl.SSLCertVerificationError."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = load(certificate, key).wrap_bio(there, back, server_side=True)
    client = trusting(certificate, "https://127.0.0.1").wrap_bio(back, there, server_hostname="127.0.0.1")
    waiting = [client, server]
    while waiting:  # each turn one of them goes on
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
    return dict(client.getpeercert() or {})
