"""Arms side by side: what counts as whose, and the intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitoring_records import record

from monitoring.arms import arms, wilson


def test_requests_count_for_the_arm_that_they_were_assigned_whoever_answered() -> None:
    found = arms(
        [
            record(sticky=1),
            record(sticky=1, version="v2"),
            record(outcome="failed", status=502, streamed=False, sticky=2),
            record(outcome="rejected", status=429),
            record(assigned="v2", version="v2"),
            record(assigned="v2", version="v2", pinned=True),
            record(assigned="v2", version="v2", shadow_of="r"),
            record(started_at=1.0),
            record(assigned="", version=""),
        ],
        since=2.0,
    )
    assert sorted(found) == ["v1", "v2"]
    one = found["v1"]
    assert (one.requests, one.served, one.failures, one.fallbacks, one.units) == (4, 3, 1, 1, 2)
    assert one.error_rate == pytest.approx(1 / 3)
    assert one.error_low is not None
    assert one.error_high is not None
    assert one.error_low < 1 / 3 < one.error_high
    assert one.tokens_per_s == pytest.approx(10.0)
    assert found["v2"].requests == 1


def test_an_arm_without_streams_has_no_first_token() -> None:
    one = arms([record(streamed=False, first_token_s=0.0)])["v1"]
    assert (one.streams, one.ttft_p50_s, one.tokens_per_s, one.duration_p50_s) == (0, None, None, 2.5)


def test_wilson_agrees_with_the_published_example() -> None:
    low, high = wilson(1, 10) or (0.0, 0.0)  # Newcombe (1998): 0.0179 to 0.4042
    assert (round(low, 4), round(high, 4)) == (0.0179, 0.4042)
    assert wilson(0, 0) is None


@given(st.integers(1, 500), st.data())
def test_an_interval_holds_its_share_and_lies_within_bounds(of: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, of))
    low, high = wilson(hits, of) or (1.0, 0.0)
    assert (low == 0.0, high == 1.0) == (hits == 0, hits == of), "the ends are exact"
    assert 0 <= low <= hits / of + 1e-12
    assert hits / of - 1e-12 <= high <= 1
