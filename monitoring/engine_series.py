"""The engines' own metrics as Modelyard shows them.

Owns: the families `modelyard_engine_*` that come from engines' own metrics. Never: reading or asking (engine_metrics,
engine_scrape).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.engine_metrics import COUNTERS, GAUGES
from monitoring.engine_scrape import OUTCOMES, EngineMetrics

LABELS = ("model", "version", "replica")


def collect_engine_metrics(engines: Sequence[EngineMetrics]) -> Iterator[Metric]:
    """One series per reading and replica; what an engine does not give has none, and is named in `reading_absent`."""
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
        **{name: GaugeMetricFamily(f"modelyard_engine_{name}", text, labels=LABELS) for name, text in GAUGES.items()},
        **{
            name: CounterMetricFamily(f"modelyard_engine_{name}", text, labels=LABELS)
            for name, text in COUNTERS.items()
        },
    }
    absent = GaugeMetricFamily(
        "modelyard_engine_reading_absent", "1 for a value that the engine does not give.", labels=[*LABELS, "reading"]
    )
    scrapes = CounterMetricFamily(
        "modelyard_engine_scrapes",
        "Times that the engine was asked for its own metrics, by what came of it.",
        labels=[*LABELS, "outcome"],
    )
    for engine in engines:
        who = [engine.target.model, engine.target.version, engine.target.replica]
        if engine.readings is not None:
            for name, value in engine.readings.values.items():
                families[name].add_metric(who, value)
            for name in engine.readings.absent:
                absent.add_metric([*who, name], 1)
        for outcome in OUTCOMES:
            scrapes.add_metric([*who, outcome], engine.scrapes[outcome])
    yield from families.values()
    yield from (absent, scrapes)
