"""Expressions, colours and words that several dashboards share.

Owns: how a rate, a share or a quantile is asked for. Never: panels of one dashboard, JSON.
"""

from __future__ import annotations

from typing import Final

from monitoring.dashboards.build import Annotation, Limits, Query

OVERVIEW: Final = "modelyard-overview"
VERSIONS: Final = "modelyard-versions"
ROLLOUT: Final = "modelyard-rollout"
GPU_COST: Final = "modelyard-gpu-cost"
ENGINES: Final = "modelyard-engines"
SLO: Final = "modelyard-slo"

MODEL: Final = 'model=~"$model"'
EVERY: Final = 'model=~"$model",version=~"$version"'
"""Requests that found no version with them."""
WHICH: Final = f'{EVERY},version!=""'
REPLICA: Final = 'model=~"$model",version=~"$version",replica=~"$replica"'
DEVICE: Final = 'device=~"$device"'
RATE: Final = "[$__rate_interval]"
BY: Final = "by (model, version)"
ARM: Final = "{{model}}@{{version}}"

IDLE: Final = 'outcome="idle"'
AT_WORK: Final = 'outcome!="idle"'
"""Idle time has an outcome of its own, and the version that held the memory meanwhile."""

FINE: Final[Limits] = ((None, "green"),)
BAD_FROM_1: Final[Limits] = ((None, "green"), (1.0, "red"))
GOOD_FROM_1: Final[Limits] = ((None, "red"), (1.0, "green"))
ERRORS: Final[Limits] = ((None, "green"), (0.01, "orange"), (0.05, "red"))
"""Red where ModelyardErrorRateHigh fires."""
FIRST_TOKEN: Final[Limits] = ((None, "green"), (2.0, "orange"), (5.0, "red"))
"""Red where ModelyardFirstTokenSlow fires."""
FULL: Final[Limits] = ((None, "green"), (0.85, "orange"), (0.95, "red"))
"""Red where ModelyardKvCacheFull fires; ModelyardGpuMemoryHigh a little above."""
BURN: Final[Limits] = ((None, "green"), (1.0, "orange"), (6.0, "red"), (14.4, "dark-red"))
"""1: the budget lasts exactly its window (above: ModelyardSloBurnSlow); 6 and 14.4: ModelyardSloBurnFast."""

HOLDS: Final = (("0", "holds", "green"), ("1", "broken", "red"))
UP: Final = (("0", "down", "red"), ("1", "up", "green"))
VERDICT: Final = (("-1", "inconclusive", "text"), ("0", "none", "green"), ("1", "watch", "orange"), ("2", "act", "red"))

ROUTE_CHANGES: Final = Annotation(
    "Route changed",
    f"modelyard_route_revision{{{MODEL}}} != modelyard_route_revision{{{MODEL}}} offset 1m",
    "blue",
    "Route of {{model}} changed",
)
"""Asked once a minute by Grafana, so a change is one mark."""


def rate(metric: str, which: str = WHICH, by: str = BY) -> str:
    """Per second, summed."""
    return f"sum {by} (rate({metric}{{{which}}}{RATE}))"


def share(part: str, whole: str) -> str:
    """part / whole; 0 where there is nothing to divide."""
    return f"{part} / clamp_min({whole}, 1e-9)"


def ratio(part: str, whole: str) -> str:
    """part / whole; no value where there is nothing to divide."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, metric: str, which: str = WHICH, by: str = "model, version") -> str:
    """A quantile of a histogram, from its buckets."""
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{{which}}}{RATE})))"


def quantiles(
    metric: str, *qs: float, which: str = WHICH, by: str = "model, version", legend: str = ARM
) -> tuple[Query, ...]:
    """Several quantiles in one panel."""
    return tuple(Query(quantile(q, metric, which, by), f"p{q * 100:g} {legend}") for q in qs)


def mean(metric: str, which: str = WHICH, by: str = BY) -> str:
    """A histogram's exact mean; nothing where nothing was counted."""
    return ratio(rate(f"{metric}_sum", which, by), rate(f"{metric}_count", which, by))


def faults(which: str = WHICH, by: str = BY) -> str:
    """Share of requests that failed or were cut; refused ones are in neither part."""
    return share(
        rate("modelyard_requests_total", f'{which},outcome=~"failed|truncated"', by),
        rate("modelyard_requests_total", f'{which},outcome!="rejected"', by),
    )


def served_share() -> str:
    """Share of its model's requests that each version served."""
    part = rate("modelyard_requests_total", f'{WHICH},outcome!="rejected"')
    whole = rate("modelyard_requests_total", f'{MODEL},outcome!="rejected"', "by (model)")
    return f"{part} / on (model) group_left () clamp_min({whole}, 1e-9)"


def cost(basis: str, *, which: str = WHICH, method: str = "inflight") -> str:
    """A selector of the money spent."""
    return f'modelyard_cost_total{{{which},basis="{basis}",method="{method}"}}'


def cost_per_hour(basis: str, by: str, *, which: str = WHICH) -> str:
    """Money per hour at the present pace; idle time is the outcome `idle`."""
    return f"3600 * sum by ({by}) (rate({cost(basis, which=which)}{RATE}))"


def burn(window: str, by: str = "model") -> str:
    """How many times faster than allowed the error budget is spent: bad share / (1 - target). 0 without traffic."""
    total = f"sum by ({by}) (rate(modelyard_slo_requests_total{{{EVERY}}}[{window}]))"
    good = f"sum by ({by}) (rate(modelyard_slo_good_requests_total{{{EVERY}}}[{window}]))"
    allowed = f"(1 - max by (model) (modelyard_slo_target{{{MODEL}}}))"
    return f"(({total} - {good}) / clamp_min({total}, 1e-9)) / on (model) group_left () {allowed}"
