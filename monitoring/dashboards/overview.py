"""The overview: is it up, which version serves how much, how fast, at what cost, and is the device busy.

Owns: the panels of `modelyard-overview`. Never: JSON shapes (`build`).
"""

from __future__ import annotations

from typing import Final

from monitoring.dashboards.build import Json, Panel, Query, Row, dashboard, datasource_variable, label_variable

UID: Final = "modelyard-overview"
WHICH: Final = 'model=~"$model",version=~"$version"'
RATE: Final = "[$__rate_interval]"
BY_VERSION: Final = "{{model}}@{{version}}"
RED_BELOW_1: Final = ((None, "red"), (1.0, "green"))
SERVED: Final = f'modelyard_requests_total{{{WHICH},outcome!="rejected"}}'
FAULTS: Final = f'modelyard_requests_total{{{WHICH},outcome=~"failed|truncated"}}'


def _quantile(q: float, metric: str) -> str:
    return f"histogram_quantile({q}, sum by (le, model, version) (rate({metric}_bucket{{{WHICH}}}{RATE})))"


def _quantiles(metric: str, *qs: float) -> tuple[Query, ...]:
    return tuple(Query(_quantile(q, metric), f"p{q * 100:.0f} {BY_VERSION}") for q in qs)


def _state() -> Row:
    return Row(
        "Is it up?",
        (
            Panel(
                "Control plane",
                "Whether Prometheus reaches the admin port. Down: requests are still served on the last routing table, "
                "but nothing is counted, restarted or changed. Start `modelyard up` again; it adopts what runs.",
                (Query("min(up{job='modelyard'})", "control plane", instant=True),),
                kind="stat",
                width=4,
                height=4,
                limits=RED_BELOW_1,
                mappings=(("0", "down", "red"), ("1", "up", "green")),
            ),
            Panel(
                "Router workers down",
                "Workers that do not answer the control plane. Above 0 for long: see the worker's log under "
                "`workers/` in the state directory.",
                (Query("count(modelyard_router_up) - sum(modelyard_router_up)", "down", instant=True),),
                kind="stat",
                width=4,
                height=4,
                limits=((None, "green"), (1.0, "red")),
            ),
            Panel(
                "Engines ready",
                "Replicas that take requests, per version. 0 of a version with weight in the route: its traffic goes "
                "to the fallback or fails. `modelyard status` shows the last lines of its log.",
                (Query(f"sum by (model, version) (modelyard_engine_up{{{WHICH}}})", BY_VERSION, instant=True),),
                kind="stat",
                width=8,
                height=4,
                limits=RED_BELOW_1,
            ),
            Panel(
                "Errors now",
                "Share of requests that failed or were cut, over the last minutes; rejected and cancelled ones are the "
                "client's doing and left out. Above 5%: see Errors by outcome, then `modelyard rollback MODEL` if one "
                "version is to blame.",
                (
                    Query(
                        f"sum(rate({FAULTS}{RATE})) / clamp_min(sum(rate({SERVED}{RATE})), 1e-9)",
                        "error share",
                        instant=True,
                    ),
                ),
                unit="percentunit",
                kind="stat",
                width=4,
                height=4,
                decimals=2,
                limits=((None, "green"), (0.01, "orange"), (0.05, "red")),
            ),
            Panel(
                "Tokens per second",
                "Completion tokens over the last minute, all versions together.",
                (Query(f"sum(modelyard_tokens_per_second{{{WHICH}}})", "tokens/s", instant=True),),
                kind="stat",
                width=4,
                height=4,
                decimals=1,
            ),
        ),
    )


def _traffic() -> Row:
    share = (
        f"sum by (model, version) (rate({SERVED}{RATE})) / on (model) group_left () "
        f'clamp_min(sum by (model) (rate(modelyard_requests_total{{model=~"$model",outcome!="rejected"}}{RATE})), 1e-9)'
    )
    return Row(
        "Which version serves how much?",
        (
            Panel(
                "Requests",
                "Requests that ended, per second and version.",
                (Query(f"sum by (model, version) (rate(modelyard_requests_total{{{WHICH}}}{RATE}))", BY_VERSION),),
                unit="reqps",
            ),
            Panel(
                "Share of traffic and weight in the route",
                "Solid: what each version served; weight: what the route asks for. Few sticky keys, pinned requests "
                "and fallbacks make them differ. A lasting gap with many keys: see Fallbacks.",
                (
                    Query(share, f"served {BY_VERSION}"),
                    Query(f"modelyard_route_weight{{{WHICH}}} / 10000", f"weight {BY_VERSION}"),
                ),
                unit="percentunit",
                top=1.0,
            ),
            Panel(
                "In flight",
                "Requests that engines work on now. Flat at the number of slots while times to first token rise: the "
                "engine is full; add slots, replicas or a limit.",
                (Query(f"modelyard_inflight_requests{{{WHICH}}}", BY_VERSION),),
                stacked=True,
            ),
            Panel(
                "Waiting for admission",
                "Requests that wait in the router because the model has as many with engines as `admission` allows. "
                "Lasting: the engines are too few, or `inflight_max` is too low.",
                (Query('modelyard_queue_length{model=~"$model"}', "{{priority}} {{model}}"),),
                stacked=True,
            ),
            Panel(
                "Refused for a limit",
                "Requests per second that a key's limits or a full queue turned away. rate_limit_exceeded and "
                "insufficient_quota: the key's own; queue_full and queue_timeout: the model has too few engines.",
                (
                    Query(
                        "sum by (model, reason) (rate(modelyard_rejections_total"
                        f'{{model=~"$model",reason=~"queue_.*|rate_limit_exceeded|insufficient_quota"}}{RATE}))',
                        "{{reason}} {{model}}",
                    ),
                ),
                unit="reqps",
            ),
            Panel(
                "Errors by outcome",
                "failed: no usable answer; truncated: cut after the first token; client_error: the engine's own 4xx; "
                "rejected: refused by the router; cancelled: the client left. The first two are yours: look at Engine "
                "restarts and the engine's log.",
                (
                    Query(
                        "sum by (model, version, outcome) "
                        f'(rate(modelyard_requests_total{{{WHICH},outcome!="completed"}}{RATE}))',
                        f"{{{{outcome}}}} {BY_VERSION}",
                    ),
                ),
                unit="reqps",
            ),
            Panel(
                "Fallbacks",
                "Requests answered by another version than the one assigned, per second. Above 0: an arm of the route "
                "is not able to answer.",
                (Query(f"sum by (model, version) (rate(modelyard_fallbacks_total{{{WHICH}}}{RATE}))", BY_VERSION),),
                unit="reqps",
            ),
            Panel(
                "Engine restarts",
                "Restarts within the last quarter of an hour. More than three: the engine flaps; its last log lines "
                "are in `modelyard status`.",
                (Query(f"increase(modelyard_engine_restarts_total{{{WHICH}}}[15m])", "{{replica}}"),),
                decimals=0,
            ),
        ),
    )


def _speed() -> Row:
    return Row(
        "How fast?",
        (
            Panel(
                "Time to first token",
                "Streams, from the request's arrival to its first content. Rising with In flight: queueing in the "
                "engine. Rising alone: longer prompts or a slower version.",
                _quantiles("modelyard_time_to_first_token_seconds", 0.5, 0.95),
                unit="s",
            ),
            Panel(
                "Inter-token latency",
                "Wait between two pieces of a stream (each stream's mean, per gap). Grows with the batch; compare "
                "versions at the same load only.",
                _quantiles("modelyard_inter_token_latency_seconds", 0.5, 0.95),
                unit="s",
            ),
            Panel(
                "Request duration",
                "Completed requests, to their last byte; depends on how long the answers are.",
                _quantiles("modelyard_request_duration_seconds", 0.5, 0.95),
                unit="s",
            ),
            Panel(
                "Completion tokens",
                "Tokens of requests that ended, per second and version.",
                (
                    Query(
                        f"sum by (model, version) (rate(modelyard_completion_tokens_total{{{WHICH}}}{RATE}))",
                        BY_VERSION,
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Longest gap in a stream",
                "The longest wait within each stream, 95th percentile: stalls that the mean hides.",
                _quantiles("modelyard_stream_gap_max_seconds", 0.95),
                unit="s",
            ),
            Panel(
                "Router overhead",
                "The router's own share of a request. Milliseconds instead of microseconds: the worker's core is "
                "saturated; add workers.",
                tuple(
                    Query(
                        f"histogram_quantile({q}, sum by (le) (rate(modelyard_router_overhead_seconds_bucket{RATE})))",
                        f"p{q * 100:.0f}",
                    )
                    for q in (0.5, 0.99)
                ),
                unit="s",
            ),
        ),
    )


def _cost() -> Row:
    labels = "{{version}} ({{basis}}, {{method}}, {{device_kind}}) {{currency}}"
    return Row(
        "What does it cost?",
        (
            Panel(
                "Cost per 1,000 successful requests",
                "busy: only the time with requests in flight; allocated: with the version's part of idle time. Far "
                "apart: the device is mostly idle; give it more traffic or fewer replicas.",
                (
                    Query(
                        f'modelyard_cost_per_1k_requests{{{WHICH},basis=~"allocated|busy",method="inflight"}}',
                        f"{{{{model}}}}@{labels}",
                        instant=True,
                    ),
                ),
                kind="bargauge",
                decimals=4,
            ),
            Panel(
                "Total cost",
                "Everything since the ledger began, on the allocated basis: versions and idle sum to the bill "
                "(less what is not settled yet).",
                (
                    Query(
                        'sum by (model, version, currency) (modelyard_cost_total{basis="allocated",method="inflight"})',
                        "{{model}} {{version}} {{currency}}",
                        instant=True,
                    ),
                ),
                kind="bargauge",
                decimals=4,
            ),
            Panel(
                "Cost per hour",
                "What is being spent now, by whom. Idle on top is money without an answer.",
                (
                    Query(
                        "3600 * sum by (model, version, currency) "
                        f'(rate(modelyard_cost_total{{basis="allocated",method="inflight"}}{RATE}))',
                        "{{model}} {{version}} {{currency}}",
                    ),
                ),
                stacked=True,
                decimals=4,
            ),
        ),
    )


def _device() -> Row:
    return Row(
        "Is the device busy?",
        (
            Panel(
                "Utilisation",
                "GPUs, or the CPU where there is none. High with low tokens per second: small batches or another "
                "process on the device.",
                (Query('{__name__=~"modelyard_(gpu|cpu)_utilization_ratio"}', "{{__name__}} {{device}}"),),
                unit="percentunit",
                top=1.0,
            ),
            Panel(
                "Memory in use",
                "Share of the device's memory. Near 1: the next engine will not fit.",
                (
                    Query(
                        'sum by (device) ({__name__=~"modelyard_(gpu|cpu)_memory_used_bytes"}) / '
                        'sum by (device) ({__name__=~"modelyard_(gpu|cpu)_memory_total_bytes"})',
                        "{{device}}",
                    ),
                ),
                unit="percentunit",
                top=1.0,
            ),
            Panel(
                "Engine memory",
                "What each version's engines hold: on the GPU where it says so, else resident.",
                (Query(f"modelyard_engine_memory_bytes{{{WHICH}}}", BY_VERSION),),
                unit="bytes",
                stacked=True,
            ),
            Panel(
                "Router memory",
                "Resident memory per worker. A worker stays under 45 MB; a steady climb is a leak, please report it.",
                (Query("modelyard_router_resident_bytes", "{{worker}}"),),
                unit="bytes",
            ),
            Panel(
                "Power",
                "GPUs only: what they draw. Empty on a machine without one.",
                (Query("modelyard_gpu_power_watts", "{{device}}"),),
                unit="watt",
            ),
            Panel(
                "Accounting lag",
                "How far counting and settling are behind. Counting above a minute: the control plane is overloaded or "
                "its disk is full. Settling follows the longest request that still runs.",
                (
                    Query("modelyard_ledger_lag_seconds", "counting"),
                    Query("modelyard_settlement_lag_seconds", "settling"),
                ),
                unit="s",
            ),
        ),
    )


def overview() -> Json:
    """The dashboard's JSON."""
    return dashboard(
        uid=UID,
        title="Modelyard overview",
        description="Is it up, which version serves how much, how fast, at what cost.",
        rows=(_state(), _traffic(), _speed(), _cost(), _device()),
        variables=(
            datasource_variable(),
            label_variable("model", "Model", "label_values(modelyard_route_weight, model)"),
            label_variable("version", "Version", 'label_values(modelyard_route_weight{model=~"$model"}, version)'),
        ),
    )
