"""What an operator does to traffic: weights, roll back, pause, resume. Each asks, does, and shows the result.

Owns: these dialogs (pages of their own without scripts). Never: deciding whether a change is allowed (the source does).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from monitoring.console.overview import colours
from monitoring.console.pages.signing import fields
from monitoring.console.shell import Page, Shell, actor_of
from monitoring.console.words import points
from registry.errors import NotFoundError, RegistryError
from registry.models import BUCKETS, REASON_LENGTH_MAX

PAGE = Page("/actions", "Actions", "", order=0, private=True, live=False)
_SHARE: Final = re.compile(r"\d{1,3}([.,]\d{0,2})?")
PREFIX_OF_WEIGHTS: Final = "weight-"
Model = Annotated[str, Query(max_length=128)]


def routes(shell: Shell) -> APIRouter:
    """The routes, over one source."""
    router = APIRouter()
    _weights(router, shell)
    _rollback(router, shell)
    _pause(router, shell)
    return router


def _weights(router: APIRouter, shell: Shell) -> None:
    page = Page(PAGE.path, "Change weights", "", order=0, live=False)

    @router.get("/actions/weights")
    async def ask(request: Request, model: Model) -> Response:
        found = await _model(shell, model)
        return shell.render(
            request, page, "weights.html", step="ask", model=found, weights=_offered(found), problem="", plan=None
        )

    @router.post("/actions/weights/plan")
    async def plan(request: Request) -> Response:
        said = await fields(request)
        found = await _model(shell, said.get("model", ""))
        try:
            weights = _read(said)
            planned = await shell.source.plan_route(found["model"], weights)
        except (RegistryError, ValueError) as error:
            offered = _offered(found) | _said(said)
            return shell.render(
                request, page, "weights.html", status_code=422, step="ask", model=found, weights=offered,
                problem=str(error), plan=None,
            )  # fmt: skip
        return shell.render(
            request, page, "weights.html", step="plan", model=found, weights=_said(said), problem="",
            plan=planned | _shares(found, planned),
        )  # fmt: skip

    @router.post("/actions/weights")
    async def do(request: Request) -> Response:
        said = await fields(request)
        found = await _model(shell, said.get("model", ""))
        done = await shell.source.set_route(
            found["model"], _read(said), force=said.get("force") == "yes", actor=actor_of(request)
        )
        return _done(request, shell, page, found, done)


def _rollback(router: APIRouter, shell: Shell) -> None:
    page = Page(PAGE.path, "Roll back", "", order=0, live=False)

    @router.get("/actions/rollback")
    async def ask(request: Request, model: Model, to: int | None = None) -> Response:
        found = await _model(shell, model)
        planned = await shell.source.plan_rollback(found["model"], to)
        return shell.render(request, page, "rollback.html", model=found, plan=planned | _shares(found, planned))

    @router.post("/actions/rollback")
    async def do(request: Request) -> Response:
        said = await fields(request)
        found = await _model(shell, said.get("model", ""))
        wanted = said.get("to", "")
        if not wanted.isdecimal():
            raise ValueError("the revision to roll back to is missing")
        done = await shell.source.roll_back(found["model"], int(wanted), actor=actor_of(request))
        return _done(request, shell, page, found, done)


def _pause(router: APIRouter, shell: Shell) -> None:
    """One page for both: it offers what the route is not."""
    page = Page(PAGE.path, "Pause", "", order=0, live=False)

    def show(request: Request, found: dict[str, Any], done: str = "") -> Response:
        return shell.render(
            request, page, "pause.html", model=found, pause=found["pause"], done=done,
            shares=_mix(found, found["route"]), reason_max=REASON_LENGTH_MAX,
        )  # fmt: skip

    @router.get("/actions/pause")
    async def ask(request: Request, model: Model) -> Response:
        return show(request, await _model(shell, model))

    @router.post("/actions/pause")
    async def pause(request: Request) -> Response:
        said = await fields(request)
        name = (await _model(shell, said.get("model", "")))["model"]
        await shell.source.pause(name, said.get("reason", ""), actor=actor_of(request))
        return show(request, await _model(shell, name), "paused")

    @router.post("/actions/resume")
    async def resume(request: Request) -> Response:
        name = (await _model(shell, (await fields(request)).get("model", "")))["model"]
        await shell.source.resume(name, actor=actor_of(request))
        return show(request, await _model(shell, name), "resumed")


def _done(request: Request, shell: Shell, page: Page, model: dict[str, Any], done: dict[str, Any]) -> Response:
    shares = _mix(model, done["route"]["weights"])
    return shell.render(request, page, "changed.html", model=model, done=done, shares=shares)


async def _model(shell: Shell, name: str) -> dict[str, Any]:
    """Raises NotFoundError."""
    models = (await shell.source.status())["models"]
    found = next((one for one in models if one["model"] == name), None)
    if found is None:
        known = ", ".join(one["model"] for one in models) or "none"
        raise NotFoundError(f"no model {name!r} is served", remedy=f"there are {known}")
    return dict(found)


def _offered(model: dict[str, Any]) -> dict[str, str]:
    """Label -> per cent, of every version that could have traffic, as the form shows them."""
    route = model["route"]
    labels = [*route, *(one["label"] for one in model["versions"] if one["label"] not in route)]
    return {label: points(route.get(label, 0)).removesuffix("%") for label in labels}


def _said(said: dict[str, str]) -> dict[str, str]:
    prefix = PREFIX_OF_WEIGHTS
    return {name.removeprefix(prefix): value for name, value in said.items() if name.startswith(prefix)}


def _read(said: dict[str, str]) -> dict[str, int]:
    """Label -> basis points, without those that get nothing. Raises ValueError, one sentence."""
    weights: dict[str, int] = {}
    for label, text in _said(said).items():
        if not _SHARE.fullmatch(text.strip() or "0"):
            raise ValueError(f"{label}: {text!r} is not a share from 0 to 100 per cent with at most two decimals")
        weights[label] = round(float(text.strip().replace(",", ".") or 0) * 100)
    total = sum(weights.values())
    if total != BUCKETS:
        raise ValueError(f"together the shares make {points(total)}, and they must make 100%")
    return {label: weight for label, weight in weights.items() if weight}


def _mix(model: dict[str, Any], weights: dict[str, int]) -> list[tuple[str, int, int]]:
    colour = colours(model)
    return [(label, weight, colour.get(label, 0)) for label, weight in weights.items()]


def _shares(model: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    return {"shares_before": _mix(model, plan["before"]), "shares_after": _mix(model, plan["after"])}
