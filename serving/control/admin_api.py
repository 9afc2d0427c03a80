"""The admin API: the control plane over HTTP, for the command line, dashboards and scripts.

Owns: the application, its guard, the error envelope, `/health` and `/metrics`. Never: what a call does (changes, yard),
who has which credential (access), the data plane.

Changes need a credential; on loopback reading needs none. Against web pages in the operator's own browser it takes two
precautions besides: a Host header that is not this machine's is refused (DNS rebinding), and so is a change that
another origin asks for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitoring.console import SESSION_IN_SCOPE
from monitoring.drift_watch import DriftWatch
from monitoring.exposition import render
from monitoring.statement import DEFAULT_BY, Dimension, Statement
from registry.certificates import is_loopback
from registry.errors import ConflictError, DatabaseError, NotFoundError, RegistryError
from registry.store import Registry
from registry.terminal import NotThereError, UserError
from serving.config import YardConfig
from serving.control.access import SAFE_METHODS, Access
from serving.control.admin_models import Health, Readiness, Restart, Status
from serving.control.apply import RefusedError
from serving.control.changes import Changes
from serving.control.console_access import ConsoleAccess, is_console, to_sign_in
from serving.control.costs import Costs
from serving.control.desk import EngineRestart
from serving.control.plan import Plan
from serving.control.samples import Samples
from serving.errors import ApiError, envelope

log = logging.getLogger("modelyard.admin")

BODY_BYTES_MAX = 4 * 1024 * 1024
BODY_TIMEOUT_S = 30.0
AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]@:/?#\s]+)(:[0-9]*)?")
"""A host and perhaps a port: no user, nothing behind an address in brackets."""
ONCE = frozenset({b"host", b"origin", b"authorization", b"x-api-key", b"cookie"})
KEY_IN_SCOPE = "modelyard.key"
"""Where the guard leaves the id of the API key that a request was made with."""


REFUSALS = {
    "400": "The call is not usable as it is",
    "404": "There is nothing of that name",
    "421": "Not a name of this machine (DNS rebinding)",
    "422": "A parameter or the body is not of the documented form",
    "503": "The database or the yard cannot answer now",
}
CREDENTIAL_REFUSALS = {"401": "No valid credential", "403": "The credential does not reach so far"}
CHANGE_REFUSALS = {
    "403": "The credential does not reach so far, or another origin asks",
    "408": "The body did not arrive in time",
    "409": "It contradicts what is registered or in force",
    "413": "The body is too large",
}
ERROR_SCHEMA = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""The envelope that OpenAI clients know."""
ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}


class Control(Protocol):
    """The control plane as the admin API sees it."""

    @property
    def registry(self) -> Registry: ...
    @property
    def changes(self) -> Changes: ...
    @property
    def samples(self) -> Samples: ...
    @property
    def drift(self) -> DriftWatch: ...

    async def scrape(self) -> CollectorRegistry: ...

    async def status(self) -> Status: ...

    async def readiness(self) -> Readiness: ...

    async def restart_workers(self, *, actor: str) -> Restart: ...

    def restart_progress(self) -> Restart: ...

    @property
    def costs(self) -> Costs: ...

    async def cost(
        self, since: float | None, until: float | None = None, by: Sequence[Dimension] = DEFAULT_BY
    ) -> Statement: ...

    async def apply(self, config: YardConfig, base: Path, *, actor: str, dry_run: bool) -> Plan: ...

    def version_state(self, model: str, label: str) -> str: ...

    def engine_log(self, replica: str, lines: int) -> tuple[str, Sequence[str]]: ...

    async def restart_engine(self, name: str, *, actor: str) -> EngineRestart: ...


def create_app(control: Control, *, host: str, access: Access, door: ConsoleAccess) -> FastAPI:
    """The application for a control plane that is bound to `host`."""
    from serving.control.admin_console import console_routes  # noqa: PLC0415 - as below
    from serving.control.admin_cost import cost_routes  # noqa: PLC0415 - as below
    from serving.control.admin_drift import drift_routes  # noqa: PLC0415 - as below
    from serving.control.admin_feedback import feedback_routes  # noqa: PLC0415 - as below
    from serving.control.admin_gates import gate_routes  # noqa: PLC0415 - as below
    from serving.control.admin_keys import key_routes  # noqa: PLC0415 - as below
    from serving.control.admin_live import live_routes  # noqa: PLC0415 - they import this module's dependencies
    from serving.control.admin_registry import registry_routes  # noqa: PLC0415

    app = FastAPI(
        title="Modelyard admin API",
        version="1",
        description="The control plane of a yard: what is registered, what runs, who gets the traffic, what it costs.",
        docs_url="/docs",
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.include_router(registry_routes(control), prefix="/admin/v1")
    app.include_router(live_routes(control), prefix="/admin/v1")
    app.include_router(cost_routes(control), prefix="/admin/v1")
    app.include_router(key_routes(control), prefix="/admin/v1")
    app.include_router(gate_routes(control), prefix="/admin/v1")
    app.include_router(feedback_routes(control), prefix="/admin/v1")
    app.include_router(drift_routes(control), prefix="/admin/v1")
    app.include_router(console_routes(door), prefix="/admin/v1")
    _handle_errors(app)

    @app.get("/health", summary="Whether the control plane answers", tags=["monitoring"])
    async def health() -> Health:
        return Health(status="ok")

    @app.get("/health/ready", summary="What the yard depends on; 503 where nothing can be served", tags=["monitoring"])
    async def ready(response: Response) -> Readiness:
        found = await control.readiness()
        response.status_code = 503 if found.status == "failed" else 200
        return found

    @app.get("/metrics", summary="Metrics for Prometheus", tags=["monitoring"], response_class=Response)
    async def metrics(request: Request) -> Response:
        body, content_type = await asyncio.to_thread(render, await control.scrape(), request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    app.add_middleware(Guard, allowed=allowed_hosts(host), access=access, door=door)
    _document(app, access)
    return app


def actor_of(request: Request) -> str:
    """Who asks, for the audit: what the client says of itself, bounded, and the key that it used."""
    said = request.headers.get("x-modelyard-actor", "").strip()[:64] or "admin-api"
    key_id = request.scope.get(KEY_IN_SCOPE, "")
    return f"{said} with {key_id}" if key_id else said


def allowed_hosts(bound: str) -> Callable[[str], bool]:
    """Which names in a Host or Origin header are this machine's, for a server bound to the address `bound`.

    On loopback: loopback addresses, `localhost` and the bound name. Elsewhere also any address (a web page that rebinds
    DNS has a name, never an address) and the machine's own name.
    """
    own = {"localhost", bound.lower()}
    loopback = is_loopback(bound)
    if not loopback:
        own.add(socket.gethostname().lower())

    def allowed(authority: str) -> bool:
        if not AUTHORITY.fullmatch(authority):
            return False
        try:
            name = (urlsplit(f"//{authority}").hostname or "").lower()
            return name in own or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback or not loopback
        except ValueError:  # no address
            return False

    return allowed


class Guard:
    """Refuses what a web page could make a browser send (other hosts' names, other origins' changes), whoever shows no
    credential where one is needed, and huge bodies."""

    def __init__(self, app: ASGIApp, allowed: Callable[[str], bool], access: Access, door: ConsoleAccess) -> None:
        self._app = app
        self._allowed = allowed
        self._access = access
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            error = self._refusal(scope)
            if error is None and any(name == b"transfer-encoding" for name, _ in scope["headers"]):
                try:
                    receive = await _read(receive)
                except ApiError as refused:
                    error = refused
            if error is not None:
                is_stranger = error.status == 401 and is_console(scope["path"])
                await (to_sign_in(scope) if is_stranger else error_response(error))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if sum(name in ONCE for name, _ in scope["headers"]) > len(headers.keys() & ONCE):
            return ApiError(400, "a header that decides who may do what came twice", code="duplicate_header")
        host = headers.get(b"host", "")
        if not self._allowed(host):
            message = f"the admin API does not answer to the host name {host!r}: call it by its address"
            return ApiError(421, message, code="host_not_allowed")
        origin = headers.get(b"origin")
        if origin and scope["method"] not in SAFE_METHODS and not self._allowed(origin.partition("://")[2]):
            return ApiError(403, f"changes are not taken from the origin {origin!r}", code="origin_not_allowed")
        try:
            if is_console(scope["path"]):
                scope[SESSION_IN_SCOPE] = self._door.check(scope["method"], scope["path"], headers)
            else:
                scope[KEY_IN_SCOPE] = self._access.check(scope["method"], scope["path"], headers)
        except ApiError as error:
            return error
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            return _too_large()
        return None


def _too_large() -> ApiError:
    return ApiError(413, f"the body is above {BODY_BYTES_MAX} bytes", code="body_too_large")


async def _read(receive: Receive) -> Receive:
    """Read a body that does not say how long it is, and return a `receive` that gives it again. Raises ApiError."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > BODY_BYTES_MAX:
                    raise _too_large()
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", code="request_timeout") from None
    whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again


def _document(app: FastAPI, access: Access) -> None:
    """Have the OpenAPI schema say which calls need a credential, and in which words every call refuses."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = described()
        schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {
            "type": "http",
            "scheme": "bearer",
            "description": "The admin token (`admin.token` in the state directory), or an API key of scope admin.",
        }
        for path, calls in schema["paths"].items():
            for method, call in calls.items():
                refusals = dict(REFUSALS)
                if access.needs_credential(method.upper(), path):
                    call["security"] = [{"token": []}]
                    refusals |= CREDENTIAL_REFUSALS
                if method.upper() not in SAFE_METHODS:
                    refusals |= CHANGE_REFUSALS
                for status, description in refusals.items():
                    answer = {"description": description, "content": ERROR_CONTENT}
                    if status == "422" or status not in call["responses"]:
                        call["responses"][status] = answer
        schema["components"].setdefault("schemas", {})["Error"] = ERROR_SCHEMA
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def error_response(error: ApiError) -> Response:
    """The answer for an error, in the envelope that OpenAI clients know."""
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error.body(), status_code=error.status, media_type="application/json", headers=headers)


def _handle_errors(app: FastAPI) -> None:
    kinds: tuple[tuple[type[Exception], int, str], ...] = (
        (NotFoundError, 404, "not_found"),
        (ConflictError, 409, "conflict"),
        (RefusedError, 409, "conflict"),
        (DatabaseError, 503, "database_unavailable"),
        (RegistryError, 400, "registry_error"),
        (NotThereError, 400, "dependency_missing"),
        (UserError, 400, "invalid_request"),
        (ValueError, 400, "invalid_value"),
    )
    for kind, status, code in kinds:
        app.add_exception_handler(kind, _answer(status, code))
    app.exception_handler(ApiError)(_api_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(StarletteHTTPException)(_http_error)
    app.add_exception_handler(Exception, _unexpected)


Handler = Callable[[Request, Any], Awaitable[Response]]


def _answer(status: int, code: str) -> Handler:
    async def handler(request: Request, error: Exception) -> Response:
        return Response(envelope(status, str(error), code=code), status_code=status, media_type="application/json")

    return handler


async def _api_error(request: Request, error: ApiError) -> Response:
    return error_response(error)


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    message = f"{where or 'the body'}: {str(first['msg']).removeprefix('Value error, ')}"
    return error_response(ApiError(422, message, code="invalid_request", param=where or None))


async def _http_error(request: Request, error: HTTPException) -> Response:
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is no {request.method} {request.url.path} here: /docs lists what there is"
    elif error.status_code == 405:
        message = f"{request.url.path} does not take {request.method}: /docs lists what it takes"
    code = {404: "path_not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    answer = error_response(ApiError(error.status_code, message, code=code))
    answer.headers.update(error.headers or {})
    return answer


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    message = f"{type(error).__name__} in the control plane: its log in the state directory has the details"
    return error_response(ApiError(500, message, code="internal_error"))
