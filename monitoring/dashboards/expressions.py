"""What a dashboard asks of Prometheus, read from its JSON alone.

Owns: finding the queries of a dashboard's panels and filling in its variables as Grafana does. Never: the SDK that
dashboards are made with (tests and `show` import this where it is not installed), Prometheus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

ALL: Final = ".*"
"""What Grafana puts in place of a variable that stands at All (its `allValue`)."""
VARIABLE: Final = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
NEEDS: Final = (
    (re.compile(r"modelyard_gpu_(?!seconds_total)"), "a GPU"),
    (re.compile(r"modelyard_drift_(?!check|last_check|webhook)"), "a pinned drift reference (`modelyard drift pin`)"),
    (re.compile(r"modelyard_slo_|:modelyard_slo_"), "an objective (`models.NAME.slo`)"),
    (re.compile(r"modelyard_cost_(?:forecast_month|budget_forecast)"), "some days of spending"),
    (re.compile(r"modelyard_cost_budget_"), "a budget (`budgets:`)"),
    (re.compile(r"modelyard_cost_per_1k_good_"), "an objective (`models.NAME.slo`)"),
    (re.compile(r"basis=\"energy\""), "an energy meter (GPUs have one)"),
    (re.compile(r"method=\"sm\""), "a GPU that tells its processes apart"),
    (re.compile(r"method=\"cpu_time\""), "a machine without a GPU"),
    (re.compile(r"modelyard_cost_total.*outcome=\"shadow\"|modelyard_shadow_\w+_bucket"), "a shadow version"),
    (re.compile(r"modelyard_cost_total.*outcome=~\"failed"), "work that failed"),
    (re.compile(r"modelyard_cost_anomaly_cause\S* > 0|_anomaly_cause\{[^}]*\}\) > 0"), "an answer dearer than usual"),
    (re.compile(r"_reading_absent\{[^}]*\}\) > 0"), "a reading that is absent"),
    (re.compile(r"modelyard_feedback_total\{[^}]*score="), "feedback on answers (`POST /v1/feedback`)"),
    (re.compile(r"modelyard_queue_seconds_"), "admission (`models.NAME.admission`)"),
    (re.compile(r"modelyard_sample_ratio_"), "a route with two arms and sticky units"),
    (
        re.compile(r"modelyard_engine_(?!up|restarts|memory|scrapes|reading|(?:prompt|completion)_tokens)"),
        "an engine that publishes that reading",
    ),
)


def queries(
    dashboard_json: Mapping[str, Any],
    *,
    rate_interval: str = "30s",
    window: str = "5m",
    values: Mapping[str, str] | None = None,
) -> list[tuple[str, str]]:
    """(panel title, expression) of every target, panels of collapsed rows included, variables filled in.

    Every variable of the dashboard stands at All unless `values` says otherwise; `$__rate_interval` and `$__interval`
    become `rate_interval`, `$__range` becomes `window`. Raises ValueError for a variable that the dashboard lacks.
    """
    known = {variable["name"]: ALL for variable in dashboard_json["templating"]["list"]}
    known |= {"__rate_interval": rate_interval, "__interval": rate_interval, "__range": window, **(values or {})}
    return [
        (panel["title"], _filled(target["expr"], known, panel["title"]))
        for panel in panels(dashboard_json)
        for target in panel.get("targets", [])
    ]


def panels(dashboard_json: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every panel that shows data, from top to bottom, those in collapsed rows too."""
    for panel in dashboard_json["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels") or ()
        else:
            yield panel


def needs(expression: str) -> str:
    """What a yard must have for the expression to have data; "" where every yard with traffic has it."""
    if expression.endswith("or vector(0)"):
        return ""
    return next((what for pattern, what in NEEDS if pattern.search(expression)), "")


def _filled(expression: str, known: Mapping[str, str], title: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in known:
            raise ValueError(f"{title}: the variable ${name} is not the dashboard's: {expression}")
        return known[name]

    return VARIABLE.sub(value, expression)
