"""The second wall against too many series: a family is cut at its cap, at the same place, and that is counted."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

from monitoring.metrics import Metrics, Snapshot
from monitoring.series import SeriesCap


def gauge(names: list[str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily("g", "A gauge.", labels=["name"])
    for name in names:
        family.add_metric([name], 1)
    return family


def shown(cap: SeriesCap, names: list[str]) -> list[str]:
    return [sample.labels["name"] for sample in cap.limit(gauge(names)).samples]


def test_those_that_were_shown_stay_whatever_comes() -> None:
    cap = SeriesCap(3)
    assert shown(cap, ["b", "d", "e", "f"]) == ["b", "d", "e"]
    assert shown(cap, ["a", "b", "c", "d", "e", "f"]) == ["b", "d", "e"]
    assert cap.dropped == 3
    assert shown(cap, ["a", "b", "c", "e", "f"]) == ["a", "b", "e"], "a place that came free is given away"
    assert cap.dropped == 3


def test_a_histogram_counts_as_one_and_is_cut_as_one() -> None:
    family = HistogramMetricFamily("h", "A histogram.", labels=["name"])
    for name in ("a", "b", "c"):
        family.add_metric([name], [("1.0", 1), ("+Inf", 2)], 3.0)
    samples = SeriesCap(2).limit(family).samples
    assert {sample.labels["name"] for sample in samples} == {"a", "b"}
    assert len(samples) == 8
    assert SeriesCap(3).limit(family) is family


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(0, 30).map(str), unique=True), max_size=8), st.integers(1, 10))
def test_never_more_than_the_cap_and_a_count_that_only_rises(rounds: list[list[str]], family_max: int) -> None:
    cap = SeriesCap(family_max)
    before = 0
    for names in rounds:
        found = shown(cap, names)
        assert len(found) == min(len(names), family_max)
        assert cap.dropped >= before
        before = cap.dropped


def test_the_exposition_says_how_many_series_it_has() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, version="1", family_max=10)
    metrics.publish(Snapshot(revisions={f"m{number}": 1 for number in range(25)}))
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert registry.get_sample_value("modelyard_metrics_series") == len(samples)
    dropped = (25 - 10) + (3 * 25 - 10)  # of the revisions, and of the states that each route may be in
    assert registry.get_sample_value("modelyard_metrics_series_dropped_total") == dropped
    assert len([one for one in samples if one.name == "modelyard_route_revision"]) == 10
