"""What serves now, and what does it cost?

Owns: the first page. Never: putting its figures together (`monitoring.console.overview` does).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from monitoring.console import overview
from monitoring.console.shell import Page, Shell

PAGE = Page("/", "Overview", "What serves now, and what it costs.", order=10)
MINUTES: Final = 15.0
COST_AGE_S: Final = 15.0
"""A bill is made anew after this long at the earliest: making one closes the books up to now."""


class Bills:
    """The bill of the last hour, made now and then."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._lock = asyncio.Lock()
        self._made_at = float("-inf")
        self._found: dict[str, Any] = {}

    async def last_hour(self) -> dict[str, Any]:
        async with self._lock:
            now = self._shell.clock()
            if abs(now - self._made_at) >= COST_AGE_S:
                self._found = await self._shell.source.cost(now - 3600)
                self._made_at = now
            return self._found


def routes(shell: Shell) -> APIRouter:
    """The routes, over one source."""
    router = APIRouter()
    bills = Bills(shell)

    @router.get(PAGE.path)
    async def show(request: Request) -> Response:
        status, series = await shell.source.status(), await shell.source.series(MINUTES)
        versions = [version for model in status["models"] for version in model["versions"]]
        return shell.render(
            request,
            PAGE,
            "overview.html",
            status=status,
            alerts=overview.alerts(status, series),
            cards=overview.cards(status, series),
            charts=overview.charts(status, series),
            spent=overview.spent(await bills.last_hour()),
            requests_per_second=sum(version["requests_per_second"] for version in versions),
            tokens_per_second=sum(version["tokens_per_second"] for version in versions),
            error_share=overview.error_share(series),
            errors_bad=overview.ERRORS_BAD,
            inflight=sum(engine["inflight"] for engine in status["engines"]),
        )

    return router
