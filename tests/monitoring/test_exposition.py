"""The forms of the exposition: negotiation, exemplars, protobuf as its own library reads it, exponential buckets."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from client_model import buckets, decode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monitoring_records import record
from monitoring_yard import HOUR, Yard, second
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.samples import Exemplar as ExemplarSample

from monitoring.exemplars import Exemplars, measures
from monitoring.exponential import BOUNDS_S, HIGHEST, LOWEST, ZERO_THRESHOLD, sparse
from monitoring.exposition import render
from monitoring.metrics import Metrics, Snapshot
from monitoring.observe import BOUNDS, DURATION, HISTOGRAM_BOUNDS, NATIVE, observe
from monitoring.protobuf_exposition import CONTENT_TYPE, NativeHistogramFamily, encode
from registry.entries import HistogramDelta, HistogramKey

PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
PROMETHEUS_2_42 = (
    f"{PROTOBUF},application/openmetrics-text;version=1.0.0;q=0.8,"
    "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""However busy the machine is."""
seconds = st.one_of(st.just(0.0), st.floats(1e-7, 9000.0), st.sampled_from(BOUNDS_S))


def dense(values: list[float]) -> HistogramDelta:
    counts = [0] * (len(BOUNDS_S) + 1)
    for value in values:
        counts[bisect_left(BOUNDS_S, value)] += 1
    return HistogramDelta(counts, math.fsum(values))


def registry_of(snapshot: Snapshot) -> CollectorRegistry:
    registry = CollectorRegistry()
    Metrics(registry, version="1").publish(snapshot)
    return registry


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", "application/openmetrics-text"),
        (PROMETHEUS_2_42, "application/vnd.google.protobuf"),
        (f"{PROTOBUF};q=0.2,application/openmetrics-text;version=1.0.0;q=0.8", "application/openmetrics-text"),
        ("application/vnd.google.protobuf;proto=another.Message;encoding=delimited", "text/plain"),
        ("application/vnd.google.protobuf;q=x", "text/plain"),
        (f"{PROTOBUF};q=0", "text/plain"),
    ],
)
def test_a_scraper_gets_the_form_that_it_asks_for(accept: str, kind: str) -> None:
    body, content_type = render(registry_of(Snapshot()), accept)
    assert content_type.partition(";")[0] == kind
    assert (body[-6:] == b"# EOF\n") == (kind == "application/openmetrics-text")
    assert (content_type == CONTENT_TYPE) == (b"# TYPE" not in body)


def test_the_buckets_are_those_of_schema_3() -> None:
    assert len(BOUNDS_S) == HIGHEST - LOWEST + 1 == 257
    assert BOUNDS_S[0] == ZERO_THRESHOLD == 2**-20
    assert BOUNDS_S[-LOWEST] == 1.0
    assert BOUNDS_S[-1] == 4096.0
    assert all(upper / lower == pytest.approx(2 ** (1 / 8)) for lower, upper in pairwise(BOUNDS_S))
    fractions = [
        *(0.5, 0.5452538663326288, 0.5946035575013605, 0.6484197773255048),
        *(0.7071067811865475, 0.7711054127039704, 0.8408964152537144, 0.9170040432046711),
    ]
    assert BOUNDS_S[-LOWEST - 8 : -LOWEST] == pytest.approx(fractions)


@patient
@given(st.lists(seconds, max_size=60))
def test_spans_hold_every_value_in_its_bucket(values: list[float]) -> None:
    total = dense(values)
    made = sparse(total, total)
    assert (made.count, made.sum) == (len(values), total.sum)
    family = NativeHistogramFamily("h", "A histogram.", labels=["name"])
    family.add_metric(["a"], [("+Inf", len(values))], total.sum)
    family.native["a",] = made
    (read,) = decode(encode([family]))
    found = read.metric[0].histogram
    assert (found.sample_count, found.schema, found.zero_threshold) == (len(values), 3, ZERO_THRESHOLD)
    assert found.zero_count == sum(value <= ZERO_THRESHOLD for value in values)
    expected: dict[int, int] = {}
    for value in values:
        if value > ZERO_THRESHOLD:
            index = min(LOWEST + bisect_left(BOUNDS_S, value), HIGHEST + 1)
            expected[index] = expected.get(index, 0) + 1
    assert buckets(found) == expected
    assert all(span.length for span in found.positive_span)


@patient
@given(st.lists(seconds, min_size=1, max_size=30), st.lists(seconds, max_size=30), st.lists(seconds, max_size=30))
def test_what_was_counted_before_native_histograms_cancels_in_every_rate(
    older: list[float], first: list[float], second: list[float]
) -> None:
    """A ledger that is older than its native counts: totals agree, and the difference of two scrapes is exact."""

    def scraped(younger: list[float]) -> Any:
        classic = HistogramDelta([len(older) + len(younger)], math.fsum(older) + math.fsum(younger))
        return sparse(classic, dense(younger) if younger else None)

    def counts(of: Any) -> dict[int, int]:
        family = NativeHistogramFamily("h", "A histogram.", labels=[])
        family.add_metric([], [("+Inf", of.count)], of.sum)
        family.native[()] = of
        return buckets(decode(encode([family]))[0].metric[0].histogram) | {LOWEST: of.zero_count}

    before, after = scraped(first), scraped(first + second)
    assert after.count == len(older) + len(first) + len(second)
    increase = {index: count - counts(before).get(index, 0) for index, count in counts(after).items()}
    assert {index: n for index, n in increase.items() if n} == {
        index: n for index, n in counts(sparse(dense(second), dense(second))).items() if n
    }


@patient
@given(st.text(max_size=30), st.lists(st.tuples(st.text(max_size=20), st.floats()), max_size=10), st.booleans())
def test_gauges_and_counters_as_the_library_reads_them(
    documentation: str, series: list[tuple[str, float]], counts: bool
) -> None:
    family = (CounterMetricFamily if counts else GaugeMetricFamily)("some", documentation, labels=["name"])
    for name, value in series:
        family.add_metric([name], value)
    read = decode(encode([family]))
    if not series:
        assert read == []
        return
    assert (read[0].name, read[0].help, read[0].type) == ("some_total" * counts or "some", documentation, 1 - counts)
    found = [(one.label[0].value, one.counter.value if counts else one.gauge.value) for one in read[0].metric]
    assert [name for name, _ in found] == [name for name, _ in series]
    assert all((math.isnan(a) and math.isnan(b)) or a == b for (_, a), (_, b) in zip(found, series, strict=True))


def test_other_kinds_become_untyped_and_exemplars_of_counters_stay() -> None:
    info = InfoMetricFamily("build", "What runs.", value={"version": "1"})
    counter = CounterMetricFamily("c", "A counter.", labels=[])
    counter.add_sample("c_total", {}, 3.0, exemplar=ExemplarSample({"trace_id": "t"}, 0.5, 12.25))
    first, second = decode(encode([info, counter]))
    assert (first.name, first.type, first.metric[0].untyped.value) == ("build_info", 3, 1)
    exemplar = second.metric[0].counter.exemplar
    assert (exemplar.label[0].value, exemplar.value) == ("t", 0.5)
    assert (exemplar.timestamp.seconds, exemplar.timestamp.nanos) == (12, 250_000_000)


records = st.builds(
    record,
    started_at=st.floats(1e9, 2e9),
    outcome=st.sampled_from(["completed", "failed", "cancelled", "truncated", "rejected"]),
    status=st.sampled_from([200, 404, 502]),
    endpoint=st.sampled_from(["/v1/chat/completions", "/strange"]),
    streamed=st.booleans(),
    attempts=st.integers(0, 2),
    dispatched_s=st.floats(0, 1),
    first_token_s=st.floats(0, 2),
    last_token_s=st.floats(0, 4),
    duration_s=st.floats(0, 1000),
    events=st.integers(0, 5),
    queued_s=st.floats(0, 5),
    priority=st.sampled_from(["", "batch"]),
    shadow_of=st.sampled_from(["", "r"]),
    source=st.sampled_from(["engine", "cache"]),
    trace_id=st.just("4bf92f3577b34da6a3ce929d0e0e4736"),
)


@patient
@given(records)
def test_exemplars_measure_what_is_counted(one: Any) -> None:
    _, counted = observe([one])
    expected = {key: delta for key, delta in counted.items() if key.bounds != NATIVE}
    found = list(measures(one))
    assert {(name, labels) for name, labels, _ in found} == {(key.name, key.labels) for key in expected}
    for name, owner, value in found:
        bounds = HISTOGRAM_BOUNDS[name]
        assert expected[HistogramKey(name, owner, bounds)].counts[bisect_left(BOUNDS[bounds], value)] > 0


@patient
@given(st.lists(records, max_size=20))
def test_native_counts_agree_with_classic_ones(many: list[Any]) -> None:
    _, counted = observe(many)
    for key, delta in counted.items():
        other = counted[key._replace(bounds=HISTOGRAM_BOUNDS[key.name] if key.bounds == NATIVE else NATIVE)]
        assert delta.count == other.count
        assert delta.sum == other.sum


def test_exemplars_name_the_last_traced_request_of_each_bucket() -> None:
    kept = Exemplars()
    many = [
        record(started_at=1000.0 + n, duration_s=seconds, trace_id=trace)
        for n, (seconds, trace) in enumerate([(0.3, "a" * 32), (7.0, "b" * 32), (0.4, "c" * 32), (0.45, "")])
    ]
    kept.add(many)
    kept.add([])
    _, histograms = observe(many)
    body, _ = render(
        registry_of(Snapshot(histograms=histograms, exemplars=kept.latest())),
        "application/openmetrics-text;version=1.0.0",
    )
    family = next(one for one in openmetrics(body.decode()) if one.name == DURATION)
    found = {
        sample.labels["le"]: (
            sample.exemplar.labels["trace_id"],
            sample.exemplar.value,
            float(sample.exemplar.timestamp),
        )
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert found == {"0.5": ("c" * 32, 0.4, 1002.4), "10.0": ("b" * 32, 7.0, 1008.0)}
    assert b"trace_id" not in render(registry_of(Snapshot(histograms=histograms, exemplars=kept.latest())), "")[0]


def test_a_native_histogram_has_the_newest_exemplar_alone() -> None:
    """Prometheus takes the exemplars of one series in the order of time, and a native histogram is one series."""
    kept = Exemplars()
    many = [record(started_at=1000.0 - s, duration_s=s, trace_id=f"{int(s * 10):032x}") for s in (7.0, 0.3, 1.0)]
    kept.add([*many, record(started_at=2000.0, duration_s=30.0, trace_id="f" * 32)])
    _, histograms = observe(many)
    snapshot = Snapshot(histograms=histograms, exemplars=kept.latest())
    family = next(one for one in decode(render(registry_of(snapshot), PROTOBUF)[0]) if one.name == DURATION)
    (metric,) = family.metric
    seen = [bucket.exemplar for bucket in metric.histogram.bucket if bucket.HasField("exemplar")]
    assert [one.label[0].value for one in seen] == ["f" * 32]
    assert sum(buckets(metric.histogram).values()) == metric.histogram.sample_count == 3


def test_exemplars_are_bounded() -> None:
    kept = Exemplars(series_max=3)
    kept.add([record(model=f"m{n}", trace_id="a" * 32) for n in range(10)])
    assert len(kept.latest()) == 3


def test_native_counts_go_on_after_a_restart(tmp_path: Path) -> None:
    """They are in the ledger, in the transaction that counts the classic buckets."""
    totals = []
    for start in (HOUR, HOUR + 10):
        with Yard(tmp_path) as yard:
            durations = [one.duration_s for one in second(start)[0]]
            yard.ingest([record(started_at=start, duration_s=one) for one in durations], watermark=start + 1.0)
            body, _ = render(registry_of(Snapshot(histograms=yard.ledger.histograms())), PROTOBUF)
        (metric,) = next(one for one in decode(body) if one.name == DURATION).metric
        totals.append((metric.histogram.zero_count, buckets(metric.histogram)))
    first, later = totals
    assert later == (2 * first[0], {index: 2 * count for index, count in first[1].items()})
    assert sum(first[1].values()) + first[0] == len(durations)
