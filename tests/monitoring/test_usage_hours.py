"""Usage by hour: what counts as good, how many keys are told apart, and that tokens agree with the counters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitoring_records import record

from monitoring.observe import COMPLETION_TOKENS, PROMPT_TOKENS, REQUESTS, observe
from monitoring.usage import FOLDED, SLO_GOOD, SLO_REQUESTS, Labels, Slo, hour_of, usage
from registry.entries import OTHER, CounterKey
from registry.usage import RequestRecord

HOUR = 1_700_002_800
FAST = Slo(first_token_s=0.5, total_s=3.0)


class Written:
    """Labels of hours, as a ledger holds them."""

    def __init__(self, *labels: tuple[str, str]) -> None:
        self.labels = set(labels)
        self.asked: list[int] = []

    def labels_of(self, hour: int) -> set[tuple[str, str]]:
        self.asked.append(hour)
        return self.labels


def plain(records: list[RequestRecord], slos: dict[str, Slo] | None = None):
    return usage(records, [(one.key_id, one.segment) for one in records], lambda replica: "cpu", slos or {})


@pytest.mark.parametrize(
    ("changes", "judged", "good"),
    [
        ({}, True, True),
        ({"first_token_s": 0.6}, True, False),
        ({"duration_s": 3.1}, True, False),
        ({"streamed": False, "first_token_s": 0.0}, True, True),
        ({"streamed": False, "first_token_s": 0.0, "duration_s": 4.0}, True, False),
        ({"status": 404}, False, False),
        ({"outcome": "failed", "status": 502}, True, False),
        ({"outcome": "truncated"}, True, False),
        ({"outcome": "cancelled"}, False, False),
        ({"outcome": "cancelled", "first_token_s": 0.0, "duration_s": 0.6}, True, False),
        ({"outcome": "rejected", "error": "queue_full", "version": "", "dispatched_s": 0.0}, True, False),
        ({"outcome": "rejected", "error": "rate_limit_exceeded", "version": "", "dispatched_s": 0.0}, False, False),
        ({"shadow_of": "r"}, False, False),
    ],
)
def test_a_good_request_is_completed_within_the_limits(changes: dict, judged: bool, good: bool) -> None:
    one = record(**changes)
    rows, counters = plain([one], {"assistant": FAST})
    owner = (one.model, one.version)
    assert counters.get(CounterKey(SLO_REQUESTS, owner), 0) == judged
    assert counters.get(CounterKey(SLO_GOOD, owner), 0) == good
    assert [(row.judged, row.good) for row in rows] == ([(judged, good)] if one.version else [])
    assert plain([one])[1] == {}, "without a service level nothing is judged"


def test_rows_are_told_apart_by_hour_device_outcome_key_and_segment() -> None:
    at = HOUR + 3590.0
    records = [
        record(started_at=at, duration_s=2.5, key_id="k1"),
        record(started_at=at, duration_s=12.5, key_id="k1"),
        record(started_at=at, duration_s=2.5, key_id="k1", segment="beta"),
        record(started_at=at, duration_s=2.5, key_id="k1", source="cache"),
        record(started_at=at, duration_s=2.5, key_id="k1", outcome="failed", status=502),
    ]
    rows, _ = plain(records)
    assert [(row.hour, row.device, row.outcome, row.segment, row.requests) for row in rows] == [
        (HOUR, "cpu", "completed", "", 1),
        (HOUR + 3600, "cpu", "completed", "", 1),
        (HOUR, "cpu", "completed", "beta", 1),
        (HOUR, "", "completed", "", 1),
        (HOUR, "cpu", "failed", "", 1),
    ]
    assert {row.key_id for row in rows} == {"k1"}
    assert (rows[0].prompt_tokens, rows[0].cached_tokens, rows[0].completion_tokens) == (100, 20, 21)
    assert (rows[0].prefill_tokens, rows[0].decode_tokens) == (80, 20)
    assert (rows[0].prefill_s, rows[0].decode_s) == (pytest.approx(0.399), pytest.approx(2.0))


some_records = st.lists(
    st.builds(
        record,
        started_at=st.floats(HOUR, HOUR + 9000),
        version=st.sampled_from(["v1", "v2"]),
        outcome=st.sampled_from(["completed", "failed", "cancelled", "truncated"]),
        status=st.sampled_from([200, 404]),
        usage_source=st.sampled_from(["engine", "counted", "none"]),
        key_id=st.sampled_from(["", "k1", "k2"]),
        shadow_of=st.sampled_from(["", "", "r"]),
        completion_tokens=st.integers(0, 1000),
    ),
    max_size=20,
)


@given(some_records)
def test_usage_says_what_the_counters_say(records: list[RequestRecord]) -> None:
    rows, _ = plain(records)
    counters, _ = observe(records)
    own = [row for row in rows if row.outcome != "shadow"]

    def counted(name: str) -> float:
        return sum(value for key, value in counters.items() if key.name == name)

    assert sum(row.requests for row in own) == counted(REQUESTS)
    assert sum(row.prompt_tokens for row in own) == counted(PROMPT_TOKENS)
    assert sum(row.completion_tokens for row in own) == counted(COMPLETION_TOKENS)


def test_an_hour_tells_so_many_keys_apart_and_counts_the_rest() -> None:
    records = [record(started_at=HOUR + n, key_id=f"k{n % 5}", segment="beta") for n in range(10)]
    labels = Labels(labels_max=3)
    nothing = Written()
    found = labels.of(records, nothing)
    assert [key for key, _ in found[:5]] == ["k0", "k1", "k2", OTHER, OTHER]
    assert found[:5] == found[5:]
    assert {segment for _, segment in found} == {"beta"}
    assert nothing.asked == [HOUR], "the ledger is asked once for an hour"
    assert labels.of([record(started_at=HOUR, key_id="")], nothing) == [("", "")]
    assert labels.of([record(started_at=HOUR + 3600, key_id="k4")], nothing) == [("k4", "")], "each hour anew"
    _, counters = usage(records, found, lambda replica: "cpu", {})
    assert counters == {CounterKey(FOLDED): 4}


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30), st.integers(0, 30))
def test_a_restart_makes_no_difference_to_which_keys_are_told_apart(keys: list[str], cut: int) -> None:
    records = [record(started_at=HOUR, key_id=key) for key in keys]
    whole = Labels(labels_max=4).of(records, Written())
    first = Labels(labels_max=4).of(records[:cut], Written())
    rest = Labels(labels_max=4).of(records[cut:], Written(*first))
    assert first + rest == whole


def test_old_hours_are_forgotten() -> None:
    labels, ledger = Labels(), Written()
    for hour in range(10):
        labels.of([record(started_at=HOUR + 3600.0 * hour, key_id="k")], ledger)
    labels.of([record(started_at=HOUR + 3600.0 * 9, key_id="k"), record(started_at=HOUR, key_id="k")], ledger)
    assert ledger.asked == [*(HOUR + 3600 * hour for hour in range(10)), HOUR]
    assert hour_of(record(started_at=HOUR + 3599.0, duration_s=2.0)) == HOUR + 3600
