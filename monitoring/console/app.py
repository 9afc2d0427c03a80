"""The console as an application of its own under `/console`.

Owns: putting pages together, static files, errors as pages, the headers of every answer. Never: who is let in (the
guard in front of it decides; it is told who is there), what a page shows.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitoring.console import pages
from monitoring.console.shell import HEADERS, PREFIX, Page, Shell, SignInNeededError, needs_session
from monitoring.console.source import ConsoleSource
from registry.errors import ConflictError, DatabaseError, NotFoundError, RegistryError
from registry.terminal import UserError

log = logging.getLogger("modelyard.console")

TROUBLE = Page("", "That did not work", "", order=0, live=False)
STATIC_AGE_S = 3600


def serve(app: FastAPI, source: ConsoleSource) -> None:
    """Serve the console under `/console` of the application."""

    @app.get(PREFIX, include_in_schema=False)
    async def console() -> Response:
        return RedirectResponse(f"{PREFIX}/", status_code=307)

    app.mount(PREFIX, create(source))


def create(source: ConsoleSource) -> FastAPI:
    """The application that is mounted."""
    shell = Shell(source)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.mount("/static", _Static(packages=[("monitoring.console", "static")]), name="static")
    listed: list[Page] = []
    for module in modules():
        page: Page = module.PAGE
        guards = [Depends(needs_session)] if page.private else []
        app.include_router(module.routes(shell), dependencies=guards)
        if page.order:
            listed.append(page)
    shell.pages = sorted(listed, key=lambda one: one.order)
    _handle_errors(app, shell)
    app.add_middleware(Headers)
    return app


def modules() -> Iterator[ModuleType]:
    """The modules of all pages, by name."""
    for found in sorted(pkgutil.iter_modules(pages.__path__), key=lambda one: one.name):
        yield importlib.import_module(f"{pages.__name__}.{found.name}")


class Headers:
    """Puts the console's headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, send_with)


class _Static(StaticFiles):
    """Files that a browser asks for again after an hour at the latest, or by their ETag."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["cache-control"] = f"max-age={STATIC_AGE_S}, must-revalidate"
        return answer


def _handle_errors(app: FastAPI, shell: Shell) -> None:
    kinds: tuple[tuple[type[Exception], int], ...] = (
        (NotFoundError, 404),
        (ConflictError, 409),
        (DatabaseError, 503),
        (RegistryError, 400),
        (UserError, 400),
        (ValueError, 400),
    )

    async def sentence(request: Request, error: Exception) -> Response:
        status = next(code for kind, code in kinds if isinstance(error, kind))
        return shell.render(request, TROUBLE, "error.html", status_code=status, message=str(error))

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = "There is no such page." if error.status_code == 404 else str(error.detail)
        return shell.render(request, TROUBLE, "error.html", status_code=error.status_code, message=message)

    async def unusable(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        message = f"{first['loc'][-1]}: {first['msg']}"
        return shell.render(request, TROUBLE, "error.html", status_code=422, message=message)

    async def sign_in(request: Request, error: Exception) -> Response:
        return shell.to_sign_in(request)

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = f"{type(error).__name__} in the control plane: yard.log in the state directory has the details."
        return shell.render(request, TROUBLE, "error.html", status_code=500, message=message)

    for kind, _ in kinds:
        app.add_exception_handler(kind, sentence)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(RequestValidationError, unusable)
    app.add_exception_handler(SignInNeededError, sign_in)
    app.add_exception_handler(Exception, unexpected)
