"""The admin API's calls about live drift: what was found, references, a check at once.

Owns: these paths and their shapes. Never: deciding (monitoring). Results name samples, with their text where the
configuration keeps texts, so even reading needs a credential (`access`).
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import Field

from monitoring.live_drift_job import Pin
from serving.control.admin_api import Control, actor_of
from serving.control.admin_live import parse_since
from serving.control.admin_models import Shape
from serving.errors import ApiError

Actor = Annotated[str, Depends(actor_of)]
Model = Annotated[str, Query(description="Only this model.", max_length=128)]
HISTORY_SHOWN = 50


class PinReference(Shape):
    """A window of sampled traffic, or a finished evaluation run."""

    since: str = Field(default="", description="`24h`, `7d`, or Unix seconds.")
    until: str = Field(default="", description="The same; now where empty.")
    run: str = Field(default="", max_length=256, description="Name of a run, in place of a window.")


class DriftView(Shape):
    """Everything that is known of live drift."""

    drifts: list[dict[str, Any]]
    """The latest check of each version: verdict, kinds, features with effect, interval, p and q, samples."""
    references: dict[str, dict[str, Any]]
    """Model -> what its windows are compared with."""
    episodes: list[dict[str, Any]]
    """Act-level drift, the latest first, and whether the webhook was told."""
    history: list[dict[str, Any]]
    """Earlier checks in short, the latest first."""
    checked_at: float | None
    every_s: float
    problem: str
    """Why the last round of checks failed; empty where it did not."""


def drift_routes(control: Control) -> APIRouter:
    """The routes, over one control plane."""
    router = APIRouter(tags=["drift"])

    @router.get("/drift", summary="Live drift: the latest checks, references, episodes")
    async def drift(model: Model = "") -> DriftView:
        return await drift_view(control, model)

    @router.post("/drift/check", summary="Compare windows with their references now")
    async def check(model: Model = "") -> DriftView:
        await control.drift.check(model)
        return await drift_view(control, model)

    @router.put("/drift/references/{model}", summary="Pin a reference in place of the model's present one")
    async def pin(model: str, body: PinReference, actor: Actor) -> dict[str, Any]:
        """Keeps measured figures and, where embeddings are on, vectors; never a text."""
        now = time.time()
        if bool(body.run) == bool(body.since):
            raise ApiError(400, "give either `since` or `run`", code="invalid_value", param="since")
        run = str(await asyncio.to_thread(control.drift.run_folder, body.run)) if body.run else ""
        since, until = parse_since(body.since, now) or 0.0, parse_since(body.until, now) or now
        if not run and since >= until:
            raise ApiError(400, "the window ends before it begins", code="invalid_value", param="until")
        summary = await control.drift.pin(Pin(model=model, since=since, until=until, run=run, by=actor))
        after = {"reference": summary.get("name"), "samples": summary.get("samples")}
        record = partial(control.registry.record, "drift.pin", model)
        await asyncio.to_thread(record, actor=actor, at=now, after=after)
        return summary

    @router.delete("/drift/references/{model}", summary="Remove the model's reference: it is watched no longer")
    async def unpin(model: str, actor: Actor) -> dict[str, bool]:
        removed = await control.drift.unpin(model)
        if removed:
            record = partial(control.registry.record, "drift.unpin", model)
            await asyncio.to_thread(record, actor=actor, at=time.time())
        return {"removed": removed}

    return router


async def drift_view(control: Control, model: str) -> DriftView:
    """What is known of live drift; of one model where it is named."""
    watch = control.drift
    board = watch.board

    def of(items: list[Any]) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(one) for one in items if model in ("", one.model)]

    references = await asyncio.to_thread(watch.pinned)
    return DriftView(
        drifts=of(board.drifts),
        references={name: one for name, one in references.items() if model in ("", name)},
        episodes=of(board.episodes[::-1]),
        history=of(board.history[::-1])[:HISTORY_SHOWN],
        checked_at=board.checked_at or None,
        every_s=watch.every_s,
        problem=watch.problem,
    )
