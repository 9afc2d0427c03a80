"""Output drift and speed: measures of two runs' texts and times."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import drift, performance
from eval.embeddings import FALLBACK


@dataclass
class Out:
    case: str
    output: str
    repeat: int = 0
    error: str = ""
    finish_reason: str = "stop"
    completion_tokens: int = 3


def measure(left: list[Out], right: list[Out]) -> drift.Drift | None:
    return drift.measure(
        left,
        right,
        embed=FALLBACK.embed,
        embed_name=FALLBACK.name,
        semantic=False,
        alpha=0.05,
        rng=np.random.default_rng(0),
    )


def test_a_run_against_itself_has_no_drift() -> None:
    texts = [Out(f"c{i}", f"answer number {i}") for i in range(20)]
    found = measure(texts, texts)
    assert found is not None
    assert (found.exact_match.value, found.length_ratio.value, found.distance.value) == (1.0, 1.0, 0.0)
    assert found.furthest == ()
    assert not found.semantic


def test_changes_are_measured_and_the_furthest_named() -> None:
    left = [Out(f"c{i}", "the quick brown fox") for i in range(10)]
    right = [dataclasses.replace(one) for one in left]
    right[3].output = "I'm sorry, I cannot answer that question."
    right[3].finish_reason = "length"
    right[7].error = "400: no"
    found = measure(left, [*right, Out("other", "unpaired")])
    assert found is not None
    assert found.n == 9
    assert found.exact_match.value == pytest.approx(8 / 9)
    assert found.furthest[0][0] == "c3"
    assert found.length_ratio.value > 1
    assert (found.refusals[0].value, found.refusals[1].value) == (0.0, pytest.approx(1 / 9))
    assert found.finish_reasons[1] == {"stop": 8, "length": 1}


def test_runs_without_a_common_sample_have_no_drift_to_state() -> None:
    assert measure([Out("a", "x")], [Out("b", "x")]) is None


def test_empty_outputs_are_no_crash() -> None:
    found = measure([Out("a", "")], [Out("a", "text")])
    assert found is not None
    assert np.isnan(found.length_ratio.value)


spans = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)).map(lambda x: (x[0], x[0] + x[1])), max_size=20)


@given(spans)
def test_busy_time_is_the_union(drawn: list[tuple[float, float]]) -> None:
    busy = performance.busy_seconds(drawn)
    longest = max((stop - start for start, stop in drawn), default=0.0)
    assert longest - 1e-9 <= busy <= sum(stop - start for start, stop in drawn) + 1e-9
    grid = np.arange(0, 111, 0.25)
    covered = sum(any(start <= t and t + 0.25 <= stop for start, stop in drawn) for t in grid) * 0.25
    assert covered <= busy + 1e-6


def test_busy_time_of_known_spans() -> None:
    assert performance.busy_seconds([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == pytest.approx(4.0)
