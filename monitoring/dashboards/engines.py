"""Engines: which replicas are up, how full they are, and what they say about themselves.

Owns: the panels of `modelyard-engines`. Never: expressions that others share (`parts`), JSON (`build`).
"""

from __future__ import annotations

from monitoring.dashboards.build import Board, Panel, Query, Row, stat, table
from monitoring.dashboards.parts import (
    ARM,
    ENGINES,
    FULL,
    GOOD_FROM_1,
    GPU_COST,
    MODEL,
    RATE,
    REPLICA,
    ROUTE_CHANGES,
    UP,
    VERSIONS,
    WHICH,
    quantiles,
)

NONE = "no engine publishes it"
BY_REPLICA = "by (model, version, replica)"


def engine(reading: str, how: str = "max") -> str:
    """An engine's own gauge by replica."""
    return f"{how} {BY_REPLICA} (modelyard_engine_{reading}{{{REPLICA}}})"


def per_second(reading: str) -> str:
    """An engine's own counter by replica."""
    return f"sum {BY_REPLICA} (rate(modelyard_engine_{reading}{{{REPLICA}}}{RATE}))"


HITS = f"{per_second('prefix_cache_hits_total')} / ({per_second('prefix_cache_queries_total')} > 0)"
RESTARTS = f"sum {BY_REPLICA} (increase(modelyard_engine_restarts_total{{{REPLICA}}}[1h]))"

STATE = Row(
    100,
    "Which engines are up?",
    (
        stat(
            101,
            "Ready",
            "Replicas that take requests. 0: nothing is answered; `modelyard status` shows why.",
            Query(f"sum(modelyard_engine_up{{{REPLICA}}})", "ready"),
            limits=GOOD_FROM_1,
        ),
        stat(
            102,
            "Not ready",
            "Replicas that start, or keep failing. Above 0 for two minutes ModelyardEngineDown fires: `modelyard logs` "
            "has the reason.",
            Query(f"sum(1 - modelyard_engine_up{{{REPLICA}}})", "not ready"),
            limits=((None, "green"), (1.0, "red")),
        ),
        stat(
            103,
            "Restarts within an hour",
            "More than three in a quarter of an hour: ModelyardEngineFlapping. Often memory, or an argument that the "
            "engine refuses: see its log.",
            Query(f"sum(increase(modelyard_engine_restarts_total{{{REPLICA}}}[1h]))", "restarts"),
            decimals=0,
            limits=((None, "green"), (1.0, "orange"), (4.0, "red")),
        ),
        stat(
            104,
            "Fullest KV cache",
            "Of all replicas. From 95% ModelyardKvCacheFull fires: requests wait or are preempted; use fewer slots, a "
            "shorter context, or more memory.",
            Query(f"max(modelyard_engine_kv_cache_usage_ratio{{{REPLICA}}})", "fullest"),
            unit="percentunit",
            decimals=0,
            limits=FULL,
            empty=NONE,
        ),
        stat(
            105,
            "Waiting in engines",
            "Requests that engines accepted but do not work on. Lasting: first tokens come late; add slots, replicas, "
            "or let them wait in the router (`admission`), which knows priorities.",
            Query(f"sum(modelyard_engine_requests_waiting{{{REPLICA}}})", "waiting"),
            limits=((None, "green"), (1.0, "orange"), (20.0, "red")),
            empty=NONE,
        ),
        stat(
            106,
            "Engines that cannot be read",
            "Replicas whose last scrapes failed. Above 0: their own figures below are missing, not 0; requests are not "
            "concerned.",
            Query(
                f"count(sum {BY_REPLICA} "
                f'(increase(modelyard_engine_scrapes_total{{{REPLICA},outcome!="completed"}}[5m])) > 1) or vector(0)',
                "failing",
            ),
            limits=((None, "green"), (1.0, "orange")),
        ),
        Panel(
            107,
            "Up and down",
            "Each replica over time. Red gaps of some seconds: restarts; long ones: it does not come back, see "
            "`modelyard logs MODEL@VERSION`.",
            (Query(engine("up"), "{{replica}}"),),
            kind="state-timeline",
            width=24,
            height=6,
            mappings=UP,
        ),
    ),
)

REPLICAS = Row(
    110,
    "Every replica",
    (
        table(
            111,
            "Replicas",
            "One line per replica. KV cache from 95%, or waiting above 0 for long: it is full. An empty cell: the "
            "engine does not say that (see Readings that are absent).",
            Query(engine("up"), "up", "short", 0, GOOD_FROM_1),
            Query(engine("requests_running"), "running", "short", 0),
            Query(engine("requests_waiting"), "waiting", "short", 0),
            Query(engine("kv_cache_usage_ratio"), "KV cache", "percentunit", 0, FULL),
            Query(HITS, "prefix hits", "percentunit", 0),
            Query(per_second("completion_tokens_total"), "tokens/s", "short", 1),
            Query(per_second("preemptions_total"), "preemptions/s", "short", 2),
            Query(RESTARTS, "restarts/h", "short", 0),
        ),
    ),
)

LOAD = Row(
    120,
    "How full are they?",
    (
        Panel(
            121,
            "Running",
            "Requests that each engine works on. Flat at its number of slots: it is full.",
            (Query(engine("requests_running"), "{{replica}}"),),
            empty=NONE,
        ),
        Panel(
            122,
            "Waiting",
            "Requests queued in each engine. One replica alone: an affinity or a slow machine keeps it behind; all of "
            "them: too few.",
            (Query(engine("requests_waiting"), "{{replica}}"),),
            empty=NONE,
        ),
        Panel(
            123,
            "KV cache in use",
            "Share of each engine's cache that requests hold. Red from 95%: preemptions follow; fewer slots, shorter "
            "contexts or more memory.",
            (Query(engine("kv_cache_usage_ratio"), "{{replica}}"),),
            unit="percentunit",
            top=1.0,
            limits=FULL,
            empty=NONE,
        ),
        Panel(
            124,
            "In flight, as the router counts",
            "Beside Running and Waiting: what the router handed over and has no end of yet. Higher for long than both "
            "together: an engine hangs; `modelyard restart --engine REPLICA` replaces it.",
            (Query(f"modelyard_inflight_requests{{{WHICH}}}", ARM),),
        ),
        Panel(
            125,
            "Waiting in the router",
            "Before any engine, by priority: requests that admission holds back. interactive lasting: add replicas; "
            "batch lasting is what admission is for.",
            (Query(f"sum by (model, priority) (modelyard_queue_length{{{MODEL}}})", "{{priority}} {{model}}"),),
            stacked=True,
        ),
        Panel(
            126,
            "Time in the router's queue",
            "How long requests waited for admission. p95 beyond seconds: ModelyardQueueGrowing will fire; add replicas "
            "or refuse sooner (`admission.queue_timeout_s`).",
            quantiles(
                "modelyard_queue_seconds", 0.5, 0.95, which=MODEL, legend="{{priority}} {{model}}", by="model, priority"
            ),
            unit="s",
            empty="no admission",
        ),
    ),
)

CACHE = Row(
    130,
    "Does the cache help?",
    (
        Panel(
            131,
            "Prefix cache hits",
            "Share of prompt tokens that engines found in their cache. Low where prompts share a beginning: turn on "
            "affinity, so that the same beginning meets the same replica.",
            (Query(HITS, "{{replica}}"),),
            unit="percentunit",
            top=1.0,
            empty=NONE,
        ),
        Panel(
            132,
            "Preemptions",
            "Requests that an engine put back because its cache was full, per second. Above 0 for long: work is done "
            "twice; fewer slots or more memory.",
            (Query(per_second("preemptions_total"), "{{replica}}"),),
            unit="reqps",
            empty=NONE,
        ),
        Panel(
            133,
            "Engine memory",
            "What each version's engines hold: on the GPU where it says so, else resident. Climbing without end: a "
            "leak; restart at a quiet time and report it to the engine's makers.",
            (Query(f"modelyard_engine_memory_bytes{{{WHICH}}}", ARM),),
            unit="bytes",
            stacked=True,
            see=(GPU_COST,),
        ),
    ),
)

TOKENS = Row(
    140,
    "Do the counts agree?",
    (
        Panel(
            141,
            "Prompt tokens, by the engine",
            "The engine's own counter. Less than the router's on Versions: the engine leaves out cached ones, or has "
            "restarted.",
            (Query(per_second("prompt_tokens_total"), "{{replica}}"),),
            empty=NONE,
            see=(VERSIONS,),
        ),
        Panel(
            142,
            "Completion tokens, by the engine",
            "The engine's own counter. More than the router's on Versions: cancelled or repeated work, or others ask "
            "the engine without the router.",
            (Query(per_second("completion_tokens_total"), "{{replica}}"),),
            empty=NONE,
            see=(VERSIONS,),
        ),
        Panel(
            143,
            "Attempts per request",
            "Attempts at engines over requests served, by version. 1 is right; more: retries hide faults of engines, "
            "look for the one that fails.",
            (
                Query(
                    f"sum by (model, version) (rate(modelyard_upstream_attempts_total{{{WHICH}}}{RATE})) / (sum by "
                    f'(model, version) (rate(modelyard_requests_total{{{WHICH},outcome!="rejected"}}{RATE})) > 0)',
                    ARM,
                ),
            ),
            decimals=2,
            limits=((None, "green"), (1.1, "orange")),
        ),
    ),
)

READINGS = Row(
    150,
    "What engines do not say",
    (
        table(
            151,
            "Readings that are absent",
            "Readings that an engine does not publish: their panels are empty for it, which is not 0. Nothing to do, "
            "unless it is an option of the engine (`engine_args`).",
            Query(f"max by (model, version, reading) (modelyard_engine_reading_absent{{{REPLICA}}}) > 0", "absent"),
            width=12,
            empty="every reading is there",
        ),
        Panel(
            152,
            "Scrapes of engines",
            "Readings of engines' metrics by outcome, per second. Failing ones: the engine is too busy or has "
            "no metrics; the data plane is not concerned.",
            (
                Query(
                    f"sum by (outcome) (rate(modelyard_engine_scrapes_total{{{REPLICA}}}{RATE}))",
                    "{{outcome}}",
                ),
            ),
            width=12,
            unit="reqps",
        ),
    ),
    collapsed=True,
)


def board() -> Board:
    """The dashboard."""
    return Board(
        uid=ENGINES,
        short_title="Engines",
        description="Which replicas are up, how full they are, and what they say about themselves.",
        rows=(STATE, REPLICAS, LOAD, CACHE, TOKENS, READINGS),
        variables=("model", "version", "replica"),
        annotations=(ROUTE_CHANGES,),
    )
