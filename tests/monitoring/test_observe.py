"""What records count as: sums do not depend on batches, labels are bounded, values land in their buckets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitoring_records import record

from monitoring import observe as names
from monitoring.observe import BOUNDS, ENDPOINTS, OUTCOMES, intervals, observe, outcome_class
from registry.entries import CounterKey, HistogramKey, Interval
from registry.usage import RequestRecord

V1 = ("assistant", "v1")
records = st.lists(
    st.builds(
        record,
        version=st.sampled_from(["v1", "v2", ""]),
        assigned=st.sampled_from(["v1", "v2", ""]),
        endpoint=st.sampled_from(["/v1/chat/completions", "/v1/embeddings", "/wp-login.php", "/.env"]),
        outcome=st.sampled_from(["completed", "failed", "cancelled", "truncated", "rejected"]),
        status=st.sampled_from([0, 200, 400, 404, 503]),
        streamed=st.booleans(),
        attempts=st.integers(0, 3),
        prompt_tokens=st.integers(0, 5000),
        completion_tokens=st.integers(0, 500),
        usage_source=st.sampled_from(["engine", "counted", "none"]),
        events=st.integers(0, 30),
        # Sixty-fourths add up without rounding, so that sums can be compared exactly.
        first_token_s=st.integers(0, 640).map(lambda n: n / 64),
        last_token_s=st.integers(0, 640).map(lambda n: n / 64),
        dispatched_s=st.sampled_from([0.0, 0.015625]),
        overhead_s=st.just(0.00006103515625),
        duration_s=st.integers(0, 1000).map(lambda n: n / 64),
        shadow_of=st.sampled_from(["", "", "r"]),
        error=st.sampled_from(["", "queue_full", "made_up"]),
        source=st.sampled_from(["engine", "cache"]),
        queued_s=st.integers(0, 640).map(lambda n: n / 64),
        priority=st.sampled_from(["", "interactive", "batch"]),
    ),
    max_size=20,
)


@given(records, st.integers(0, 20))
def test_batches_make_no_difference(found: list[RequestRecord], cut: int) -> None:
    whole_counters, whole_histograms = observe(found)
    counters: Counter[CounterKey] = Counter()
    counts: dict[HistogramKey, Counter[int]] = {}
    sums: Counter[HistogramKey] = Counter()
    for part in (found[:cut], found[cut:]):
        some, more = observe(part)
        for key, value in some.items():
            counters[key] += value
        for key, delta in more.items():
            counts.setdefault(key, Counter()).update(dict(enumerate(delta.counts)))
            sums[key] += delta.sum
    assert dict(counters) == pytest.approx(whole_counters)
    assert {k: [c[i] for i in range(len(BOUNDS[k.bounds]) + 1)] for k, c in counts.items()} == {
        k: list(d.counts) for k, d in whole_histograms.items()
    }
    assert dict(sums) == pytest.approx({k: d.sum for k, d in whole_histograms.items()})


def test_a_degraded_answer_is_counted_and_timed_as_no_engines() -> None:
    made = [record(source="cache", replica="", dispatched_s=0.0, usage_source="none"), record()]
    counters, histograms = observe(made)
    assert counters[CounterKey(names.DEGRADED, ("assistant", "v1"))] == 1
    times = histograms[HistogramKey(names.DURATION, ("assistant", "v1", "/v1/chat/completions"), "request.1")]
    assert sum(times.counts) == 1


def test_streams_that_went_on_elsewhere_are_counted() -> None:
    counters, _ = observe([record(continuations=2), record(continuations=1), record()])
    assert counters[CounterKey(names.CONTINUATIONS, ("assistant", "v1"))] == 3


@given(records)
def test_every_record_is_one_request_and_labels_are_bounded(found: list[RequestRecord]) -> None:
    counters, histograms = observe(found)
    copies = sum(bool(one.shadow_of) for one in found)
    assert sum(value for key, value in counters.items() if key.name == names.REQUESTS) == len(found) - copies
    assert sum(value for key, value in counters.items() if key.name == names.SHADOW_REQUESTS) == copies
    for key in counters:
        assert len(key.labels) == len(names.COUNTER_LABELS[key.name])
        labels = dict(zip(names.COUNTER_LABELS[key.name], key.labels, strict=True))
        assert labels.get("endpoint", "other") in ENDPOINTS | {"other"}
        assert labels.get("outcome", "failed") in OUTCOMES
        assert labels.get("reason", "other") in names.REJECTION_REASONS | {"other"}
    assert all(value >= 0 for value in counters.values())
    assert all(len(delta.counts) == len(BOUNDS[key.bounds]) + 1 for key, delta in histograms.items())
    assert all(len(key.labels) == len(names.HISTOGRAM_LABELS[key.name]) for key in histograms)


def test_one_stream_in_detail() -> None:
    counters, histograms = observe([record()])
    assert counters == {
        CounterKey(names.REQUESTS, (*V1, "/v1/chat/completions", "completed")): 1,
        CounterKey(names.ATTEMPTS, V1): 1,
        CounterKey(names.PROMPT_TOKENS, (*V1, "engine")): 100,
        CounterKey(names.COMPLETION_TOKENS, (*V1, "engine")): 21,
        CounterKey(names.CACHED_TOKENS, V1): 20,
        CounterKey(names.PHASE_SECONDS, (*V1, "prefill")): pytest.approx(0.399),
        CounterKey(names.PHASE_TOKENS, (*V1, "prefill")): 80,
        CounterKey(names.PHASE_SECONDS, (*V1, "decode")): pytest.approx(2.0),
        CounterKey(names.PHASE_TOKENS, (*V1, "decode")): 20,
    }
    gaps = histograms[HistogramKey(names.ITL, V1, "token.1")]
    assert (gaps.count, gaps.sum) == (20, pytest.approx(2.0))
    assert histograms[HistogramKey(names.TTFT, V1, "first_token.1")].sum == 0.4
    assert histograms[HistogramKey(names.STREAM_GAP_MAX, V1, "token.1")].count == 1


def test_waits_are_counted_by_class_and_refusals_by_reason() -> None:
    refused = {"outcome": "rejected", "version": "", "attempts": 0, "dispatched_s": 0.0, "streamed": False}
    counters, histograms = observe(
        [
            record(),
            record(priority="interactive"),
            record(priority="interactive", queued_s=2.0),
            record(priority="batch", queued_s=7.0, outcome="cancelled", attempts=0),
            record(**refused, priority="batch", queued_s=30.0, error="queue_timeout"),
            record(**refused, priority="batch", error="queue_full"),
            record(**refused, model="", error="no_such_code"),
        ]
    )
    waits = {key.labels: (d.count, d.sum) for key, d in histograms.items() if key.name == names.QUEUE}
    assert waits == {("assistant", "interactive"): (2, 2.0), ("assistant", "batch"): (2, 37.0)}
    refusals = {key.labels: value for key, value in counters.items() if key.name == names.REJECTIONS}
    assert refusals == {("assistant", "queue_timeout"): 1, ("assistant", "queue_full"): 1, ("", "other"): 1}


def test_an_upper_bound_is_inclusive_as_prometheus_has_it() -> None:
    _, histograms = observe([record(first_token_s=0.5), record(first_token_s=0.51)])
    counts = histograms[HistogramKey(names.TTFT, V1, "first_token.1")].counts
    bounds = BOUNDS["first_token.1"]
    assert counts[bounds.index(0.5)] == 1
    assert counts[bounds.index(0.75)] == 1


def test_an_engines_own_4xx_is_no_success() -> None:
    assert outcome_class(record(status=400)) == "client_error"
    _, histograms = observe([record(status=400, streamed=False)])
    assert not [key for key in histograms if key.name == names.DURATION]


@given(records)
def test_copies_of_requests_change_nothing_that_counts_requests(found: list[RequestRecord]) -> None:
    counters, histograms = observe(found)
    only, measured = observe([one for one in found if not one.shadow_of])
    assert {key: value for key, value in counters.items() if "shadow" not in key.name} == only
    assert {key: value for key, value in histograms.items() if "shadow" not in key.name} == measured


def test_a_copy_in_detail() -> None:
    copy = record(shadow_of="r", version="v2", dispatched_s=0.5)
    counters, histograms = observe([copy, record(shadow_of="q", version="v2", outcome="rejected", usage_source="none")])
    v2 = ("assistant", "v2")
    assert counters[CounterKey(names.SHADOW_REQUESTS, (*v2, "completed"))] == 1
    assert counters[CounterKey(names.SHADOW_REQUESTS, (*v2, "rejected"))] == 1
    assert counters[CounterKey(names.SHADOW_PROMPT_TOKENS, (*v2, "engine"))] == 100
    assert counters[CounterKey(names.SHADOW_COMPLETION_TOKENS, (*v2, "engine"))] == 21
    assert counters[CounterKey(names.SHADOW_SECONDS, v2)] == pytest.approx(2.0 + 2.499)
    assert {key.name for key in histograms} == {names.SHADOW_DURATION, names.SHADOW_TTFT}


def test_a_copys_time_on_a_device_is_billed_as_a_shadows() -> None:
    (one,) = intervals([record(shadow_of="r", outcome="cancelled")], lambda replica: "cpu")
    assert (one.version, one.outcome) == ("assistant@v1", names.SHADOW)


def test_an_interval_runs_from_the_hand_over_to_the_end_and_only_on_our_devices() -> None:
    devices = {"assistant@v1/0": "cpu"}
    found = intervals(
        [
            record(),
            record(replica="hosted@v1/0"),
            record(outcome="rejected", dispatched_s=0.0),
            record(outcome="cancelled", dispatched_s=1.0, duration_s=1.25),
        ],
        devices.get,
    )
    base = 1_700_000_000.0
    assert found == [
        Interval("cpu", "assistant@v1", "completed", base + 0.001, base + 2.5),
        Interval("cpu", "assistant@v1", "cancelled", base + 1.0, base + 1.25),
    ]


def test_bounds_rise() -> None:
    assert all(list(bounds) == sorted(set(bounds)) for bounds in BOUNDS.values())
