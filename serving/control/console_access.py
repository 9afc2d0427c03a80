"""Who is signed in to the console: one-time links, a cookie, and which requests of a browser are taken.

Owns: the cookie's value, links, the rules for `/console`. Never: credentials themselves (access), pages.

A browser that is signed in holds a cookie that scripts cannot read (HttpOnly), that no other site can make it send
(SameSite=Strict) and that says until when it is good, under a seal that only the yard's admin token makes: a new token
ends every session. Ports of one host are one site, so a change must also come from the console's own origin, port
included. `/admin/v1` never takes the cookie.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from monitoring.console import Cookie, Session, SignInError
from serving.control.access import SAFE_METHODS, Access
from serving.errors import ApiError

PREFIX: Final = "/console"
SIGN_IN: Final = f"{PREFIX}/sign-in"
OPEN: Final = (f"{PREFIX}/static/",)
SESSION_S: Final = 12 * 3600
LINK_S: Final = 120.0
LINKS_MAX: Final = 16
"""Links that wait to be used; a further one takes the place of the oldest."""
ENDED_MAX: Final = 1000
NAME_CHARS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class _Link:
    actor: str
    key_id: str
    expires_at: float


class ConsoleAccess:
    """Sessions of one yard's console; nothing of them is on disk."""

    def __init__(self, access: Access, *, clock: Callable[[], float] = time.time) -> None:
        self._access = access
        self._clock = clock
        self._links: dict[str, _Link] = {}
        self._ended: dict[str, float] = {}
        self.cookie_name = f"modelyard_console_{access.seal('the name of the console cookie')[:8]}"
        """A yard's own, as browsers send cookies to every port of a host."""

    # --- coming in ---

    def link(self, actor: str, key_id: str) -> str:
        """A code that lets whoever shows it in once, within LINK_S, as `actor`."""
        now = self._clock()
        self._links = {code: one for code, one in self._links.items() if one.expires_at > now}
        while len(self._links) >= LINKS_MAX:
            del self._links[next(iter(self._links))]
        code = secrets.token_urlsafe(32)
        self._links[code] = _Link(actor, key_id, now + LINK_S)
        return code

    def redeem(self, code: str) -> Cookie:
        """The cookie for a link's code, which is used up. Raises SignInError."""
        found = self._links.pop(code, None)
        if found is None or found.expires_at <= self._clock():
            raise SignInError("The link was used already or is too old: `modelyard console` makes a new one.")
        return self._cookie(found.actor, found.key_id)

    def sign_in(self, credential: str, name: str) -> Cookie:
        """The cookie for the admin token or for a key of scope admin. Raises SignInError."""
        try:
            key_id = self._access.admit(credential)
        except ApiError as error:
            message = "The key has no scope admin." if error.status == 403 else "This is not the yard's admin token."
            raise SignInError(message) from None
        said = "".join(filter(str.isprintable, name)).strip()[:NAME_CHARS_MAX] or "console"
        return self._cookie(f"{said} with {key_id}" if key_id else said, key_id)

    def end(self, headers: Mapping[bytes, str]) -> None:
        """The session of these headers is good no longer."""
        value = self._value(headers)
        if value:
            now = self._clock()
            self._ended = {one: until for one, until in self._ended.items() if until > now}
            while len(self._ended) >= ENDED_MAX:
                del self._ended[next(iter(self._ended))]
            self._ended[value.rpartition(".")[2]] = now + SESSION_S

    # --- every request ---

    def check(self, method: str, path: str, headers: Mapping[bytes, str]) -> Session | None:
        """Who asks, None where nobody is signed in.

        1. A change must come from the console's own pages, and from somebody who is signed in, except the signing in.
        2. Where the admin API is bound to other than loopback, so must every request but for style and scripts.

        Raises ApiError (401, 403).
        """
        session = self.session(headers)
        is_change = method not in SAFE_METHODS
        if is_change and headers.get(b"origin", "").partition("://")[2].lower() != headers.get(b"host", "").lower():
            raise ApiError(403, "changes are taken from the console's own pages only", code="origin_not_allowed")
        if path == SIGN_IN or path.startswith(OPEN):
            return session
        if session is None and (is_change or self._access.is_public):
            raise ApiError(401, "sign in to the console first", code="not_signed_in")
        return session

    def session(self, headers: Mapping[bytes, str]) -> Session | None:
        """Whose cookie it is; None where there is none that is good now."""
        value = self._value(headers)
        payload, _, seal = value.rpartition(".")
        if not payload or seal in self._ended or not hmac.compare_digest(seal, self._seal(payload)):
            return None
        try:
            said = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            actor, key_id, expires_at = str(said["actor"]), str(said["key"]), float(said["until"])
        except (ValueError, KeyError, TypeError, binascii.Error):
            return None
        if expires_at <= self._clock() or not self._access.is_in_force(key_id):
            return None
        return Session(actor, expires_at)

    def _value(self, headers: Mapping[bytes, str]) -> str:
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(headers.get(b"cookie", ""))
        except CookieError:
            return ""
        return jar[self.cookie_name].value if self.cookie_name in jar else ""

    def _cookie(self, actor: str, key_id: str) -> Cookie:
        until = self._clock() + SESSION_S
        said = {"actor": actor, "key": key_id, "until": until, "n": secrets.token_hex(8)}
        payload = base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
        return Cookie(self.cookie_name, f"{payload}.{self._seal(payload)}", SESSION_S)

    def _seal(self, payload: str) -> str:
        return self._access.seal(f"console session {payload}")


def is_console(path: str) -> bool:
    """Whether the path is one of the console's."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def to_sign_in(scope: Scope) -> Response:
    """Send a browser that is not signed in to where that is done."""
    headers = dict(scope["headers"])
    is_partial = headers.get(b"hx-request") == b"true"
    wanted = scope["path"] if scope["method"] == "GET" and not is_partial else f"{PREFIX}/"
    where = f"{SIGN_IN}?next={quote(wanted, safe='')}"
    if is_partial or scope["method"] not in SAFE_METHODS:
        return Response(status_code=401, headers={"hx-redirect": where})
    return RedirectResponse(where, status_code=303)
