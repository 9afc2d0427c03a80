"""Cost: what was spent, on whom and on what, and where it goes.

Owns: this page. Never: dividing or pricing (`monitoring.statement`), forecasts and budgets (`monitoring.outlook`).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from monitoring.console import bills
from monitoring.console.shell import Page, Shell

PAGE: Final = Page("/cost", "Cost", "What did it cost, for whom, and where is it going?", order=60, live=False)
WINDOWS: Final = {"24h": 86_400.0, "7d": 7 * 86_400.0, "30d": 30 * 86_400.0, "all": 0.0}
WINDOW_WORDS: Final = {"24h": "24 hours", "7d": "7 days", "30d": "30 days", "all": "All time"}
METHODS: Final = {
    "inflight": "by requests in flight",
    "sm": "by the GPU's work",
    "tokens": "by tokens",
    "cpu_time": "by CPU time",
}
METHOD_MEANING: Final = {
    "inflight": "a moment with N requests in flight belongs to each of them by 1/N",
    "sm": "a GPU's time is divided as its multiprocessors were used, process by process",
    "tokens": "busy time is divided by tokens, each weighed by what it takes to compute",
    "cpu_time": "each version has the CPU time that its engines took",
}
Window = Annotated[Literal["24h", "7d", "30d", "all"], Query()]
Method = Annotated[Literal["inflight", "sm", "tokens", "cpu_time"], Query()]


def routes(shell: Shell) -> APIRouter:
    router = APIRouter()

    @router.get(PAGE.path)
    async def cost(request: Request, window: Window = "24h", method: Method = "inflight") -> Response:
        since = shell.clock() - WINDOWS[window] if WINDOWS[window] else None
        whole = await shell.source.bill(since, ("version", "outcome"))
        hourly = await shell.source.bill(since, ("version", "outcome", "hour"))
        offered = list(dict.fromkeys(one["method"] for one in whole["bills"]))
        found = bills.tables(whole["bills"], method)
        return shell.render(
            request,
            PAGE,
            "cost.html",
            window=window,
            windows=WINDOW_WORDS,
            method=method,
            methods={name: words for name, words in METHODS.items() if name in offered or name == method},
            meaning=METHOD_MEANING[method],
            whole=whole,
            tables=found,
            totals=bills.totals(found),
            chart=bills.over_time(hourly["bills"], method, start=whole["start"], stop=whole["stop"]),
            units=bills.units(whole["unit_costs"], method),
            unit_names=bills.UNITS,
            usage=[one for one in whole["usage"] if any(one["requests"].values()) or one["shadow_requests"]],
            outlook=await shell.source.outlook(),
            hosted=await shell.source.hosted(since),
        )

    return router
