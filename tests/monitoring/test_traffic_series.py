"""Traffic in steps: counted once, whole, and bounded."""

import pytest
from monitoring_records import record

from monitoring.traffic_series import KEPT_S, STEP_S, VERSIONS_MAX, TrafficSeries

BEGAN = 1_700_002_800.0


def test_requests_are_counted_in_the_step_in_which_they_ended() -> None:
    series = TrafficSeries()
    series.add(
        [
            record(started_at=BEGAN + 1, duration_s=0.5, first_token_s=0.1, completion_tokens=7, version="v1"),
            record(started_at=BEGAN + 9.8, duration_s=0.5, first_token_s=0.2, completion_tokens=5, version="v1"),
            record(started_at=BEGAN + 1, duration_s=0.5, outcome="failed", streamed=False, first_token_s=0.0),
            record(started_at=BEGAN + 1, duration_s=0.5, outcome="rejected", version=""),
            record(started_at=BEGAN + 1, duration_s=0.5, shadow_of="r1", version="v2"),
        ]
    )
    found = series.read(BEGAN + 24, 0.5)
    assert found.at == (BEGAN, BEGAN + 10, BEGAN + 20)
    assert set(found.versions) == {"assistant@v1"}
    one = found.versions["assistant@v1"]
    assert (one.requests, one.failures) == ((0, 2, 1), (0, 1, 0))
    assert one.tokens[1:] == (7 + record().completion_tokens, 5)
    assert one.ttft_p50_s[0] is None
    assert one.ttft_p50_s[1] == pytest.approx(0.1, rel=0.05)
    assert one.ttft_p95_s[2] == pytest.approx(0.2, rel=0.05)


def test_a_step_that_is_not_over_is_not_shown() -> None:
    series = TrafficSeries()
    series.add([record(started_at=BEGAN + 1, duration_s=0.5)])
    assert series.read(BEGAN + 11, 1).versions == {}, "records of its last second may still come"
    assert series.read(BEGAN + 13.1, 1).versions


def test_quantiles_are_within_the_histograms_bounds() -> None:
    series = TrafficSeries()
    series.add([record(started_at=BEGAN, duration_s=5, first_token_s=0.01 * n) for n in range(1, 101)])
    (one,) = series.read(BEGAN + 15, 1).versions.values()
    assert one.ttft_p50_s[-1] == pytest.approx(0.5, rel=0.05)
    assert one.ttft_p95_s[-1] == pytest.approx(0.95, rel=0.05)


def test_it_does_not_grow() -> None:
    series = TrafficSeries()
    series.add([record(started_at=BEGAN, duration_s=0, version=f"v{n}") for n in range(VERSIONS_MAX + 5)])
    assert len(series.read(BEGAN + 15, 1).versions) == VERSIONS_MAX
    for step in range(0, 3 * KEPT_S, STEP_S):
        series.add([record(started_at=BEGAN + step, duration_s=0)])
    assert len(series._steps) <= KEPT_S // STEP_S + 1
