"""The admin API's calls about what runs: status, engine logs, restarts, applying a configuration.

Owns: these paths. Never: deciding (yard).
"""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from serving.config import parse
from serving.control.admin_api import Control, actor_of
from serving.control.admin_models import ApplyConfig, LogTail, PlanView, Readiness, Restart, Shape, Status
from serving.errors import ApiError

Actor = Annotated[str, Depends(actor_of)]
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
SINCE_MAX = 1e11
"""The year 5138: later moments are no integers that a database keeps."""
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class EngineRestartView(Shape):
    """An engine that is starting anew."""

    replica: str
    state: Literal["starting"] = "starting"
    drained_s: float
    """Until it had answered what it had, or `server.drain_s` was over."""
    unfinished: int
    """Requests that it still had then; its process was told to end all the same."""


def live_routes(control: Control) -> APIRouter:
    """The routes, over one control plane."""
    router = APIRouter()

    @router.get("/status", tags=["monitoring"], summary="Everything that is true now")
    async def status() -> Status:
        return await control.status()

    @router.get("/engines/{model_ref}/{index}/log", tags=["engines"], summary="The last lines of an engine's log")
    async def engine_log(model_ref: str, index: int, lines: Annotated[int, Query(ge=1, le=10_000)] = 50) -> LogTail:
        return await _log_tail(control, f"{model_ref}/{index}", lines)

    @router.get("/engines/{replica}/log", tags=["engines"], summary="The same, with `/` written as %2F or left out")
    async def replica_log(replica: str, lines: Annotated[int, Query(ge=1, le=10_000)] = 50) -> LogTail:
        return await _log_tail(control, replica if "/" in replica else f"{replica}/0", lines)

    @router.post("/engines/{model_ref}/{index}/restart", tags=["engines"], summary="Restart one engine")
    async def restart_engine(model_ref: str, index: int, actor: Actor) -> EngineRestartView:
        """It finishes what it has, at most for `server.drain_s`, and is started anew. Answers when it is starting: the
        status says when it is ready."""
        return await _restarted(control, f"{model_ref}/{index}", actor)

    @router.post(
        "/engines/{replica}/restart", tags=["engines"], summary="The same; without a number, of a version's only engine"
    )
    async def restart_replica(replica: str, actor: Actor) -> EngineRestartView:
        return await _restarted(control, replica, actor)

    @router.get("/health", tags=["monitoring"], summary="What the yard depends on, and how each of it stands")
    async def readiness() -> Readiness:
        """The same as `/health/ready`, with status 200 however it stands."""
        return await control.readiness()

    @router.post("/workers/restart", tags=["workers"], summary="Replace the router's workers one by one")
    async def restart_workers(actor: Actor) -> Restart:
        """Answers when it is done. No request fails for it: each new worker serves before the old one drains."""
        return await control.restart_workers(actor=actor)

    @router.get("/workers/restart", tags=["workers"], summary="How far the last replacement of workers is")
    async def restart_progress() -> Restart:
        return control.restart_progress()

    @router.post("/apply", tags=["configuration"], summary="Apply a configuration to the running yard")
    async def apply(body: ApplyConfig, actor: Actor, dry_run: bool = False) -> PlanView:
        """Unchanged engines are left running, and routes as they are. With `dry_run` nothing changes."""
        config = parse(body.config, body.path or "configuration")
        plan = await control.apply(config, _folder(body.path), actor=actor, dry_run=dry_run)
        return PlanView.of(plan, dry_run=dry_run)

    return router


def _folder(path: str) -> Path:
    return Path(path or "configuration").absolute().parent


async def _log_tail(control: Control, replica: str, lines: int) -> LogTail:
    path, found = await asyncio.to_thread(control.engine_log, replica, lines)
    return LogTail(replica=replica, path=path, lines=list(found))


async def _restarted(control: Control, name: str, actor: str) -> EngineRestartView:
    return EngineRestartView(**asdict(await control.restart_engine(name, actor=actor)))


def parse_since(text: str | None, now: float) -> float | None:
    """Unix seconds of `24h`, `30m`, `7d` ago, or of a number that is Unix seconds already; within SINCE_MAX."""
    if not text:
        return None
    found = _AGO.fullmatch(text)
    try:
        at = float(text) if found is None else now - float(found[1]) * _UNIT_S[found[2]]
        if math.isnan(at):
            raise ValueError
        return min(max(0.0, at), SINCE_MAX)
    except ValueError:
        raise ApiError(
            400,
            f"since {text!r} is neither a span like 24h or 30m nor Unix seconds",
            code="invalid_value",
            param="since",
        ) from None
