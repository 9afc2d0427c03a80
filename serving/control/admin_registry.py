"""The admin API's calls about what is registered: models, versions, aliases, routes, audit.

Owns: these paths. Never: deciding (changes, registry). Calls that only read the database run in threads.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from registry.models import Version, VersionRef
from serving.control import snapshot
from serving.control.admin_api import Control, actor_of
from serving.control.admin_models import (
    AliasView,
    AuditView,
    ModelView,
    PauseRoute,
    PauseView,
    RegisterVersion,
    Rollback,
    RouteChanged,
    RouteInForce,
    RouteView,
    SetAlias,
    SetRoute,
    VersionView,
    version_view,
)
from serving.control.changes import Changed
from serving.control.snapshot import ModelSnapshot

Actor = Annotated[str, Depends(actor_of)]
Limit = Annotated[int, Query(ge=1, le=10_000)]


def registry_routes(control: Control) -> APIRouter:
    """The routes, over one control plane."""
    router = APIRouter()
    _version_routes(router, control)
    _traffic_routes(router, control)
    return router


def _version_routes(router: APIRouter, control: Control) -> None:
    def view(model: ModelSnapshot, version: Version) -> VersionView:
        return version_view(
            version,
            weight=model.route.weights.get(version.label, 0) if model.route else 0,
            aliases=[name for name, label in model.aliases.items() if label == version.label],
            state="retired" if version.retired_at is not None else control.version_state(model.name, version.label),
        )

    def one(name: str) -> ModelSnapshot:
        known = snapshot.take(control.registry)
        if name not in known:
            control.registry.versions(name)  # raises NotFoundError, which names the known ones
        return known[name]

    @router.get("/models", tags=["versions"], summary="Every registered model")
    def list_models() -> list[ModelView]:
        return [
            ModelView(
                model=model.name,
                versions=list(model.versions),
                aliases=dict(model.aliases),
                route=dict(model.route.weights) if model.route else {},
                revision=model.route.revision if model.route else 0,
            )
            for model in snapshot.take(control.registry).values()
        ]

    @router.get("/models/{model}/versions", tags=["versions"], summary="A model's versions, oldest first")
    def list_versions(model: str) -> list[VersionView]:
        found = one(model)
        return [view(found, version) for version in found.versions.values()]

    @router.get("/models/{model}/versions/{label}", tags=["versions"], summary="One version, by label or alias")
    def show_version(model: str, label: str) -> VersionView:
        version = control.registry.resolve(VersionRef(model, label))
        return view(one(model), version)

    @router.post("/models/{model}/versions", tags=["versions"], summary="Register a version", status_code=201)
    async def register(model: str, body: RegisterVersion, actor: Actor, response: Response) -> VersionView:
        """Its artifacts are fetched and hashed. No engine starts: that is for the configuration to say. Registering the
        same definition again answers 200 with what is there; another one under the label is refused with 409."""
        version, is_new = await control.changes.register(
            model, body.label, body.version, base=Path(body.base), actor=actor
        )
        if not is_new:
            response.status_code = 200
        state = control.version_state(model, version.label)
        return version_view(version, weight=0, aliases=[], state=state)

    @router.post("/models/{model}/versions/{label}/retire", tags=["versions"], summary="Take a version out of use")
    async def retire(model: str, label: str, actor: Actor) -> VersionView:
        version = await control.changes.retire(model, label, actor=actor)
        return version_view(version, weight=0, aliases=[], state="retired")


def _traffic_routes(router: APIRouter, control: Control) -> None:
    @router.get("/models/{model}/aliases", tags=["traffic"], summary="A model's aliases")
    def list_aliases(model: str) -> list[AliasView]:
        return [AliasView.of(alias) for alias in control.registry.aliases(model)]

    @router.put("/models/{model}/aliases/{name}", tags=["traffic"], summary="Point an alias to a version")
    async def set_alias(model: str, name: str, body: SetAlias, actor: Actor) -> AliasView:
        return AliasView.of(await control.changes.set_alias(model, name, body.label, actor=actor))

    @router.get("/models/{model}/route", tags=["traffic"], summary="How the model's traffic is divided")
    def show_route(model: str) -> RouteInForce:
        return in_force(control, model)

    @router.put("/models/{model}/route", tags=["traffic"], summary="Divide the model's traffic anew")
    async def set_route(model: str, body: SetRoute, actor: Actor) -> RouteChanged:
        """Answers once every worker serves by it."""
        return route_changed(await control.changes.set_route(model, body.weights, actor=actor, force=body.force))

    @router.post("/models/{model}/rollback", tags=["traffic"], summary="Bring an earlier route back")
    async def rollback(model: str, actor: Actor, body: Rollback | None = None) -> RouteChanged:
        """Every key returns to the version it had then. Answers once every worker serves by it."""
        return route_changed(await control.changes.roll_back(model, body.to if body else None, actor=actor))

    @router.put("/models/{model}/route/pause", tags=["traffic"], summary="Hold the model's route where it is")
    async def pause(model: str, actor: Actor, body: PauseRoute | None = None) -> RouteInForce:
        """Until it is resumed its weights change by a rollback or by force only. Pausing again changes the reason."""
        await control.changes.pause(model, body.reason if body else "", actor=actor)
        return await asyncio.to_thread(in_force, control, model)

    @router.delete("/models/{model}/route/pause", tags=["traffic"], summary="Let the model's route be changed again")
    async def resume(model: str, actor: Actor) -> RouteInForce:
        await control.changes.resume(model, actor=actor)
        return await asyncio.to_thread(in_force, control, model)

    @router.get("/models/{model}/route/history", tags=["traffic"], summary="Revisions of the route, newest first")
    def route_history(model: str, limit: Limit = 50) -> list[RouteView]:
        return [RouteView.of(route) for route in control.registry.route_history(model, limit)]

    @router.get("/audit", tags=["traffic"], summary="Who changed what, newest first")
    def audit(limit: Limit = 100, subject: str | None = None) -> list[AuditView]:
        return [AuditView.of(entry) for entry in control.registry.audit(limit, subject)]


def in_force(control: Control, model: str) -> RouteInForce:
    """The route in force, and who paused it. Blocking. Raises NotFoundError."""
    route = RouteView.of(control.changes.route(model))
    pause = control.registry.pauses().get(model)
    return RouteInForce(**dict(route), pause=PauseView.of(pause))


def route_changed(changed: Changed) -> RouteChanged:
    """How the admin API tells of a route that is in force."""
    return RouteChanged(
        route=RouteView.of(changed.route),
        generation=changed.published.generation,
        applied_ms=round(changed.applied_ms, 3),
        moved_buckets=changed.moved_buckets,
        waiting_for=list(changed.published.waiting_for),
    )
