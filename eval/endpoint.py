"""Where requests go, and what exactly answers there.

Owns: finding the server's URL and the admin API, and turning a reference into a Subject. Never: sending requests for
completions.

With the admin API, `assistant@champion` becomes the version behind the alias, pinned, with its digest. Without it (any
OpenAI endpoint) the URL and the model name stand for the version, and the Subject says so.
"""

from __future__ import annotations

import getpass
import os
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from eval.errors import RequestRefusedError, ServerGoneError
from eval.results import Subject
from registry.certificates import trusting
from registry.models import InvalidNameError, VersionRef
from registry.state import ADMIN_URL_VARIABLE, URL_VARIABLE, StateDir
from registry.terminal import UserError

KEY_VARIABLE = "MODELYARD_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server: its OpenAI base URL without `/v1`, and its admin API's ("" where there is none)."""

    url: str
    admin_url: str = ""
    admin_token: str = ""
    certificate: str = ""
    """The file of the certificate that this machine's own yard shows; "" for any other server."""

    @property
    def verify(self) -> ssl.SSLContext | bool:
        """How the server is recognised: a yard of this machine by its certificate, others by who signed theirs."""
        try:
            return trusting(self.certificate, self.url) if self.certificate else True
        except OSError:  # the yard says so itself, and the server is asked like any other
            return True


def find(url: str | None, admin_url: str | None, state: StateDir) -> Endpoint:
    """The endpoint given, else the environment's, else the yard's that runs on this state directory.

    A yard's admin API is used only for the yard's own URL: another server's versions are not this yard's.
    """
    yard = state.read_yard()
    own = yard.url.rstrip("/") if yard else DEFAULT_URL
    chosen = _base(url or os.environ.get(URL_VARIABLE) or own)
    admin = admin_url or os.environ.get(ADMIN_URL_VARIABLE) or ""
    if not admin and yard is not None and chosen == own:
        admin = yard.admin_url
    admin = admin.rstrip("/")
    certificate = yard.certificate if yard is not None and chosen == own else ""
    return Endpoint(chosen, admin, state.token_for(admin) if admin else "", certificate)


def headers() -> dict[str, str]:
    """Evaluation waits behind people (the class `batch`); and the authorisation, where MODELYARD_API_KEY is set."""
    key = os.environ.get(KEY_VARIABLE, "")
    return {"x-modelyard-priority": "batch"} | ({"authorization": f"Bearer {key}"} if key else {})


def trusts_environment(url: str) -> bool:
    """Whether proxies named in the environment apply: never to this machine."""
    return (urlsplit(url).hostname or "") not in {"127.0.0.1", "localhost", "::1"}


def resolve(endpoint: Endpoint, ref: str) -> Subject:
    """The Subject that `ref` stands for: `model@label`, `model@alias`, a plain model name, or `URL#MODEL`.

    Raises UserError where the reference or the version does not exist, ServerGoneError where nothing answers.
    """
    if ref.startswith(("http://", "https://")):
        url, _, model = ref.partition("#")
        endpoint, name = Endpoint(_base(url)), model or "default"
    else:
        name = ref
    check_alive(endpoint)
    subject = Subject(ref=ref, model=name, url=endpoint.url)
    parsed = _parsed(name)
    if not endpoint.admin_url or parsed is None:
        return _unknown(subject, "there is no admin API to tell the version's digest")
    if not parsed.label:
        return _unknown(
            subject, f"{name} goes through the route, so several versions may answer; pin one with {name}@…"
        )
    found = version(endpoint, parsed)
    if found is None:
        return _unknown(subject, f"the admin API at {endpoint.admin_url} does not answer")
    pinned = f"{parsed.model}@{found['label']}"
    note = f"{ref} is {pinned} at the moment" if pinned != ref else ""
    engine = str(found.get("engine") or "")
    return msgspec.structs.replace(subject, model=pinned, digest=str(found["digest"]), note=note, engine=engine)


def check_alive(endpoint: Endpoint) -> None:
    """ServerGoneError with the remedy unless an OpenAI server answers; RequestRefusedError where it wants a key."""
    try:
        answer = httpx.get(
            f"{endpoint.url}/v1/models",
            headers=headers(),
            timeout=_TIMEOUT_S,
            trust_env=trusts_environment(endpoint.url),
            verify=endpoint.verify,
        )
    except httpx.InvalidURL as error:
        raise UserError(f"{endpoint.url!r} is not a URL ({error}): give one like {DEFAULT_URL}") from error
    except httpx.UnsupportedProtocol as error:
        raise UserError(f"{endpoint.url!r} is not a URL: give one like {DEFAULT_URL}") from error
    except httpx.TransportError as error:
        raise ServerGoneError(
            f"no server answers at {endpoint.url} ({error or type(error).__name__}): start one with "
            "modelyard up configs/quickstart.yaml, or name it with --url"
        ) from error
    if answer.status_code in {401, 403}:
        raise RequestRefusedError(f"{endpoint.url} wants a key: set {KEY_VARIABLE} (`modelyard keys create` makes one)")


def admin_get(endpoint: Endpoint, path: str) -> Any:
    """The JSON of an admin API path, or None where the API is not there or says no."""
    answer = _ask_admin(endpoint, path)
    return _json(answer) if answer is not None and answer.is_success else None


def admin_post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """What an admin API answers to a POST, its refusals too; None where the API is not there."""
    answer = _ask_admin(endpoint, path, body)
    value = _json(answer) if answer is not None else None
    return value if isinstance(value, dict) else None


def _ask_admin(endpoint: Endpoint, path: str, body: dict[str, Any] | None = None) -> httpx.Response | None:
    if not endpoint.admin_url:
        return None
    url = f"{endpoint.admin_url}/admin/v1/{path}"
    known = {"authorization": f"Bearer {endpoint.admin_token}"} if endpoint.admin_token else {}
    if body is not None:
        known["x-modelyard-actor"] = getpass.getuser()
    method = "GET" if body is None else "POST"
    trusts = trusts_environment(url)
    try:
        return httpx.request(method, url, json=body, headers=known, timeout=_TIMEOUT_S, trust_env=trusts)
    except (httpx.HTTPError, httpx.InvalidURL):
        return None


def version(endpoint: Endpoint, ref: VersionRef) -> dict[str, Any] | None:
    """Label and digest of the version or alias; None where the admin API is away. UserError where it is unknown."""
    answer = _ask_admin(endpoint, f"models/{quote(ref.model)}/versions/{quote(ref.label)}")
    value = _json(answer) if answer is not None else None
    if answer is None or not isinstance(value, dict) or answer.status_code >= 500:
        return None
    if answer.is_success and {"label", "digest"} <= value.keys():
        return value
    error = value.get("error")
    reason = error.get("message", "") if isinstance(error, dict) else ""
    raise UserError(f"{ref} cannot be evaluated: {reason or f'the admin API answers {answer.status_code}'}")


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _unknown(subject: Subject, reason: str) -> Subject:
    return msgspec.structs.replace(
        subject, note=f"version digest unknown ({reason}): runs are kept by URL and model name"
    )


def _parsed(name: str) -> VersionRef | None:
    try:
        return VersionRef.parse(name)
    except InvalidNameError:
        return None


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
