"""Live drift for Prometheus.

Owns: names, labels and help texts of `modelyard_drift_*`. Never: computing, I/O. Labels are bounded: served versions,
the features that there are, three kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.windows import Drift

VERDICTS: Final = {"inconclusive": -1.0, "none": 0.0, "watch": 1.0, "act": 2.0}


@dataclass(frozen=True, slots=True)
class DriftState:
    """What the watch knows when a snapshot is published."""

    drifts: Sequence[Drift] = ()
    checked_at: float = 0.0
    """Unix seconds of the last round; 0 where there was none."""
    checks: int = 0
    failures: int = 0
    failing: bool = False
    """The last round failed."""
    delivered: int = 0
    undelivered: int = 0
    episodes: Sequence[tuple[str, str]] = ()
    """(model, version) of the episodes that go on."""


def collect_drift(state: DriftState) -> Iterator[Metric]:
    """Every series. Scores are of the features that could be judged."""
    owner = ["model", "version"]
    score = GaugeMetricFamily(
        "modelyard_drift_score",
        "PSI of live traffic against the reference, less its mean under no drift.",
        labels=[*owner, "feature", "kind"],
    )
    verdict = GaugeMetricFamily(
        "modelyard_drift_verdict", "-1 inconclusive, 0 none, 1 watch, 2 act.", labels=[*owner, "kind"]
    )
    window = GaugeMetricFamily("modelyard_drift_window_samples", "Samples in the current window.", labels=owner)
    reference = GaugeMetricFamily(
        "modelyard_drift_reference_samples", "Samples that the window is compared with.", labels=owner
    )
    episode = GaugeMetricFamily("modelyard_drift_episode", "1 while act-level drift goes on.", labels=owner)
    for one in state.drifts:
        labels = [one.model, one.version]
        for feature in one.features:
            if feature.effect is not None:
                score.add_metric([*labels, feature.feature, feature.kind], feature.effect)
        for kind, found in one.kinds.items():
            verdict.add_metric([*labels, kind], VERDICTS[found])
        window.add_metric(labels, one.current_n)
        reference.add_metric(labels, one.reference_n)
        episode.add_metric(labels, float((one.model, one.version) in state.episodes))
    yield from (score, verdict, window, reference, episode)
    yield from _rounds(state)


def _rounds(state: DriftState) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "modelyard_drift_last_check_timestamp_seconds", "When windows were last compared.", value=state.checked_at
    )
    yield GaugeMetricFamily(
        "modelyard_drift_check_failing", "1 where the last round of checks failed.", value=float(state.failing)
    )
    rounds = CounterMetricFamily("modelyard_drift_checks_total", "Rounds of checks, by outcome.", labels=["outcome"])
    rounds.add_metric(["completed"], state.checks)
    rounds.add_metric(["failed"], state.failures)
    events = CounterMetricFamily(
        "modelyard_drift_webhook_events_total",
        "Episodes that the webhook was told of, or was not after every attempt.",
        labels=["outcome"],
    )
    events.add_metric(["delivered"], state.delivered)
    events.add_metric(["failed"], state.undelivered)
    yield from (rounds, events)
