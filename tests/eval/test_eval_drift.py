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


def test_equal_texts_share_all_bigrams_and_no_permutation_is_closer() -> None:
    texts = [Out(f"c{i}", f"answer number {i} of twenty") for i in range(20)]
    found = measure(texts, texts)
    assert found is not None
    assert found.mmd is not None
    assert (found.ngram_overlap.value, found.mmd.test.p, found.mmd.pairs) == (1.0, 1.0, 20)


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_overlap_is_a_share_and_symmetric(left: str, right: str) -> None:
    found = drift.dice(left, right)
    assert 0 <= found <= 1
    assert found == drift.dice(right, left)
    assert drift.dice(left, left) == 1


def test_the_overlap_of_known_texts() -> None:
    assert drift.dice("a b c d", "a b x d") == pytest.approx(2 * 1 / 6)  # of ab bc cd and ab bx xd
    assert drift.dice("one", "one two") == 0


def test_json_and_languages_are_counted_on_both_sides() -> None:
    left = [Out("a", '{"n": 1}'), Out("b", "The answer is a fox"), Out("c", "[1, 2]"), Out("d", "3")]
    right = [Out("a", '{"n": 1'), Out("b", "La respuesta es un zorro"), Out("c", "[1, 2]"), Out("d", "3")]
    found = drift.measure(
        left,
        right,
        embed=FALLBACK.embed,
        embed_name=FALLBACK.name,
        semantic=False,
        alpha=0.05,
        rng=np.random.default_rng(0),
        language=lambda text: {"T": "en", "L": "es"}.get(text[0], ""),
    )
    assert found is not None
    assert [one.value for one in found.json_valid] == [0.5, 0.25]
    assert found.same_language is not None
    assert found.same_language.value == 0
    assert found.languages == ({"none": 3, "en": 1}, {"none": 3, "es": 1})


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.01, 0.10), (0.6, 0.8, 1.0)])
def test_mmd_rejects_at_its_level_without_a_difference_and_sees_one(shift: float, low: float, high: float) -> None:
    """200 experiments of 40 pairs that belong together: at α .05, 5% give or take; with a shift, nearly all."""
    rng = np.random.default_rng(1)
    rejected = 0
    repeats = 200 if shift == 0 else 20
    for _ in range(repeats):
        common = rng.normal(size=(40, 3))
        left, right = common + rng.normal(size=(40, 3)) / 2, common + rng.normal(size=(40, 3)) / 2 + shift
        found = drift._discrepancy(left, right, rng)
        assert found is not None
        rejected += found.test.p <= 0.05
    assert low <= rejected / repeats <= high


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
