"""The overview, for anyone: is it up, is it good, what does it cost.

Owns: the panels of `modelyard-overview`. Never: expressions that others share (`parts`), JSON (`build`).
"""

from __future__ import annotations

from monitoring.dashboards.build import Board, Panel, Query, Row, stat, table
from monitoring.dashboards.parts import (
    ARM,
    AT_WORK,
    BAD_FROM_1,
    DEVICE,
    ENGINES,
    ERRORS,
    EVERY,
    FINE,
    FIRST_TOKEN,
    FULL,
    GOOD_FROM_1,
    GPU_COST,
    IDLE,
    MODEL,
    OVERVIEW,
    RATE,
    ROLLOUT,
    ROUTE_CHANGES,
    SLO,
    UP,
    VERSIONS,
    WHICH,
    cost_per_hour,
    faults,
    quantile,
    quantiles,
    rate,
    served_share,
)

UNSERVED = (
    f"count(sum by (model, version) (modelyard_route_weight{{{WHICH}}}) > 0 "
    f"unless sum by (model, version) (modelyard_engine_up{{{WHICH}}}) > 0) or vector(0)"
)
ENGINES_UP = Row(
    100,
    "Is it up?",
    (
        stat(
            101,
            "Control plane",
            "Whether Prometheus reaches the admin port. Down: requests are still served on the last routing table, "
            "but nothing is counted, restarted or changed. Start `modelyard up` again; it adopts what runs.",
            Query('min(up{job="modelyard"})', "control plane"),
            limits=GOOD_FROM_1,
            mappings=UP,
            empty="not scraped",
        ),
        stat(
            102,
            "Engines ready",
            "Share of engine replicas that take requests. Below 100%: one starts, or keeps failing; Engines shows "
            "which, `modelyard status` the last lines of its log.",
            Query(f"avg(modelyard_engine_up{{{WHICH}}})", "ready"),
            unit="percentunit",
            decimals=0,
            limits=((None, "red"), (0.5, "orange"), (1.0, "green")),
            see=(ENGINES,),
        ),
        stat(
            103,
            "Versions without an engine",
            "Versions that have weight in a route and no engine that is ready: their requests go to the fallback "
            "or fail. Above 0: `modelyard rollback MODEL` returns to the route before.",
            Query(UNSERVED, "versions"),
            limits=BAD_FROM_1,
            see=(ROLLOUT,),
        ),
        stat(
            104,
            "Router workers down",
            "Workers that do not answer the control plane. Above 0 for long: see the worker's log under "
            "`workers/` in the state directory.",
            Query("count(modelyard_router_up) - sum(modelyard_router_up)", "down"),
            limits=BAD_FROM_1,
        ),
        stat(
            105,
            "Alerts firing",
            "Alerts of configs/prometheus/rules that fire now. Above 0: open Prometheus' page Alerts; each names "
            "its page under docs/runbooks.",
            Query('count(ALERTS{alertname=~"Modelyard.*",alertstate="firing"}) or vector(0)', "firing"),
            limits=BAD_FROM_1,
        ),
        stat(
            106,
            "Requests",
            "Requests that ended per second, all outcomes. 0 where you expect traffic: clients do not reach the "
            "router; try `curl :8000/health/ready`.",
            Query(rate("modelyard_requests_total", EVERY, ""), "requests"),
            unit="reqps",
            see=(VERSIONS,),
        ),
    ),
)


GOOD = (
    f"sum(rate(modelyard_slo_good_requests_total{{{EVERY}}}{RATE})) "
    f"/ (sum(rate(modelyard_slo_requests_total{{{EVERY}}}{RATE})) > 0)"
)
QUALITY = Row(
    110,
    "Is it good?",
    (
        stat(
            111,
            "Errors now",
            "Share of requests that failed or were cut; refused and cancelled ones are the client's doing. Above "
            "5%: Versions says which arm, then `modelyard rollback MODEL` if one version is to blame.",
            Query(faults(EVERY, ""), "errors"),
            unit="percentunit",
            decimals=2,
            limits=ERRORS,
            see=(VERSIONS,),
        ),
        stat(
            112,
            "First token, p95",
            "One stream in twenty waits longer than this for its first content. Red from 5 s: with many requests "
            "waiting the engines are full (add slots or replicas); with few, prompts are long or the version slow.",
            Query(quantile(0.95, "modelyard_time_to_first_token_seconds", by="job"), "p95"),
            unit="s",
            decimals=2,
            limits=FIRST_TOKEN,
            see=(VERSIONS,),
        ),
        stat(
            113,
            "Requests within objective",
            "Share of requests that met their model's objective (`models.NAME.slo`). Below target: SLO says how "
            "fast the error budget goes. Empty where no model has an objective.",
            Query(GOOD, "good"),
            unit="percentunit",
            decimals=2,
            empty="no objective",
            see=(SLO,),
        ),
        stat(
            114,
            "Versions that drifted",
            "Versions whose live traffic moved away from the pinned reference so far that something must be done. "
            "Above 0: `modelyard drift MODEL` shows which features moved; docs/drift.md says what to do.",
            Query(f"sum(modelyard_drift_episode{{{WHICH}}}) or vector(0)", "drifted"),
            limits=BAD_FROM_1,
            see=(VERSIONS,),
        ),
        stat(
            115,
            "Tokens written",
            "Completion tokens per second over the last minute, all versions. Falling while requests wait: "
            "the engines are slower; Engines shows which.",
            Query(f"sum(modelyard_tokens_per_second{{{WHICH}}})", "tokens/s"),
            decimals=1,
            see=(ENGINES,),
        ),
        stat(
            116,
            "Waiting for admission",
            "Requests that wait in the router now. Lasting: too few engines, or `inflight_max` is too low.",
            Query(f"sum(modelyard_queue_length{{{MODEL}}})", "waiting"),
            limits=((None, "green"), (1.0, "orange"), (50.0, "red")),
        ),
        Panel(
            117,
            "Requests by outcome",
            "failed: no usable answer; truncated: cut after the first token; client_error: the engine's own 4xx; "
            "rejected: refused by the router; cancelled: the client left. The first two are yours: see Engines.",
            (Query(rate("modelyard_requests_total", EVERY, "by (outcome)"), "{{outcome}}"),),
            unit="reqps",
            stacked=True,
            see=(VERSIONS,),
        ),
        Panel(
            118,
            "Time to first token",
            "Streams, from the request's arrival to its first content. Rising with requests in flight: queueing in "
            "the engine. Rising alone: longer prompts or a slower version.",
            quantiles("modelyard_time_to_first_token_seconds", 0.5, 0.95),
            unit="s",
            see=(VERSIONS,),
        ),
        Panel(
            119,
            "Errors by version",
            "Share of each version's requests that failed or were cut. One arm above the others: it is the "
            "version, roll it back. All of them: it is the machine or an upstream.",
            (Query(faults(), ARM),),
            unit="percentunit",
            limits=ERRORS,
            see=(ROLLOUT,),
        ),
    ),
)


BUDGET = "max by (budget, currency) "
WORKED = f"{MODEL},{AT_WORK}"
IDLED = f"{MODEL},{IDLE}"
COST = Row(
    120,
    "What does it cost?",
    (
        Panel(
            121,
            "Cost per hour",
            "What is being spent now, while devices are held (allocated basis). Idle on top is money without an "
            "answer: fewer replicas, or more traffic on the same ones.",
            (
                Query(cost_per_hour("allocated", "version, currency", which=WORKED), "{{version}} {{currency}}"),
                Query(cost_per_hour("allocated", "currency", which=IDLED), "idle {{currency}}"),
            ),
            stacked=True,
            decimals=3,
            see=(GPU_COST,),
        ),
        table(
            122,
            "Cost of 1,000 answers",
            "Everything that a version cost, divided by its completed requests. allocated has its part of idle "
            "time, busy does not: far apart means that the device mostly idles.",
            Query(
                "max by (model, version, currency) "
                f'(modelyard_cost_per_1k_requests{{{WHICH},basis="allocated",method="inflight"}})',
                "allocated",
                decimals=4,
            ),
            Query(
                "max by (model, version, currency) "
                f'(modelyard_cost_per_1k_requests{{{WHICH},basis="busy",method="inflight"}})',
                "busy",
                decimals=4,
            ),
            width=16,
            see=(GPU_COST,),
        ),
        stat(
            123,
            "Forecast to the end of the month",
            "What this month will have cost at the present pace. Too much: GPU and cost shows which version, and "
            "what part is idle.",
            Query("sum by (currency) (modelyard_cost_forecast_month)", "{{currency}}"),
            width=8,
            height=6,
            decimals=2,
            empty="too few days",
            see=(GPU_COST,),
        ),
        table(
            124,
            "Budgets",
            "What each budget allows, what is spent, and what it will come to. A forecast above the amount fires "
            "ModelyardBudgetForecastExceeded: cut idle replicas or raise the budget. Empty without `budgets:`.",
            Query(f"{BUDGET}(modelyard_cost_budget_amount)", "amount", decimals=2),
            Query(f"{BUDGET}(modelyard_cost_budget_spent)", "spent", decimals=2),
            Query(f"{BUDGET}(modelyard_cost_budget_forecast)", "forecast", decimals=2),
            width=16,
            height=6,
            empty="no budget",
            see=(GPU_COST,),
        ),
    ),
)


TRAFFIC = Row(
    130,
    "Which version serves how much?",
    (
        Panel(
            131,
            "Requests by version",
            "Requests that ended, per second and version. One that should serve and does not: see its engines.",
            (Query(rate("modelyard_requests_total"), ARM),),
            unit="reqps",
            see=(VERSIONS,),
        ),
        Panel(
            132,
            "Share served and weight in the route",
            "served: what each version answered; weight: what the route asks for. Few sticky keys, pinned requests "
            "and fallbacks make them differ. A lasting gap with many keys: see Rollout.",
            (
                Query(served_share(), f"served {ARM}"),
                Query(f"modelyard_route_weight{{{WHICH}}} / 10000", f"weight {ARM}"),
            ),
            unit="percentunit",
            top=1.0,
            see=(ROLLOUT,),
        ),
        Panel(
            133,
            "In flight",
            "Requests that engines work on now. Flat at the number of slots while first tokens come later: the "
            "engine is full; add slots, replicas or a limit.",
            (Query(f"modelyard_inflight_requests{{{WHICH}}}", ARM),),
            stacked=True,
            see=(ENGINES,),
        ),
        Panel(
            134,
            "Device utilisation",
            "GPUs, or the CPU where there is none. High with few tokens per second: small batches, or another "
            "process on the device. GPU and cost has the rest.",
            (Query(f'{{__name__=~"modelyard_(gpu|cpu)_utilization_ratio",{DEVICE}}}', "{{device}}"),),
            unit="percentunit",
            top=1.0,
            see=(GPU_COST,),
        ),
        Panel(
            135,
            "Device memory in use",
            "Share of the device's memory. Near 100%: the next engine will not fit, and engines may be killed; "
            "use a smaller context or fewer slots.",
            (
                Query(
                    f'sum by (device) ({{__name__=~"modelyard_(gpu|cpu)_memory_used_bytes",{DEVICE}}}) / '
                    f'sum by (device) ({{__name__=~"modelyard_(gpu|cpu)_memory_total_bytes",{DEVICE}}})',
                    "{{device}}",
                ),
            ),
            unit="percentunit",
            top=1.0,
            limits=FULL,
            see=(GPU_COST,),
        ),
        Panel(
            136,
            "Turned away",
            "Requests per second that a key's limits or a full queue refused. rate_limit_exceeded and "
            "insufficient_quota: the key's own; queue_full and queue_timeout: the model has too few engines.",
            (Query(rate("modelyard_rejections_total", MODEL, "by (model, reason)"), "{{reason}} {{model}}"),),
            unit="reqps",
        ),
    ),
)


BEHIND = Row(
    140,
    "Behind it: router, accounting, disk",
    (
        Panel(
            141,
            "Router overhead",
            "The router's own share of a request. Milliseconds instead of microseconds: the worker's core is "
            "saturated; add workers (`server.workers`).",
            tuple(
                Query(quantile(q, "modelyard_router_overhead_seconds", 'endpoint!=""', "job"), f"p{q * 100:g}")
                for q in (0.5, 0.99)
            ),
            unit="s",
        ),
        Panel(
            142,
            "Router loop lag",
            "Longest recent delay of each worker's event loop. Above 50 ms for long: streams stutter; add workers "
            "or move engines to other cores.",
            (Query("modelyard_router_loop_lag_seconds", "{{worker}}"),),
            unit="s",
            limits=((None, "green"), (0.05, "orange"), (0.25, "red")),
        ),
        Panel(
            143,
            "Router memory",
            "Resident memory per worker. A steady climb without more connections is a leak: please report it.",
            (Query("modelyard_router_resident_bytes", "{{worker}}"),),
            unit="bytes",
        ),
        Panel(
            144,
            "Accounting lag",
            "How far counting and settling are behind. Counting above a minute: the control plane is overloaded or "
            "its disk is full. Settling follows the longest request that still runs.",
            (
                Query("modelyard_ledger_lag_seconds", "counting"),
                Query("modelyard_settlement_lag_seconds", "settling"),
            ),
            unit="s",
            limits=((None, "green"), (60.0, "red")),
        ),
        Panel(
            145,
            "Disk free",
            "Room left where the state directory lies. Below 5% ModelyardDiskFilling fires: remove old "
            "runs and artifacts, or give it more.",
            (
                Query(
                    "modelyard_disk_free_bytes / modelyard_disk_total_bytes",
                    "{{path}}",
                ),
            ),
            unit="percentunit",
            top=1.0,
            limits=((None, "red"), (0.05, "orange"), (0.3, "green")),
        ),
        Panel(
            146,
            "Series of the exposition",
            "How many series Modelyard shows, and how many it left out to stay bounded. Left out above 0: a label "
            "has more values than it may; see the control plane's log.",
            (
                Query("modelyard_metrics_series", "shown"),
                Query("increase(modelyard_metrics_series_dropped_total[1h])", "left out within an hour"),
            ),
            limits=FINE,
        ),
    ),
    collapsed=True,
)


def board() -> Board:
    """The dashboard."""
    return Board(
        uid=OVERVIEW,
        short_title="Overview",
        description="For anyone: is it up, is it good, what does it cost.",
        rows=(ENGINES_UP, QUALITY, COST, TRAFFIC, BEHIND),
        variables=("model", "version", "device"),
        annotations=(ROUTE_CHANGES,),
    )
