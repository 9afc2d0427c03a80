"""Signing in and out: the form that takes the admin token, one-time links, forgetting.

Owns: the cookie as a browser gets it, where one goes afterwards. Never: deciding who may come in (the source does).
"""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from monitoring.console.shell import PREFIX, Page, Shell, session_of
from monitoring.console.source import Cookie, SignInError

PAGE = Page(
    "/sign-in", "Sign in", "Looking needs nothing on this machine; changing anything does.", order=0, live=False
)
FIELD_CHARS_MAX = 4096


def routes(shell: Shell) -> APIRouter:
    """The routes, over one source."""
    router = APIRouter()

    @router.get("/sign-in")
    async def show(request: Request, code: str = "", next: str = f"{PREFIX}/") -> Response:  # noqa: A002 - the query's
        if code:
            try:
                return _admitted(request, await shell.source.redeem(code), next)
            except SignInError as error:
                return _form(request, str(error), next, 401)
        return _form(request, "", next, 200)

    @router.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        said = await fields(request)
        wanted = said.get("next", "")
        try:
            cookie = await shell.source.sign_in(said.get("credential", ""), said.get("name", ""))
        except SignInError as error:
            return _form(request, str(error), wanted, 401)
        return _admitted(request, cookie, wanted)

    @router.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        name = shell.source.sign_out({key.lower(): value.decode("latin-1") for key, value in request.headers.raw})
        answer = RedirectResponse(f"{PREFIX}/", status_code=303)
        answer.delete_cookie(name, path=PREFIX, httponly=True, samesite="strict")
        return answer

    def _form(request: Request, problem: str, wanted: str, status: int) -> Response:
        return shell.render(
            request,
            PAGE,
            "sign_in.html",
            status_code=status,
            problem=problem,
            wanted=_inside(wanted),
            signed_in=session_of(request),
        )

    return router


async def fields(request: Request) -> dict[str, str]:
    """A form's fields as the browser sent them; of several with one name the last one."""
    body = (await request.body()).decode("utf-8", errors="replace")
    found = parse_qs(body, keep_blank_values=True, max_num_fields=200)
    return {name: values[-1][:FIELD_CHARS_MAX] for name, values in found.items()}


def _admitted(request: Request, cookie: Cookie, wanted: str) -> Response:
    answer = RedirectResponse(_inside(wanted), status_code=303)
    answer.set_cookie(
        cookie.name,
        cookie.value,
        max_age=cookie.max_age_s,
        path=PREFIX,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    answer.headers["cache-control"] = "no-store"
    return answer


def _inside(wanted: str) -> str:
    """Where to go: only ever to one of the console's own pages."""
    is_inside = wanted.startswith(f"{PREFIX}/") and wanted.isprintable() and "\\" not in wanted and "//" not in wanted
    return wanted if is_inside else f"{PREFIX}/"
