"""Which engines run, how they do, and what they say?

Owns: the list of engines, one engine's log, restarting one. Never: what an engine is (the source knows).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from monitoring.console.shell import Page, Shell, actor_of, needs_session
from registry.errors import NotFoundError

PAGE = Page("/engines", "Engines", "Which engines run, how they do, and what they say.", order=70)
LINES = (100, 500, 2000)
RESTART = Page("/engines/restart", "Restart an engine", "", order=0, live=False)


def routes(shell: Shell) -> APIRouter:
    """The routes, over one source."""
    router = APIRouter()

    @router.get(PAGE.path)
    async def engines(request: Request) -> Response:
        status = await shell.source.status()
        return shell.render(request, PAGE, "engines.html", status=status)

    @router.get("/engines/{model_ref}/{index}/log")
    async def log(
        request: Request, model_ref: str, index: int, lines: Annotated[int, Query(ge=1, le=5000)] = LINES[0]
    ) -> Response:
        replica = f"{model_ref}/{index}"
        engine = await _engine(shell, replica)
        found = await shell.source.engine_log(replica, lines)
        page = Page(PAGE.path, f"Log of {replica}", "Its last lines, as it writes them.", order=0)
        return shell.render(request, page, "log.html", engine=engine, log=found, wanted=lines, choices=LINES)

    @router.get("/engines/{model_ref}/{index}/restart", dependencies=[Depends(needs_session)])
    async def ask(request: Request, model_ref: str, index: int) -> Response:
        engine = await _engine(shell, f"{model_ref}/{index}")
        status = await shell.source.status()
        others = [
            one["id"]
            for one in status["engines"]
            if one["ref"] == engine["ref"] and one["id"] != engine["id"] and one["state"] == "ready"
        ]
        return shell.render(request, RESTART, "restart.html", engine=engine, others=others, done=None)

    @router.post("/engines/{model_ref}/{index}/restart")
    async def restart(request: Request, model_ref: str, index: int) -> Response:
        replica = f"{model_ref}/{index}"
        done = await shell.source.restart_engine(replica, actor=actor_of(request))
        return shell.render(request, RESTART, "restart.html", engine={"id": replica}, others=[], done=done)

    return router


async def _engine(shell: Shell, replica: str) -> dict[str, Any]:
    """Raises NotFoundError."""
    engines = (await shell.source.status())["engines"]
    found = next((one for one in engines if one["id"] == replica), None)
    if found is None:
        known = ", ".join(one["id"] for one in engines) or "none"
        raise NotFoundError(f"there is no engine {replica}", remedy=f"there are {known}")
    return dict(found)
