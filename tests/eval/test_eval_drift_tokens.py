"""Token-level drift: the measures against their definitions, known values, and the bound that a top k gives."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval import drift_tokens
from eval.drift_tokens import Collected, Positions

SEED = st.integers(0, 2**32 - 1)


def distributions(rng: np.random.Generator, rows: int, vocabulary: int, spread: float = 3.0) -> np.ndarray:
    logits = rng.normal(scale=spread, size=(rows, vocabulary)).astype(np.float32)
    return np.asarray(logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)), dtype=np.float32)


def top(row: np.ndarray, k: int, own: int) -> dict[int, float]:
    return {int(token): float(row[token]) for token in (*np.argsort(-row)[:k], own)}


@given(SEED, st.integers(2, 60))
def test_kl_is_that_of_scipy_and_zero_for_equal_rows(seed: int, vocabulary: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = distributions(rng, 5, vocabulary), distributions(rng, 5, vocabulary)
    expected = stats.entropy(np.exp(p.astype(np.float64)), np.exp(q.astype(np.float64)), axis=1)
    assert drift_tokens.kl_rows(p, q) == pytest.approx(expected, abs=1e-5)
    assert drift_tokens.kl_rows(p, p).max() == 0
    assert drift_tokens.kl_rows(p, q).min() >= 0


def test_a_token_that_only_one_side_excludes() -> None:
    with np.errstate(divide="ignore"):
        p = np.log(np.array([[0.5, 0.5, 0.0]], dtype=np.float32))
        q = np.log(np.array([[0.5, 0.25, 0.25]], dtype=np.float32))
    assert drift_tokens.kl_rows(p, q) == pytest.approx([0.5 * math.log(2)])
    assert drift_tokens.kl_rows(q, p)[0] == math.inf


@given(SEED, st.integers(2, 60), st.integers(1, 20))
def test_a_top_k_never_says_more_than_the_whole_distribution(seed: int, vocabulary: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = distributions(rng, 4, vocabulary), distributions(rng, 4, vocabulary)
    tokens = rng.integers(0, vocabulary, 4)
    exact = drift_tokens.kl_rows(p, q)
    found = drift_tokens.compare_top_k(
        [top(row, k, token) for row, token in zip(p, tokens, strict=True)],
        [top(row, k, token) for row, token in zip(q, tokens, strict=True)],
        tokens.tolist(),
    )
    assert (found.kl <= exact + 1e-5).all()
    assert (found.kl >= 0).all()
    if k >= vocabulary:
        assert found.kl == pytest.approx(exact, abs=1e-4)


@given(SEED)
def test_more_tokens_never_loosen_the_bound_of_nested_lists(seed: int) -> None:
    """With the same tokens named on both sides, each further one splits the pooled bucket."""
    rng = np.random.default_rng(seed)
    p, q = distributions(rng, 1, 30)[0], distributions(rng, 1, 30)[0]
    order = rng.permutation(30)
    bounds = [
        drift_tokens.kl_lower_bound({int(t): float(p[t]) for t in order[:k]}, {int(t): float(q[t]) for t in order[:k]})
        for k in range(1, 31)
    ]
    assert all(later >= earlier - 1e-4 for earlier, later in itertools.pairwise(bounds))


def test_top_1_and_the_reference_token_are_exact_from_a_top_k() -> None:
    rng = np.random.default_rng(3)
    p, q = distributions(rng, 50, 200), distributions(rng, 50, 200)
    tokens = rng.integers(0, 200, 50).tolist()
    whole = drift_tokens.compare_rows(p, q, tokens)
    part = drift_tokens.compare_top_k(
        [top(row, 5, token) for row, token in zip(p, tokens, strict=True)],
        [top(row, 5, token) for row, token in zip(q, tokens, strict=True)],
        tokens,
    )
    assert (part.agree == whole.agree).all()
    assert part.log_p == pytest.approx(whole.log_p)
    assert part.log_q == pytest.approx(whole.log_q)


def collected(kl: list[list[float]], bound: drift_tokens.Bound = "exact") -> Collected:
    found = Collected(bound)
    for number, values in enumerate(kl):
        array = np.array(values)
        flat = np.full(len(values), math.log(0.5))
        found.add(f"p{number}", Positions(array, flat, flat - 0.1, array < 1))
    return found


def summary(found: Collected, seed: int = 0) -> drift_tokens.TokenDrift:
    result = found.summary(alpha=0.05, rng=np.random.default_rng(seed))
    assert result is not None
    return result


def test_figures_of_known_positions() -> None:
    drift = summary(collected([[0.0, 0.2], [2.0, 0.4, 0.0]]))
    assert (drift.n, drift.prompts, drift.max_kl) == (5, 2, 2.0)
    assert drift.mean_kl.value == pytest.approx(0.52)
    assert drift.top1_agreement.value == pytest.approx(0.8)
    assert drift.perplexity == (pytest.approx(2.0), pytest.approx(2 * math.exp(0.1)))
    assert drift.perplexity_ratio.value == pytest.approx(math.exp(0.1))
    assert drift.rms_delta_p.value == pytest.approx(0.5 - 0.5 * math.exp(-0.1))
    assert [(one.prompt, one.position) for one in drift.worst] == [("p1", 0), ("p0", 1)]
    assert [(band.start, band.end, band.n) for band in drift.bands] == [(0, 1, 2), (1, 2, 2), (2, 3, 1)]


def test_equal_distributions_have_no_drift_and_say_for_how_many_prompts() -> None:
    drift = summary(collected([[0.0, 0.0]] * 12))
    assert drift.mean_kl.value == 0
    assert drift.mean_kl.interval.method == "no difference seen"
    assert drift.top1_agreement.value == 1
    assert 0.7 < drift.top1_agreement.interval.low < 0.8, "twelve prompts allow no more"


def test_one_prompt_has_no_interval_and_none_has_no_drift() -> None:
    drift = summary(collected([[0.1, 0.3]]))
    assert drift.mean_kl.interval.high == math.inf
    assert drift.p99_kl.interval.method == "one prompt: no spread known"
    assert Collected("exact").summary(alpha=0.05, rng=np.random.default_rng(0)) is None


@pytest.mark.parametrize("prompts", [15, 60])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(prompts: int) -> None:
    """Positions of a prompt share its level, so an interval over positions would be far too narrow."""
    rng = np.random.default_rng(5)
    repeats, held = 300, 0
    for _ in range(repeats):
        levels = rng.gamma(4.0, 0.05, prompts)
        values = np.concatenate([rng.gamma(2.0, level / 2, 20) for level in levels])
        interval = drift_tokens._mean(values, np.repeat(np.arange(prompts), 20), 0.05, rng).interval
        held += interval.low <= 0.2 <= interval.high
    assert 0.91 <= held / repeats <= 0.99
