"""The admin API's calls about cost: statements, the outlook, weekly reports.

Owns: these paths and their parameters. Never: arithmetic of money (monitoring), when it is done (costs).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query
from fastapi.responses import Response

from monitoring.cost import BASES, METHODS
from monitoring.cost_report import Hosted, Report, week_of
from monitoring.cost_report_files import html, markdown
from monitoring.cost_report_text import hosted_notes
from monitoring.outlook import budget_json, finding_json, forecast_json
from monitoring.statement import DIMENSIONS, Dimension
from serving.control.admin_api import Control
from serving.control.admin_live import parse_since
from serving.errors import ApiError

Since = Annotated[str, Query(description="`24h`, `30m`, `7d`, or Unix seconds; whole hours are billed.")]
Until = Annotated[str, Query(description="The same; now where empty.")]
By = Annotated[str, Query(description=f"How lines are told apart: of {', '.join(DIMENSIONS)}, joined by commas.")]
BASIS_NAMES = "|".join(BASES)
METHOD_NAMES = "|".join(dict.fromkeys(name for names in METHODS.values() for name in names))
Basis = Annotated[str, Query(pattern=f"^({BASIS_NAMES}|)$", description="Only bills on this basis.")]
Method = Annotated[str, Query(pattern=f"^({METHOD_NAMES}|)$", description="Only bills divided by this method.")]
MEDIA = {"md": "text/markdown; charset=utf-8", "html": "text/html; charset=utf-8", "json": "application/json"}
HOSTED_MAX = 20
NAME_MAX = 200
"""Names that are near one that is not there are searched among thousands."""
REPORTS: dict[int | str, dict[str, Any]] = {200: {"content": {kind.partition(";")[0]: {} for kind in MEDIA.values()}}}
FORMS: dict[str, Callable[[Report], str]] = {
    "md": markdown,
    "html": html,
    "json": lambda report: json.dumps(report.as_json(), ensure_ascii=False),
}


def cost_routes(control: Control) -> APIRouter:
    """The routes, over one control plane."""
    router = APIRouter(prefix="/cost", tags=["cost"])

    @router.get("", summary="What it cost, per version, idle on its own lines")
    async def cost(
        since: Since = "",
        until: Until = "",
        by: By = "version,outcome",
        basis: Basis = "",
        method: Method = "",
        hosted: Annotated[
            str, Query(max_length=4096, description="Hosted models to compare with, joined by commas.")
        ] = "",
    ) -> dict[str, Any]:
        """One bill per device, basis and method; a bill's lines sum to its total exactly. Without `since` it is all
        time. With `hosted`, or `prices.compare` in the configuration, also what the tokens would have cost there."""
        now = time.time()
        start, stop = parse_since(since, now), parse_since(until, now)
        if stop is not None and (start or 0.0) >= stop:
            raise ApiError(400, "the window ends before it begins", code="invalid_value", param="until")
        wanted = dimensions(by)
        statement = await control.cost(start, stop, wanted)
        value = statement.as_json()
        for part in ("bills", "unit_costs"):
            value[part] = [one for one in value[part] if basis in ("", one["basis"]) and method in ("", one["method"])]
        names = [name for name in map(str.strip, hosted.split(",")) if name]
        if len(names) > HOSTED_MAX or any(len(name) > NAME_MAX for name in names):
            message = f"hosted names more than {HOSTED_MAX} models, or one in more than {NAME_MAX} characters"
            raise ApiError(400, message, code="invalid_value", param="hosted")
        versions = statement if "version" in wanted else None
        compared = await control.costs.hosted(versions or await control.cost(start, stop, ("version",)), names)
        return value | {"hosted": None if compared is None else hosted_json(compared)}

    @router.get("/forecast", summary="What the month will have cost at its end")
    async def forecast() -> dict[str, Any]:
        """On the basis allocated, idle time included; the interval holds what was spent four times in five."""
        found = await control.costs.outlook()
        return {"at": found.at, "currency": found.currency, "basis": "allocated", **forecast_json(found.month)}

    @router.get("/budgets", summary="How much of each budget is spent, and whether it will hold")
    async def budgets() -> dict[str, Any]:
        found = await control.costs.outlook()
        states = [budget_json(one) for one in found.budgets]
        return {"at": found.at, "currency": found.currency, "basis": "allocated", "budgets": states}

    @router.get("/anomalies", summary="Versions whose requests became dearer, and why")
    async def anomalies() -> dict[str, Any]:
        """Every version that was asked something in the last 24 hours, with the verdict on it."""
        found = await control.costs.outlook()
        findings = [finding_json(one) for one in found.findings]
        return {"at": found.at, "currency": found.currency, "basis": "allocated", "findings": findings}

    @router.get("/report", summary="The report of a week", response_class=Response, responses=REPORTS)
    async def report(
        week: Annotated[str, Query(max_length=16, description="As `2026-W47`; the last one that is over.")] = "",
        form: Annotated[Literal["md", "html", "json"], Query(alias="format")] = "md",
    ) -> Response:
        """Markdown, one HTML page that needs nothing else, or the figures."""
        made = await control.costs.report(week_of(week) if week else None)
        text = await asyncio.to_thread(FORMS[form], made)
        headers = {"content-disposition": f'inline; filename="cost-{made.week.name}.{form}"'}
        return Response(text, media_type=MEDIA[form], headers=headers)

    return router


def dimensions(text: str) -> tuple[Dimension, ...]:
    """`version,key` as dimensions. Raises ApiError."""
    names = list(dict.fromkeys(name for name in map(str.strip, text.split(",")) if name))
    wrong = [name for name in names if name not in DIMENSIONS]
    if wrong or not names:
        message = f"by is {text!r}: it is one or more of {', '.join(DIMENSIONS)}, joined by commas"
        raise ApiError(400, message, code="invalid_value", param="by")
    return tuple(cast("list[Dimension]", names))


def hosted_json(found: Hosted) -> dict[str, Any]:
    """The comparison as plain values."""
    value = asdict(found)
    for made, one in zip(value["costs"], found.costs, strict=True):
        made |= {"nano": one.nano, "amount": one.nano / 1e9, "ratio": one.ratio}
    return value | {"basis": "allocated", "notes": hosted_notes(found)}
