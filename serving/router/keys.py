"""Who may ask: API keys checked when a request's head is complete, before any of its body is read.

Owns: finding the key that a request carries, and what it may do. Never: I/O, clocks, keeping a key's text; limits
(admission has those).

A key is found by its SHA-256 in a dict and confirmed by a comparison that takes the same time wherever it fails; what
a dict lookup gives away by its time is about digests, from which no key can be computed. That costs a request 1 to
2 µs; without keys it costs the look at an attribute.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from serving.errors import ApiError
from serving.router.table import Key

if TYPE_CHECKING:
    from serving.router.http1 import Request

INFERENCE: Final = "inference"
CREDENTIAL_BYTES_MAX: Final = 512
"""A longer one is no key of ours: it is not hashed."""
_BEARER: Final = b"bearer "
_SPACE: Final = b" \t"


class Keyring:
    """The keys of one table. A worker whose table needs none has no Keyring: then every credential is ignored, since
    SDKs insist on sending one."""

    __slots__ = ("_by_digest",)

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def admit(self, request: Request, now: float) -> ApiError | None:
        """Put the key that `request` carries into it; why it is refused, where it is. `now` is Unix seconds."""
        if _is_open(request.target):
            return None
        credential = credential_of(request.headers)
        if credential is None:
            return missing_key()
        if len(credential) > CREDENTIAL_BYTES_MAX:
            return invalid_key()
        digest = sha256(credential).digest()
        key = self._by_digest.get(digest)
        if key is None or not compare_digest(key.digest, digest):
            return invalid_key()
        request.key = key
        return _refusal(key, now)

    def renew(self, request: Request, now: float) -> ApiError | None:
        """Look again, since the table may have changed while the body came: a revoked key opens nothing any more."""
        held = request.key
        if held is None:  # none was needed when the head came, or is now
            return self.admit(request, now)
        key = request.key = self._by_digest.get(held.digest)
        return invalid_key() if key is None else _refusal(key, now)


def may_use(key: Key | None, model: str) -> bool:
    """Whether requests with this key may go to the public model `model`."""
    return key is None or not key.models or model in key.models


def check_model(key: Key | None, model: str) -> None:
    """Raise ApiError (403) where the key may not use the model."""
    if key is not None and key.models and model not in key.models:
        raise ApiError(
            403,
            f"This key may not use the model {model[:200]!r}; it may use {', '.join(key.models)}.",
            code="model_not_allowed",
            param="model",
        )


def credential_of(headers: dict[bytes, bytes]) -> bytes | None:
    """What a request shows: the token of `Authorization: Bearer`, else `x-api-key`; None where it has neither."""
    value = headers.get(b"authorization")
    if value is not None and value[:7].lower() == _BEARER:
        return value[7:].strip(_SPACE) or None
    return headers.get(b"x-api-key") or None


def missing_key() -> ApiError:
    return ApiError(
        401,
        "You did not provide an API key: send it as `Authorization: Bearer KEY`. The operator makes one with "
        "`modelyard keys create`.",
        code="missing_api_key",
    )


def invalid_key() -> ApiError:
    """One sentence for unknown and revoked keys alike: it gives nothing away."""
    return ApiError(401, "The API key is not valid: it is unknown or was revoked.", code="invalid_api_key")


def _is_open(target: bytes) -> bool:
    """Whether a path needs no key: health, for whoever watches the router."""
    if target[:1] != b"/":  # http://host/path
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    return target.startswith(b"/health/")


def _refusal(key: Key, now: float) -> ApiError | None:
    if 0 < key.expires_at <= now:
        return ApiError(401, "The API key has expired: ask the operator for a new one.", code="invalid_api_key")
    if INFERENCE not in key.scopes:
        return ApiError(
            403,
            f"This key has the scope {', '.join(key.scopes)}: requests to models need the scope inference.",
            code="missing_scope",
        )
    return None
