"""What every page of the console is made with: its place in the navigation, the templates, the answer's headers.

Owns: rendering, headers, errors as pages. Never: what a page shows.

A page is a module in `monitoring.console.pages` with two names:

    PAGE = Page("/engines", "Engines", "Which engines run, and what do they say?", order=70)

    def routes(shell: Shell) -> APIRouter:
        router = APIRouter()

        @router.get(PAGE.path)
        async def engines(request: Request) -> Response:
            return shell.render(request, PAGE, "engines.html", status=await shell.source.status())

        return router

Its template extends `layout`, which is the whole page for a browser and only the live part for htmx:

    {% extends layout %}
    {% block live %} … what is drawn anew every two seconds … {% endblock %}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.datastructures import URL

from monitoring.console import words
from monitoring.console.source import SESSION_IN_SCOPE, ConsoleSource, Session

PREFIX: Final = "/console"
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; img-src 'self' data:",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer under `/console`."""


class SignInNeededError(Exception):
    """Somebody asks for what only those who are signed in may see."""


@dataclass(frozen=True, slots=True)
class Page:
    """One question, and where it is answered."""

    path: str
    """Below `/console`; "/" is the first page."""
    title: str
    question: str
    """What it answers, in the words of somebody who asks; stands below the title."""
    order: int
    """Its place in the navigation; 0 leaves it out."""
    private: bool = False
    """It shows what clients wrote, or leads to a change: nobody sees it without signing in, on loopback either."""
    live: bool = True
    """Its `live` block is drawn anew every two seconds."""


class Shell:
    """The console's templates over one source. `clock` is the time of day."""

    def __init__(self, source: ConsoleSource, *, clock: Callable[[], float] = time.time) -> None:
        self.source = source
        self.clock = clock
        self.pages: Sequence[Page] = ()
        """Those of the navigation, in order."""
        self._environment = Environment(
            loader=PackageLoader("monitoring.console"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(words.FILTERS)
        self._environment.filters["plot"] = plot
        self._environment.globals["NOTHING"] = words.NOTHING

    def render(
        self, request: Request, page: Page, template: str, *, status_code: int = 200, **context: Any
    ) -> Response:
        """The page as a browser wants it, or what htmx asked for: the live part, or what belongs into the dialog."""
        layout = "base.html"
        if is_partial(request):
            layout = "dialog.html" if request.headers.get("hx-target") == "dialog-body" else "live.html"
        text = self._environment.get_template(template).render(
            layout=layout,
            page=page,
            pages=self.pages,
            prefix=PREFIX,
            here=here(request),
            session=session_of(request),
            now=self.clock(),
            **context,
        )
        return HTMLResponse(text, status_code=status_code, headers={"cache-control": "no-store", "vary": "hx-request"})

    def to_sign_in(self, request: Request) -> Response:
        """Send whoever is not signed in to the page where that is done, and back afterwards."""
        wanted = here(request) if request.method == "GET" else f"{PREFIX}/"
        if is_partial(request):
            wanted = URL(request.headers.get("hx-current-url", f"{PREFIX}/")).path
        where = str(URL(f"{PREFIX}/sign-in").include_query_params(next=wanted))
        if is_partial(request):
            return Response(status_code=401, headers={"hx-redirect": where})
        return RedirectResponse(where, status_code=303)


def is_partial(request: Request) -> bool:
    """Whether htmx asks, for a part of a page."""
    return request.headers.get("hx-request") == "true"


def here(request: Request) -> str:
    """The path and the query that were asked for."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def session_of(request: Request) -> Session | None:
    """Who is signed in."""
    found = request.scope.get(SESSION_IN_SCOPE)
    return found if isinstance(found, Session) else None


def needs_session(request: Request) -> None:
    """Raise SignInNeededError for whoever is not signed in; a dependency of routes."""
    if session_of(request) is None:
        raise SignInNeededError


def actor_of(request: Request) -> str:
    """Who asks for a change, as the audit writes it; the guard lets nobody else that far."""
    session = session_of(request)
    assert session is not None
    return session.actor


def plot(value: Mapping[str, Any]) -> str:
    """A chart's figures for its `data-chart` attribute (see static/charts.js)."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
