"""Versions side by side: latency, tokens, errors, drift, feedback.

Owns: the panels of `modelyard-versions`. Never: expressions that others share (`parts`), JSON (`build`).
"""

from __future__ import annotations

from monitoring.dashboards.build import Board, Panel, Query, Row, table
from monitoring.dashboards.parts import (
    ARM,
    BY,
    ENGINES,
    ERRORS,
    FIRST_TOKEN,
    GPU_COST,
    RATE,
    ROLLOUT,
    ROUTE_CHANGES,
    VERDICT,
    VERSIONS,
    WHICH,
    faults,
    mean,
    quantile,
    quantiles,
    rate,
    ratio,
)

TTFT = "modelyard_time_to_first_token_seconds"
GAPS = "modelyard_inter_token_latency_seconds"
RANGE = "[$__range]"


def liked(window: str) -> str:
    """Share of feedback that was positive; no series where a version got none."""
    said = f"sum {BY} (increase(modelyard_feedback_total{{{WHICH}}}{window}))"
    positive = f'sum {BY} (increase(modelyard_feedback_total{{{WHICH},score="positive"}}{window}))'
    return f"{positive} / ({said} > 0)"


GLANCE = Row(
    100,
    "At a glance",
    (
        table(
            101,
            "Versions side by side",
            "One line per version over the last minutes. Compare at the same load only. Red: errors from 5%, first "
            "token from 5 s; then look at the rows below, and at Rollout before giving that version more weight.",
            Query(rate("modelyard_requests_total"), "requests", "reqps", 2),
            Query(faults(), "errors", "percentunit", 2, ERRORS),
            Query(quantile(0.5, TTFT), "first token p50", "s", 2),
            Query(quantile(0.95, TTFT), "first token p95", "s", 2, FIRST_TOKEN),
            Query(mean(GAPS), "between tokens", "s", 1),
            Query(f"max {BY} (modelyard_tokens_per_second{{{WHICH}}})", "tokens/s", "short", 1),
            Query(
                f'max {BY} (modelyard_cost_per_1k_requests{{{WHICH},basis="allocated",method="inflight"}})',
                "cost per 1k",
                "short",
                4,
            ),
            Query(liked(RANGE), "positive feedback", "percentunit", 1),
            see=(ROLLOUT, GPU_COST),
        ),
    ),
)

LATENCY = Row(
    110,
    "How fast?",
    (
        Panel(
            111,
            "First token, p50",
            "Half of the streams wait less than this for their first content. One arm slower at the same load: longer "
            "prompts, or a slower version; compare Prompt tokens below.",
            (Query(quantile(0.5, TTFT), ARM),),
            unit="s",
        ),
        Panel(
            112,
            "First token, p95",
            "One stream in twenty waits longer. Far above p50: requests queue in the engine; see Engines, then add "
            "slots or replicas.",
            (Query(quantile(0.95, TTFT), ARM),),
            unit="s",
            limits=FIRST_TOKEN,
            see=(ENGINES,),
        ),
        Panel(
            113,
            "Between two tokens",
            "Mean wait between pieces of a stream (exact: sum over count). Grows with the batch; compare versions at "
            "the same load only.",
            (Query(mean(GAPS), ARM),),
            unit="s",
        ),
        Panel(
            114,
            "Whole answers",
            "Completed requests to their last byte; depends on how long answers are. Slower with the same time between "
            "tokens: the answers got longer, see Tokens per answer.",
            quantiles("modelyard_request_duration_seconds", 0.5, 0.95),
            unit="s",
        ),
        Panel(
            115,
            "Longest gap in a stream, p95",
            "Stalls that the mean hides. Seconds where tokens take milliseconds: preemptions or a machine that swaps; "
            "see Engines.",
            (Query(quantile(0.95, "modelyard_stream_gap_max_seconds"), ARM),),
            unit="s",
            see=(ENGINES,),
        ),
        Panel(
            116,
            "Decode speed",
            "Completion tokens per second of decoding, per stream. Falls as the batch grows; alone it is the engine's "
            "speed. One arm lower at the same load: a slower version.",
            (
                Query(
                    ratio(
                        rate("modelyard_phase_tokens_total", f'{WHICH},phase="decode"'),
                        rate("modelyard_phase_seconds_total", f'{WHICH},phase="decode"'),
                    ),
                    ARM,
                ),
            ),
        ),
    ),
)

TOKENS = Row(
    120,
    "How many tokens?",
    (
        Panel(
            121,
            "Completion tokens",
            "Tokens of requests that ended, per second and version. What the engines' own counters say is on Engines.",
            (Query(rate("modelyard_completion_tokens_total"), ARM),),
            stacked=True,
            see=(ENGINES,),
        ),
        Panel(
            122,
            "Tokens per answer",
            "Completion tokens per request served. An arm that writes more costs more and takes longer: read samples "
            "(`modelyard samples`) before calling it slow.",
            (
                Query(
                    ratio(
                        rate("modelyard_completion_tokens_total"),
                        rate("modelyard_requests_total", f'{WHICH},outcome!="rejected"'),
                    ),
                    ARM,
                ),
            ),
            decimals=1,
        ),
        Panel(
            123,
            "Prompt tokens, and cached",
            "Prompt tokens per second; cached: what the engine did not have to read again. Arms should get the same "
            "prompts: a lasting difference means that the split is not even.",
            (
                Query(rate("modelyard_prompt_tokens_total"), f"prompt {ARM}"),
                Query(rate("modelyard_prompt_cached_tokens_total"), f"cached {ARM}"),
            ),
        ),
    ),
)

ERRORS_ROW = Row(
    130,
    "What goes wrong?",
    (
        Panel(
            131,
            "Errors",
            "Share of requests that failed or were cut. Above 5% for five minutes ModelyardErrorRateHigh fires: "
            "`modelyard rollback MODEL` if it is one version.",
            (Query(faults(), ARM),),
            unit="percentunit",
            limits=ERRORS,
            see=(ROLLOUT,),
        ),
        Panel(
            132,
            "Requests that did not complete",
            "By outcome. failed and truncated are yours: see the engine's log. client_error and cancelled are the "
            "client's: many of them on one arm only still say something about it.",
            (
                Query(
                    rate("modelyard_requests_total", f'{WHICH},outcome!="completed"', "by (model, version, outcome)"),
                    f"{{{{outcome}}}} {ARM}",
                ),
            ),
            unit="reqps",
        ),
        Panel(
            133,
            "Help that requests needed",
            "Per second: fallbacks to another version, streams that went on from another replica, kept answers given "
            "because no engine could. All hide faults from clients: find the engine that causes them.",
            (
                Query(rate("modelyard_fallbacks_total"), f"fallback {ARM}"),
                Query(rate("modelyard_continuations_total"), f"continued {ARM}"),
                Query(rate("modelyard_degraded_answers_total"), f"kept answer {ARM}"),
            ),
            unit="reqps",
            see=(ENGINES,),
        ),
    ),
)

DRIFT = Row(
    140,
    "Did it drift?",
    (
        Panel(
            141,
            "Drift verdicts",
            "data: inputs moved; output: answers moved; concept: quality moved. act: `modelyard drift MODEL` shows the "
            "features and samples; docs/drift.md what to do. Empty: nothing is pinned (`modelyard drift pin`).",
            (Query(f"max by (model, version, kind) (modelyard_drift_verdict{{{WHICH}}})", f"{{{{kind}}}} {ARM}"),),
            kind="state-timeline",
            width=12,
            mappings=VERDICT,
            empty="nothing is pinned",
        ),
        table(
            142,
            "Features that moved most",
            "PSI of live traffic against the reference, less its mean under no drift: 0.1 is worth watching, 0.25 asks "
            "for action. Read the samples of the first feature before anything else.",
            Query(
                f"topk(12, max by (model, version, kind, feature) (modelyard_drift_score{{{WHICH}}}))",
                "PSI",
                "short",
                3,
                ((None, "green"), (0.1, "orange"), (0.25, "red")),
            ),
            width=12,
            empty="nothing is pinned",
        ),
    ),
)

FEEDBACK = Row(
    150,
    "Do people like it?",
    (
        Panel(
            151,
            "Positive feedback",
            "Share of feedback that was positive, over the dashboard's time range. Few votes say little: look at Votes "
            "beside it; `modelyard eval compare` gives intervals.",
            (Query(liked(RANGE), ARM),),
            unit="percentunit",
            top=1.0,
            empty="no feedback",
        ),
        Panel(
            152,
            "Votes",
            "Feedback within the last hour, by sign. None at all: clients do not send any; docs/clients.md says how.",
            (
                Query(
                    f"sum by (model, version, score) (increase(modelyard_feedback_total{{{WHICH}}}[1h]))",
                    f"{{{{score}}}} {ARM}",
                ),
            ),
        ),
        Panel(
            153,
            "Samples kept",
            "Requests per second kept for drift and comparison. 0 with sampling on: see samples lost in the router, "
            "or the sampling rate in the configuration.",
            (
                Query(rate("modelyard_samples_total"), ARM),
                Query(f"sum(rate(modelyard_samples_lost_total{RATE}))", "lost"),
            ),
            unit="reqps",
        ),
    ),
)

SHADOW = Row(
    160,
    "Shadow copies",
    (
        Panel(
            161,
            "Copies by outcome",
            "Copies of requests that shadow versions got, per second. rejected: a cap refused them, raise it if the "
            "shadow sees too little; failed: the shadow version has a fault that clients have not seen yet.",
            (
                Query(
                    rate("modelyard_shadow_requests_total", by="by (model, version, outcome)"), f"{{{{outcome}}}} {ARM}"
                ),
            ),
            unit="reqps",
        ),
        Panel(
            162,
            "First token of copies, p95",
            "Beside the live arms' first token: what the shadow version would feel like. Much slower: do not give it "
            "weight before its engine is larger.",
            (Query(quantile(0.95, "modelyard_shadow_time_to_first_token_seconds"), ARM),),
            unit="s",
            limits=FIRST_TOKEN,
            empty="no shadow",
        ),
        Panel(
            163,
            "Engine seconds of copies",
            "Seconds in flight per second: how many slots copies hold on average, what `engine_seconds_per_hour` "
            "bounds. Too many: live requests wait for them; lower the share.",
            (Query(rate("modelyard_shadow_engine_seconds_total"), ARM),),
        ),
    ),
    collapsed=True,
)


def board() -> Board:
    """The dashboard."""
    return Board(
        uid=VERSIONS,
        short_title="Versions",
        description="Arms side by side: latency, tokens, errors, drift, feedback.",
        rows=(GLANCE, LATENCY, TOKENS, ERRORS_ROW, DRIFT, FEEDBACK, SHADOW),
        variables=("model", "version"),
        annotations=(ROUTE_CHANGES,),
    )
