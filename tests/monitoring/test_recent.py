"""The last minute per version, with the time as an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitoring_records import record

from monitoring.recent import RecentWindow, quantile

NOW = 1_700_000_060.0


def test_rates_of_a_minute() -> None:
    window = RecentWindow(60.0)
    window.add(record(started_at=NOW - 50 + n, first_token_s=0.1 * (n + 1), last_token_s=10.0) for n in range(10))
    window.add([record(started_at=NOW - 30, outcome="failed", version="v2", streamed=False, completion_tokens=0)])
    window.add([record(started_at=NOW - 30, outcome="rejected", version="v2", streamed=False, completion_tokens=0)])
    window.add([record(started_at=NOW - 30, shadow_of="r", version="v2", first_token_s=9.0)])
    rates = window.rates(NOW)
    first, second = rates["assistant", "v1"], rates["assistant", "v2"]
    assert first.requests == 10
    assert first.requests_per_second == pytest.approx(10 / 60)
    assert first.tokens_per_second == pytest.approx(210 / 60)
    assert (first.ttft_p50_s, first.ttft_p95_s) == (pytest.approx(0.5), pytest.approx(1.0))
    assert first.itl_p50_s == pytest.approx((10 - 0.6) / 20, abs=0.01)
    assert first.error_rate == 0
    assert (second.requests, second.failures, second.error_rate) == (2, 1, 1.0)
    assert second.ttft_p50_s is None


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = RecentWindow(60.0)
    window.add([record(started_at=NOW - 100), record(started_at=NOW - 10)])
    assert window.rates(NOW)["assistant", "v1"].requests == 1
    assert len(window) == 1
    assert window.rates(NOW + 600) == {}


def test_a_window_that_was_watched_for_less_is_not_diluted() -> None:
    window = RecentWindow(60.0)
    window.add([record(started_at=NOW - 5, duration_s=1.0, completion_tokens=100)])
    assert window.rates(NOW, since=NOW - 10)["assistant", "v1"].tokens_per_second == pytest.approx(10.0)


def test_memory_is_bounded_and_the_rate_stays_honest() -> None:
    window = RecentWindow(60.0, records_max=100)
    window.add(record(started_at=NOW - 30 + n / 100, duration_s=0.0) for n in range(3000))
    assert len(window) == 100
    assert window.rates(NOW)["assistant", "v1"].requests_per_second == pytest.approx(100, rel=0.05)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_quantiles_are_values_that_occurred(values: list[float], q: float) -> None:
    found = quantile(values, q)
    assert found in values
    assert sum(value <= (found or 0) for value in values) >= q * len(values) - 1e-9
