"""A rollout as it runs: the route, its arms side by side, and whether anything speaks against going on.

Owns: the panels of `modelyard-rollout`. Never: expressions that others share (`parts`), JSON (`build`).
"""

from __future__ import annotations

from monitoring.dashboards.build import Board, Panel, Query, Row, stat
from monitoring.dashboards.parts import (
    ARM,
    BAD_FROM_1,
    BY,
    ERRORS,
    FIRST_TOKEN,
    GPU_COST,
    HOLDS,
    MODEL,
    ROLLOUT,
    ROUTE_CHANGES,
    SLO,
    VERDICT,
    VERSIONS,
    WHICH,
    burn,
    faults,
    mean,
    quantile,
    rate,
    served_share,
)

TTFT = "modelyard_time_to_first_token_seconds"
SPLIT_P = f"modelyard_sample_ratio_mismatch_p{{{MODEL}}}"
ROUTE_STATE = " + ".join(
    f'{number} * sum by (model) (modelyard_rollout_state{{{MODEL},state="{state}"}})'
    for number, state in ((1, "progressing"), (2, "paused"))
)
ROUTE_STATES = (("0", "stable", "green"), ("1", "progressing", "blue"), ("2", "paused", "orange"))
BEHIND = "modelyard_table_generation - on () group_right () modelyard_router_generation"
ALERTS = 'ALERTS{alertname=~"Modelyard.*",alertstate="firing",model=~"$model"}'

STATE = Row(
    100,
    "May it go on?",
    (
        stat(
            108,
            "The route is",
            "stable: one version has all of the traffic; progressing: several share it; paused: somebody holds it "
            "where it is, and `modelyard route show MODEL` says who and why; `modelyard route resume MODEL` ends that.",
            Query(ROUTE_STATE, "{{model}}"),
            mappings=ROUTE_STATES,
        ),
        stat(
            102,
            "Changes within a day",
            "How often the route changed. Each change begins the comparison anew: many of them mean that no arm was "
            "seen long enough; leave it alone until the figures are steady.",
            Query(f"changes(modelyard_route_revision{{{MODEL}}}[1d])", "{{model}}"),
            decimals=0,
        ),
        stat(
            103,
            "Is the split even?",
            "p of a chi-square test of distinct sticky units per arm since the last change. Below 0.001 the split is "
            "broken and no comparison of arms holds: see ModelyardSampleRatioMismatch's runbook.",
            Query(SPLIT_P, "{{model}}"),
            decimals=3,
            limits=((None, "red"), (0.001, "orange"), (0.01, "green")),
            empty="one arm, or no units",
        ),
        stat(
            104,
            "Alerts of this model",
            "Alerts that fire for it. Above 0: do not raise the weight (`modelyard route pause MODEL` keeps "
            "others from it), and read the alert's page under docs/runbooks.",
            Query(f"count({ALERTS}) or vector(0)", "firing"),
            limits=BAD_FROM_1,
        ),
        stat(
            105,
            "Arms that drifted",
            "Arms whose traffic moved away from the reference so far that something must be done. Above 0: compare "
            "inputs first, as both arms should drift alike when clients change.",
            Query(f"sum(modelyard_drift_episode{{{WHICH}}}) or vector(0)", "drifted"),
            limits=BAD_FROM_1,
            see=(VERSIONS,),
        ),
        stat(
            106,
            "Error budget burn, 1 h",
            "How many times faster than allowed the model's error budget goes. From 14.4: roll back now; from 6: stop "
            "here and find out why. Empty without an objective.",
            Query(burn("1h"), "{{model}}"),
            decimals=1,
            limits=((None, "green"), (6.0, "orange"), (14.4, "red")),
            empty="no objective",
            see=(SLO,),
        ),
        Panel(
            107,
            "Gates",
            "What would stop a rollout: errors from 5%, first token p95 from 5 s, a broken split, drift that asks for "
            "action, a cost anomaly. Red: do not raise the weight; the panels below show why.",
            (
                Query(f"({faults()}) >= bool 0.05", f"errors {ARM}"),
                Query(f"({quantile(0.95, TTFT)}) >= bool 5", f"first token {ARM}"),
                Query(f"{SPLIT_P} < bool 0.001", "split {{model}}"),
                Query(f"max {BY} (modelyard_drift_episode{{{WHICH}}})", f"drift {ARM}"),
                Query(f"max {BY} (modelyard_cost_anomaly{{{WHICH}}})", f"cost {ARM}"),
            ),
            kind="state-timeline",
            width=24,
            height=9,
            mappings=HOLDS,
        ),
    ),
)

ROUTE = Row(
    110,
    "The route as it moves",
    (
        Panel(
            111,
            "Weights",
            "What the route asks for, stacked to 100%. A step is a change of the route: who made it and why is in the "
            "console's audit.",
            (Query(f"modelyard_route_weight{{{WHICH}}} / 10000", ARM),),
            unit="percentunit",
            stacked=True,
            steps=True,
            top=1.0,
        ),
        Panel(
            112,
            "Share served",
            "What each arm really answered. Away from the weights for long with many users: pinned requests, fallbacks "
            "or a broken split; see the next row.",
            (Query(served_share(), ARM),),
            unit="percentunit",
            stacked=True,
            top=1.0,
        ),
        Panel(
            113,
            "Revisions",
            "The route's revision, which counts its changes, and how many routing tables each worker is behind. A "
            "worker that stays behind serves by an old route: see its log, restart it if it hangs.",
            (
                Query(f"modelyard_route_revision{{{MODEL}}}", "revision {{model}}"),
                Query(BEHIND, "{{worker}} behind"),
            ),
            steps=True,
            decimals=0,
        ),
    ),
)

ARMS = Row(
    120,
    "Arms side by side",
    (
        Panel(
            121,
            "Errors by arm",
            "Share of each arm's requests that failed or were cut. The candidate's above the other's: go back, "
            "`modelyard rollback MODEL`.",
            (Query(faults(), ARM),),
            unit="percentunit",
            limits=ERRORS,
            see=(VERSIONS,),
        ),
        Panel(
            122,
            "First token by arm, p95",
            "Compare at the same load only: an arm with a tenth of the traffic has shorter queues. Arms on one device "
            "slow each other down.",
            (Query(quantile(0.95, TTFT), ARM),),
            unit="s",
            limits=FIRST_TOKEN,
            see=(VERSIONS,),
        ),
        Panel(
            123,
            "Time between tokens by arm",
            "Mean wait between pieces of a stream. A candidate that is slower here stays slower at any weight: decide "
            "whether its answers are worth it before going on.",
            (Query(mean("modelyard_inter_token_latency_seconds"), ARM),),
            unit="s",
            see=(VERSIONS,),
        ),
        Panel(
            124,
            "Cost of 1,000 answers by arm",
            "busy basis: without idle time, which a small arm would bear too much of. A candidate that costs more: see "
            "whether it writes longer answers (Versions) or takes longer.",
            (
                Query(
                    f'max {BY} (modelyard_cost_per_1k_requests{{{WHICH},basis="busy",method="inflight"}})',
                    ARM,
                ),
            ),
            decimals=4,
            see=(GPU_COST,),
        ),
        Panel(
            125,
            "Requests by arm",
            "How much each arm was asked: the other figures mean little below some hundred requests per arm. Too few: "
            "wait, or raise the weight a little.",
            (Query(rate("modelyard_requests_total"), ARM),),
            unit="reqps",
        ),
        Panel(
            126,
            "Answers within objective by arm",
            "Share of requests that met the model's objective. The candidate below the other one: it is worse for "
            "users, whatever the mean latency says.",
            (
                Query(
                    f"{rate('modelyard_slo_good_requests_total')} / ({rate('modelyard_slo_requests_total')} > 0)",
                    ARM,
                ),
            ),
            unit="percentunit",
            top=1.0,
            empty="no objective",
            see=(SLO,),
        ),
    ),
)

SOUND = Row(
    130,
    "Is the comparison sound?",
    (
        Panel(
            131,
            "p of the split over time",
            "Low once by chance is nothing; a line that falls and stays below 0.001 is a broken split: clients without "
            "a sticky header, or an arm that loses them.",
            (Query(SPLIT_P, "{{model}}"),),
            log=True,
            floor=None,
            top=1.0,
            limits=((None, "red"), (0.001, "green")),
            empty="one arm, or no units",
        ),
        Panel(
            132,
            "Served less asked for",
            "Share served less the route's weight. Moves around 0 with few users; away from 0 for long with many: "
            "fallbacks, pinned requests, or stickiness to an earlier route.",
            (
                Query(
                    f"({served_share()}) - on (model, version) modelyard_route_weight{{{WHICH}}} / 10000",
                    ARM,
                ),
            ),
            unit="percentunit",
            floor=None,
        ),
        Panel(
            133,
            "Answered by another arm",
            "Requests per second that fell back to the arm shown. Above 0: the other arm cannot answer; its figures "
            "look better than they are.",
            (Query(rate("modelyard_fallbacks_total"), ARM),),
            unit="reqps",
        ),
        Panel(
            134,
            "Drift of the arms",
            "Verdicts by kind. data on both arms: the clients changed, not the version. output on the candidate alone: "
            "its answers differ; read samples before going on.",
            (Query(f"max by (model, version, kind) (modelyard_drift_verdict{{{WHICH}}})", f"{{{{kind}}}} {ARM}"),),
            kind="state-timeline",
            width=24,
            mappings=VERDICT,
            empty="nothing is pinned",
            see=(VERSIONS,),
        ),
    ),
    collapsed=True,
)


def board() -> Board:
    """The dashboard."""
    return Board(
        uid=ROLLOUT,
        short_title="Rollout",
        description="The route as it moves, its arms side by side, and whether anything speaks against going on.",
        rows=(STATE, ROUTE, ARMS, SOUND),
        variables=("model", "version"),
        since="now-6h",
        annotations=(ROUTE_CHANGES,),
    )
