"""Who may change a yard, and on which addresses it may be reached.

Owns: the admin token, the check of an admin request's credential, the rule that nothing listens beyond loopback without
keys, finding the router's certificate. Never: requests to models (serving.router.keys), what a call does.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from registry.certificates import is_loopback
from registry.state import ADMIN_TOKEN_VARIABLE
from registry.terminal import NotThereError, UserError
from serving.config import ServerConfig
from serving.errors import ApiError
from serving.router.table import Key
from serving.router.tls import TlsError, load

log = logging.getLogger("modelyard.access")

TOKEN_PREFIX: Final = "myt_"  # noqa: S105 - what every token begins with
TOKEN_BYTES: Final = 32
TOKEN_LENGTH_MIN: Final = 32
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS: Final = frozenset({"/health"})
PRIVATE_PATHS: Final = ("/admin/v1/samples", "/admin/v1/feedback", "/admin/v1/drift")
"""What clients wrote: even reading needs a credential there."""
ADMIN_SCOPE: Final = "admin"


def check_public(server: ServerConfig, *, has_keys: bool) -> None:
    """Raise UserError where the router or the admin API would listen for everybody although no key is needed.

    `has_keys` says whether an API key was ever made: from then on one is required.
    """
    if server.require_keys or has_keys or server.allow_public_without_keys:
        return
    for what, host in (("router", server.host), ("admin API", server.admin_host)):
        if not is_loopback(host):
            raise UserError(
                f"the {what} would listen beyond this machine, on {host or 'every address'}, without API keys: start "
                "with --require-keys (server.require_keys) and make keys with `modelyard keys create`, or say "
                "--allow-public-without-keys (server.allow_public_without_keys)"
            )


def tls_files(server: ServerConfig, base: Path) -> tuple[str, ...]:
    """The files of the certificate and of its key, where the router speaks HTTPS; paths may be relative to `base`.

    Raises NotThereError where one is missing, UserError where they cannot be used.
    """
    if server.tls is None:
        return ()
    files = [(base / Path(name).expanduser()).absolute() for name in (server.tls.certificate, server.tls.key)]
    try:
        load(*files)
    except TlsError as error:
        kind = UserError if all(path.is_file() for path in files) else NotThereError
        raise kind(str(error)) from None
    return tuple(str(path) for path in files)


def admin_token(path: Path) -> str:
    """The token in the file at `path`, made where there is none: 32 random bytes that only the owner can read."""
    try:
        token = path.read_text().strip()
        if len(token) >= TOKEN_LENGTH_MIN:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
                log.warning("%s could be read by others, and no longer can: delete it and restart to replace it", path)
            return token
    except FileNotFoundError:
        pass
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token + "\n")
    temporary.replace(path)
    return token


class Access:
    """Who may call the admin API.

    1. A change needs the admin token or an API key with the scope `admin`.
    2. So does reading what clients wrote.
    3. So does every request but `/health` where the API is bound to other than loopback.

    `keys` gives the keys in force; `clock` is the time of day.
    """

    def __init__(
        self, token: str, keys: Callable[[], Iterable[Key]], *, host: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._token_digest = _digest(token.encode())
        self._keys = keys
        self._is_public = not is_loopback(host)
        self._clock = clock

    @property
    def is_public(self) -> bool:
        """Whether even reading needs a credential."""
        return self._is_public

    def needs_credential(self, method: str, path: str) -> bool:
        private = path.startswith(PRIVATE_PATHS)
        return path not in OPEN_PATHS and (self._is_public or private or method not in SAFE_METHODS)

    def check(self, method: str, path: str, headers: Mapping[bytes, str]) -> str:
        """The id of the key that a request was made with, "" where it was none. Raises ApiError (401, 403)."""
        value = headers.get(b"authorization", "")
        if value[:7].lower() != "bearer " or not value[7:].strip():
            if self.needs_credential(method, path):
                raise _missing()
            return ""
        digest = _digest(value[7:].strip().encode("latin-1"))
        if hmac.compare_digest(digest, self._token_digest):
            return ""
        key = next((one for one in self._keys() if hmac.compare_digest(one.digest, digest)), None)
        if not self.needs_credential(method, path):
            return key.id if key is not None else ""
        return self._admitted(key)

    def admit(self, credential: str) -> str:
        """The id of the key of scope admin that this is, "" for the admin token. Raises ApiError (401, 403)."""
        digest = _digest(credential.strip().encode("utf-8", errors="replace"))
        if hmac.compare_digest(digest, self._token_digest):
            return ""
        return self._admitted(next((one for one in self._keys() if hmac.compare_digest(one.digest, digest)), None))

    def is_in_force(self, key_id: str) -> bool:
        """Whether the key may be used for changes now; the admin token ("") always may."""
        if not key_id:
            return True
        key = next((one for one in self._keys() if one.id == key_id), None)
        return key is not None and ADMIN_SCOPE in key.scopes and not 0 < key.expires_at <= self._clock()

    def seal(self, text: str) -> str:
        """A seal on the text that nobody makes without the admin token."""
        return hmac.new(self._token_digest, text.encode(), hashlib.sha256).hexdigest()

    def _admitted(self, key: Key | None) -> str:
        if key is None or 0 < key.expires_at <= self._clock():
            raise ApiError(401, f"the credential is not valid here: {_REMEDY}", code="invalid_admin_token")
        if ADMIN_SCOPE not in key.scopes:
            raise ApiError(403, f"the key {key.id} has no scope admin: {_REMEDY}", code="missing_scope")
        return key.id


_REMEDY: Final = (
    "send `Authorization: Bearer TOKEN` with the token in the file `admin.token` of the yard's state directory, which "
    f"`modelyard` reads by itself (from elsewhere: {ADMIN_TOKEN_VARIABLE}), or with an API key of scope admin"
)


def _missing() -> ApiError:
    return ApiError(401, f"this needs the admin token: {_REMEDY}", code="missing_admin_token")


def _digest(credential: bytes) -> bytes:
    return hashlib.sha256(credential).digest()
