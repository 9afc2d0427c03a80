"""Objectives: how fast error budgets go, what is left of them, and which version spends them.

Owns: the panels of `modelyard-slo`. Never: expressions that others share (`parts`), JSON (`build`).
"""

from __future__ import annotations

from monitoring.dashboards.build import Board, Limits, Panel, Query, Row, stat, table
from monitoring.dashboards.parts import (
    ARM,
    BURN,
    EVERY,
    FIRST_TOKEN,
    MODEL,
    OVERVIEW,
    RATE,
    ROLLOUT,
    ROUTE_CHANGES,
    SLO,
    VERSIONS,
    burn,
    faults,
    quantile,
    rate,
)

BUDGET_DAYS = 30
NONE = "no objective"
TARGET = f"max by (model) (modelyard_slo_target{{{MODEL}}})"
LEFT: Limits = ((None, "red"), (0.1, "orange"), (0.5, "green"))


def good(window: str, by: str = "model") -> str:
    """Share of requests that met their objective; no series without requests."""
    part = f"sum by ({by}) (increase(modelyard_slo_good_requests_total{{{EVERY}}}{window}))"
    return f"{part} / (sum by ({by}) (increase(modelyard_slo_requests_total{{{EVERY}}}{window})) > 0)"


def bad(window: str, by: str) -> str:
    """Requests that did not meet their objective."""
    every = f"sum by ({by}) (increase(modelyard_slo_requests_total{{{EVERY}}}{window}))"
    return f"{every} - sum by ({by}) (increase(modelyard_slo_good_requests_total{{{EVERY}}}{window}))"


BUDGET = f"1 - {burn(f'{BUDGET_DAYS}d')}"

STATE = Row(
    100,
    "Is the objective met?",
    (
        stat(
            101,
            "Target",
            "Share of requests that must be good (`models.NAME.slo.target`). What good means stands beside it in the "
            "configuration: first_token_s and total_s. Empty: set an objective, or nothing below has data.",
            Query(TARGET, "{{model}}"),
            unit="percentunit",
            decimals=2,
            empty=NONE,
        ),
        stat(
            102,
            f"Good within {BUDGET_DAYS} days",
            "Share of requests that were good. Below target: the budget is spent; changes that are not repairs wait. "
            "Prometheus must keep that many days, or it is over what it has.",
            Query(good(f"[{BUDGET_DAYS}d]"), "{{model}}"),
            unit="percentunit",
            decimals=2,
            empty=NONE,
        ),
        stat(
            103,
            "Error budget left",
            f"Of what the target allows in {BUDGET_DAYS} days. Below 10%: no rollouts but repairs. Negative: the "
            "objective is missed; find the version below that spent it.",
            Query(BUDGET, "{{model}}"),
            unit="percentunit",
            decimals=1,
            limits=LEFT,
            empty=NONE,
        ),
        stat(
            104,
            "Budget would last",
            f"Days until nothing is left of a full budget of {BUDGET_DAYS} days at the pace of the last 6 hours. Less "
            "than five: ModelyardSloBurnFast fires; find the version that spends it, now.",
            Query(f"{BUDGET_DAYS} * 86400 / clamp_min({burn('6h')}, 0.01)", "{{model}}"),
            unit="s",
            decimals=1,
            limits=((None, "red"), (5 * 86400.0, "orange"), (30 * 86400.0, "green")),
            empty=NONE,
        ),
        stat(
            105,
            "Burn rate, 5 minutes",
            "How many times faster than allowed the budget goes now. From 14.4, and as much over an hour: "
            "ModelyardSloBurnFast fires; roll back or add engines at once.",
            Query(burn("5m"), "{{model}}"),
            decimals=1,
            limits=BURN,
            empty=NONE,
        ),
        stat(
            106,
            "Burn rate, 1 hour",
            "A burst that is over shows in 5 minutes only; what lasts shows here too. Both high: act; only this one: "
            "it is over, find out what it was.",
            Query(burn("1h"), "{{model}}"),
            decimals=1,
            limits=BURN,
            empty=NONE,
        ),
    ),
)

RATES = Row(
    110,
    "How fast does the budget go?",
    (
        Panel(
            111,
            "Fast burn: 5 minutes and 1 hour",
            "Both above 14.4 (2% of the budget within an hour): ModelyardSloBurnFast. See Versions for the "
            "arm, then `modelyard rollback MODEL`.",
            (Query(burn("5m"), "5m {{model}}"), Query(burn("1h"), "1h {{model}}")),
            width=12,
            decimals=1,
            limits=BURN,
            empty=NONE,
            see=(VERSIONS,),
        ),
        Panel(
            112,
            "Slow burn: 6 hours and 3 days",
            "Both above 1: the budget does not last its window, ModelyardSloBurnSlow fires. Nothing is on fire, but a "
            "version or a machine is not good enough: plan for it. Six hours above 6 is ModelyardSloBurnFast.",
            (Query(burn("6h"), "6h {{model}}"), Query(burn("3d"), "3d {{model}}")),
            width=12,
            decimals=1,
            limits=BURN,
            empty=NONE,
        ),
        table(
            113,
            "Every model",
            "Burn rates over four windows, and what is left. Read from left to right: high on the left alone has just "
            "begun, on the right alone is over.",
            Query(TARGET, "target", "percentunit", 2),
            Query(burn("5m"), "burn 5m", "short", 1, BURN),
            Query(burn("1h"), "burn 1h", "short", 1, BURN),
            Query(burn("6h"), "burn 6h", "short", 1, BURN),
            Query(burn("3d"), "burn 3d", "short", 1, BURN),
            Query(good(f"[{BUDGET_DAYS}d]"), f"good {BUDGET_DAYS}d", "percentunit", 2),
            Query(BUDGET, "budget left", "percentunit", 1, LEFT),
            height=7,
            empty=NONE,
        ),
    ),
)

WHOSE = Row(
    120,
    "Who spends it?",
    (
        Panel(
            121,
            "Good requests by version",
            "Share of each version's requests that met the objective. One arm lower: it is that version; all of them: "
            "load or machine.",
            (
                Query(
                    f"{rate('modelyard_slo_good_requests_total')} / ({rate('modelyard_slo_requests_total')} > 0)", ARM
                ),
            ),
            unit="percentunit",
            top=1.0,
            empty=NONE,
            see=(ROLLOUT,),
        ),
        Panel(
            122,
            "Requests that were not good",
            "Per second and version: late or failed. Where this rises, so does the burn rate; Errors and First token "
            "beside it say which of the two it is.",
            (
                Query(
                    f"{rate('modelyard_slo_requests_total')} - {rate('modelyard_slo_good_requests_total')}",
                    ARM,
                ),
            ),
            unit="reqps",
            stacked=True,
            empty=NONE,
        ),
        table(
            123,
            f"Budget spent in {BUDGET_DAYS} days",
            "Requests that were not good, by version; without one: refused for want of room. The first line is "
            "where work pays most.",
            Query(f"sort_desc({bad(f'[{BUDGET_DAYS}d]', 'model, version')})", "not good", "short", 0),
            width=8,
            empty=NONE,
        ),
        Panel(
            124,
            "Failed or cut",
            "The part of it that is errors. Above 5%: ModelyardErrorRateHigh; see the engine's log.",
            (Query(faults(), ARM),),
            unit="percentunit",
            see=(VERSIONS,),
        ),
        Panel(
            125,
            "First token, p95",
            "The part of it that is lateness at the start. Above the objective's first_token_s: queueing (add slots or "
            "replicas) or long prompts.",
            (Query(quantile(0.95, "modelyard_time_to_first_token_seconds"), ARM),),
            unit="s",
            limits=FIRST_TOKEN,
            see=(VERSIONS,),
        ),
        Panel(
            126,
            "Requests judged",
            "Requests per second that count for the objective: those that completed, failed or were cut. Few of them: "
            "burn rates jump, wait for the longer windows.",
            (Query(f"sum by (model) (rate(modelyard_slo_requests_total{{{EVERY}}}{RATE}))", "{{model}}"),),
            unit="reqps",
            empty=NONE,
            see=(OVERVIEW,),
        ),
    ),
)


def board() -> Board:
    """The dashboard."""
    return Board(
        uid=SLO,
        short_title="Objectives (SLO)",
        description="How fast error budgets go, what is left of them, and which version spends them.",
        rows=(STATE, RATES, WHOSE),
        variables=("model", "version"),
        since="now-6h",
        refresh="30s",
        annotations=(ROUTE_CHANGES,),
    )
