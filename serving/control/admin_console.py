"""The admin API's call that lets a browser into the console.

Owns: one-time links. Never: sessions (`console_access`), pages (`monitoring.console`).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from serving.control.admin_api import KEY_IN_SCOPE, actor_of
from serving.control.admin_models import Shape
from serving.control.console_access import LINK_S, SIGN_IN, ConsoleAccess

Actor = Annotated[str, Depends(actor_of)]


class ConsoleLink(Shape):
    """A way into the console for one browser."""

    url: str
    """Good once."""
    expires_in_s: float


def console_routes(door: ConsoleAccess) -> APIRouter:
    """The routes, over one console's sessions."""
    router = APIRouter(tags=["console"])

    @router.post("/console/links", summary="Make a one-time link that signs a browser in to the console")
    async def make_link(request: Request, actor: Actor) -> ConsoleLink:
        """What is done in that browser is written in the audit as done by who asks here."""
        code = door.link(actor, request.scope.get(KEY_IN_SCOPE, ""))
        return ConsoleLink(url=f"{str(request.base_url).rstrip('/')}{SIGN_IN}?code={code}", expires_in_s=LINK_S)

    return router
