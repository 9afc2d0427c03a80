"""Joining two runs, choosing the formula, and the verdict."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.compare import Answer, Pair, Result, Unpaired, analyse, compare, join, samples_to_decide
from eval.verdict import Verdict, combine, decide


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def answer(case: str, score: float | None, repeat: int = 0, **changes: str) -> Answer:
    return dataclasses.replace(Answer(case, repeat, "exact", score, "p", "t"), **changes)


def pairs(scores: list[tuple[float, float]], clusters: list[str] | None = None) -> list[Pair]:
    names = clusters or [""] * len(scores)
    return [Pair(f"c{i:04d}", "exact", "", c, a, b, 1) for i, ((a, b), c) in enumerate(zip(scores, names, strict=True))]


def binary(both: int, gains: int, losses: int, neither: int) -> list[Pair]:
    return pairs([(1.0, 1.0)] * both + [(0.0, 1.0)] * gains + [(1.0, 0.0)] * losses + [(0.0, 0.0)] * neither)


def test_the_join_reports_what_it_cannot_pair() -> None:
    left = [answer("a", 1.0), answer("b", 1.0), answer("c", None), answer("d", 0.0), answer("e", 0.0)]
    right = [
        answer("a", 0.0),
        answer("c", 1.0),
        answer("d", 1.0, prompt_digest="q"),
        answer("e", 1.0, target_digest="u"),
        answer("f", 1.0),
    ]
    found, missing = join(left, right)
    assert [(pair.case, pair.difference) for pair in found] == [("a", -1.0)]
    assert {one.case: one.reason for one in missing} == {
        "b": "missing in the candidate",
        "c": "failed in the baseline",
        "d": "the prompts differ",
        "e": "the targets differ",
        "f": "missing in the baseline",
    }


def test_repeats_are_averaged_within_a_case() -> None:
    left = [answer("a", 1.0, repeat) for repeat in range(4)]
    right = [answer("a", float(repeat == 0), repeat) for repeat in range(4)]
    (pair,), missing = join(left, right)
    assert (pair.baseline, pair.candidate, pair.repeats, missing) == (1.0, 0.25, 4, [])


def test_the_formula_follows_the_data() -> None:
    assert compare("x", binary(40, 8, 12, 40), alpha=0.05, rng=rng()).interval.method == "Tango score"
    assert compare("x", binary(40, 8, 12, 40), alpha=0.05, rng=rng()).test == "McNemar exact"
    assert compare("x", binary(40, 20, 12, 40), alpha=0.05, rng=rng()).test == "McNemar mid-p"
    graded = pairs([(0.5, 0.25 + i / 50) for i in range(30)])
    found = compare("x", graded, alpha=0.05, rng=rng())
    assert (found.interval.method, found.test) == ("BCa bootstrap", "paired permutation")
    few = pairs([(float(i % 3 == 0), float(i % 2)) for i in range(60)], [f"d{i // 4}" for i in range(60)])
    found = compare("x", few, alpha=0.05, rng=rng())
    assert (found.clusters, found.interval.method, found.df) == (15, "cluster bootstrap-t", 14)
    many = pairs([(float(i % 3 == 0), float(i % 2)) for i in range(120)], [f"d{i // 2}" for i in range(120)])
    assert compare("x", many, alpha=0.05, rng=rng()).interval.method == "clustered t"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40), st.booleans())
def test_any_scores_give_a_comparison_within_range(scores: list[tuple[float, float]], clustered: bool) -> None:
    names = [f"d{i // 3}" for i in range(len(scores))] if clustered else None
    found = compare("x", pairs(scores, names), alpha=0.05, rng=rng())
    assert -1 <= found.interval.low <= found.interval.high <= 1
    assert 0 <= found.p <= 1
    assert 0 <= found.baseline.interval.low <= found.baseline.interval.high <= 1


@given(
    st.floats(-1, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.02, 0.05, 0.2]),
)
def test_the_rule_of_the_verdict(low: float, width: float, p: float, margin: float) -> None:
    high = low + width
    kind = decide(low=low, high=high, p=p, alpha=0.05, margin=margin, n=100, needed=None).kind
    assert (kind == "better") == (low > 0 and p <= 0.05)
    assert (kind == "non-inferior") == (low > -margin and kind != "better")
    assert (kind == "worse") == (high < 0 and p <= 0.05 and low <= -margin)


def verdict(found: list[Pair], margin: float = 0.05) -> Verdict:
    return analyse(found, [], gates=["overall"], margin=margin, alpha=0.05, rng=rng()).verdict


def test_verdicts() -> None:
    assert verdict(binary(50, 20, 1, 37)).kind == "better"
    assert verdict(binary(50, 1, 20, 37)).kind == "worse"
    assert verdict(binary(600, 10, 10, 380)).kind == "non-inferior"
    assert verdict(binary(60, 0, 0, 48)).kind == "non-inferior"
    assert verdict(binary(3, 0, 0, 2)).kind == "inconclusive", "five equal answers prove nothing"
    # 2.5 points lower for certain, and by less than the margin: that is what a margin is for.
    lower = verdict(binary(3000, 20, 120, 860), margin=0.05)
    assert lower.kind == "non-inferior"
    assert "measurably lower" in lower.text


def test_inconclusive_says_how_many_more_and_that_many_decide() -> None:
    found = verdict(binary(50, 10, 12, 36))
    assert found.kind == "inconclusive"
    assert found.more_samples is not None
    share = 1 + found.more_samples / 108
    grown = binary(round(50 * share), round(10 * share), round(12 * share), round(36 * share))
    assert verdict(grown).kind != "inconclusive"


def test_samples_to_decide_takes_the_nearest_decision() -> None:
    found = compare("x", binary(50, 10, 12, 36), alpha=0.05, rng=rng())
    near, far = (samples_to_decide(found, alpha=0.05, margin=margin) for margin in (0.10, 0.03))
    assert near is not None
    assert far is not None
    assert near < far


def test_gates_are_holm_adjusted_and_all_must_pass() -> None:
    good = [dataclasses.replace(pair, scorer="a") for pair in binary(400, 5, 5, 300)]
    bad = [dataclasses.replace(pair, scorer="b", case=f"b{pair.case}") for pair in binary(40, 2, 16, 40)]
    result = analyse([*good, *bad], [], gates=["a", "b"], margin=0.05, alpha=0.05, rng=rng())
    assert result.verdict.kind == "worse"
    assert "worse at b" in result.verdict.text
    by_name = {gate.comparison.name: gate for gate in result.gates}
    assert by_name["b"].p_adjusted == pytest.approx(2 * by_name["b"].comparison.p)


def test_slices_are_adjusted_for_their_number() -> None:
    """Nineteen slices of noise and one true loss: only its own stays small. Against statsmodels."""
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    found = [
        dataclasses.replace(pair, slice=f"s{number:02d}", case=f"{number}-{pair.case}")
        for number in range(20)
        for pair in (binary(20, 0, 20, 20) if number == 0 else binary(20, 6 + number % 3, 6, 20))
    ]
    slices = analyse(found, [], gates=["overall"], margin=0.05, alpha=0.05, rng=rng()).slices
    expected = multitest.multipletests([one.p for one in slices], method="fdr_bh")[1]
    assert [one.q for one in slices] == pytest.approx(list(expected))
    assert [one.name for one in slices if one.q is not None and one.q <= 0.05] == ["s00"]


def test_combining_gates() -> None:
    passed, better = Verdict("non-inferior", ""), Verdict("better", "")
    unsure, unknown = Verdict("inconclusive", "", 40), Verdict("inconclusive", "", None)
    assert combine([("a", passed), ("b", better)]).kind == "better"
    assert combine([("a", passed), ("b", passed)]).kind == "non-inferior"
    assert combine([("a", passed), ("b", unsure)]).more_samples == 40
    assert combine([("a", unknown), ("b", unsure)]).more_samples is None
    assert combine([("a", unsure), ("b", Verdict("worse", ""))]).kind == "worse"


def test_a_gate_without_a_pair_passes_nothing() -> None:
    good = [dataclasses.replace(pair, scorer="a") for pair in binary(400, 5, 5, 300)]
    result = analyse(good, [], gates=["a", "b"], margin=0.05, alpha=0.05, rng=rng())
    assert (result.gates[0].verdict.kind, result.verdict.kind) == ("non-inferior", "inconclusive")
    assert "not one sample of b" in result.verdict.text
    assert analyse(good, [], gates=["b"], margin=0.05, alpha=0.05, rng=rng()).verdict.kind == "inconclusive"
    bad = [dataclasses.replace(pair, scorer="a") for pair in binary(50, 1, 20, 37)]
    assert analyse(bad, [], gates=["a", "b"], margin=0.05, alpha=0.05, rng=rng()).verdict.kind == "worse"


def test_a_candidate_that_fails_often_does_not_pass() -> None:
    def judged(failed: int, reason: str) -> Result:
        missing = [Unpaired(f"x{i}", 0, reason) for i in range(failed)]
        return analyse(binary(600, 10, 10, 380), missing, gates=["overall"], margin=0.05, alpha=0.05, rng=rng())

    assert judged(52, "failed in the candidate").verdict.kind == "non-inferior"
    found = judged(54, "failed in the candidate").verdict
    assert found.kind == "inconclusive"
    assert "54 of 1054 samples" in found.text
    assert judged(400, "missing in the candidate").verdict.kind == "inconclusive"
    assert judged(400, "failed in the baseline and the candidate").verdict.kind == "non-inferior"


def test_clusters_raise_what_is_detectable() -> None:
    """Cases of a cluster that flip together tell less than as many independent ones."""
    scores = [(0.0, 1.0) if i // 5 % 4 == 0 else (1.0, 0.0) if i // 5 % 4 == 1 else (1.0, 1.0) for i in range(250)]
    alone = compare("x", pairs(scores), alpha=0.05, rng=rng())
    together = compare("x", pairs(scores, [f"d{i // 5}" for i in range(250)]), alpha=0.05, rng=rng())
    assert together.detectable == pytest.approx(2.8016 * together.se, rel=1e-3)
    assert together.detectable > 2 * alone.detectable


def test_a_side_whose_clusters_all_agree_is_as_sure_as_the_clusters_are_many() -> None:
    def low(clusters: int) -> float:
        found = compare("x", pairs([(1.0, 1.0)] * 100, [f"d{i % clusters}" for i in range(100)]), alpha=0.05, rng=rng())
        return found.baseline.interval.low

    assert low(50) == pytest.approx(0.9287, abs=1e-4), "Wilson, 50 of 50"
    assert low(1) == pytest.approx(0.2065, abs=1e-4), "one document is one observation"


def test_the_same_seed_gives_the_same_comparison() -> None:
    graded = pairs([(i / 40, (i * 7 % 40) / 40) for i in range(40)])
    assert compare("x", graded, alpha=0.05, rng=rng()) == compare("x", graded, alpha=0.05, rng=rng())
