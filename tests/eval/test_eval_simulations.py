"""What the procedures promise, held over 2,000 simulated experiments each, from fixed seeds."""

import functools
import math

import numpy as np
import pytest

from eval import statistics as own
from eval.compare import POWER
from eval.verdict import decide

EXPERIMENTS = 2_000
ALPHA = 0.05
MARGIN = 0.05


def bound(rate: float) -> float:
    """The rate plus three Monte Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / EXPERIMENTS)


@functools.cache
def verdict_of(gains: int, losses: int, n: int) -> str:
    interval = own.tango(gains, losses, n, ALPHA)
    p = own.mcnemar(gains, losses).p
    return decide(low=interval.low, high=interval.high, p=p, alpha=ALPHA, margin=MARGIN, n=n, needed=None).kind


def rates(n: int, gain: float, loss: float, seed: int) -> dict[str, float]:
    """Share of each verdict where a candidate gains and loses with these probabilities."""
    drawn = np.random.default_rng(seed).multinomial(n, [gain, loss, 1 - gain - loss], size=EXPERIMENTS)
    kinds = [verdict_of(int(gains), int(losses), n) for gains, losses, _ in drawn]
    return {kind: kinds.count(kind) / EXPERIMENTS for kind in ("better", "worse", "non-inferior", "inconclusive")}


@pytest.mark.parametrize(("n", "flips"), [(40, 0.2), (108, 0.08), (108, 0.2), (400, 0.1)])
def test_a_version_against_itself_is_called_better_or_worse_at_most_at_alpha(n: int, flips: float) -> None:
    found = rates(n, flips / 2, flips / 2, seed=n)
    assert found["worse"] <= bound(ALPHA / 2)
    assert found["better"] + found["worse"] <= bound(ALPHA)


@pytest.mark.parametrize(("n", "loss"), [(108, 0.1), (300, 0.1), (1000, 0.15)])
def test_a_candidate_that_is_lower_by_the_margin_passes_at_most_at_half_alpha(n: int, loss: float) -> None:
    found = rates(n, loss - MARGIN, loss, seed=n)
    assert found["non-inferior"] + found["better"] <= bound(ALPHA / 2)


@pytest.mark.parametrize(("n", "flips"), [(400, 0.2), (1319, 0.08)])
def test_power_at_the_stated_effect_is_as_printed(n: int, flips: float) -> None:
    effect = own.minimum_detectable_effect(math.sqrt(flips), n, ALPHA, POWER)
    drawn = np.random.default_rng(7).multinomial(
        n, [(flips - effect) / 2, (flips + effect) / 2, 1 - flips], size=EXPERIMENTS
    )
    found = sum(own.mcnemar(int(gains), int(losses)).p <= ALPHA for gains, losses, _ in drawn) / EXPERIMENTS
    assert found == pytest.approx(POWER, abs=0.05)


def test_permutation_of_continuous_scores_holds_alpha_and_has_its_power() -> None:
    rng = np.random.default_rng(11)
    n, resamples = 40, 199
    skewed = rng.exponential(size=(EXPERIMENTS, n)) - rng.exponential(size=(EXPERIMENTS, n))
    alarms = sum(own.sign_flip(d, rng, resamples=resamples).p <= ALPHA for d in skewed) / EXPERIMENTS
    assert alarms <= bound(ALPHA)
    effect = own.minimum_detectable_effect(math.sqrt(2), n, ALPHA, POWER)
    hits = sum(own.sign_flip(d + effect, rng, resamples=resamples).p <= ALPHA for d in skewed) / EXPERIMENTS
    assert hits == pytest.approx(POWER, abs=0.06)


def clustered(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of `count` clusters of 1 to 5 cases that share an effect; true mean 0."""
    clusters = np.repeat(np.arange(count), 1 + np.arange(count) % 5)
    return rng.normal(size=len(clusters)) + rng.normal(size=count)[clusters], clusters


def outside(interval: own.Interval) -> bool:
    return interval.low > 0 or interval.high < 0


def test_clustered_t_holds_alpha_where_the_plain_one_does_not() -> None:
    rng = np.random.default_rng(12)
    drawn = [clustered(rng, 50) for _ in range(EXPERIMENTS)]
    right = sum(outside(own.t_interval(own.clustered_error(d, list(c)), ALPHA)) for d, c in drawn) / EXPERIMENTS
    wrong = sum(outside(own.t_interval(own.plain_error(d), ALPHA)) for d, _ in drawn) / EXPERIMENTS
    # The clustered SE is slightly too small with unequal clusters (Cameron and Miller 2015): two points are allowed.
    assert right <= bound(ALPHA) + 0.02
    assert wrong > 2 * ALPHA


def test_cluster_bootstrap_and_cluster_permutation_hold_alpha_with_few_clusters() -> None:
    rng = np.random.default_rng(13)
    drawn = [clustered(rng, 15) for _ in range(EXPERIMENTS)]
    intervals = [own.cluster_bootstrap_t(d, list(c), ALPHA, rng, resamples=399) for d, c in drawn]
    tests = [own.sign_flip(d, rng, list(c), resamples=199).p for d, c in drawn]
    assert sum(map(outside, intervals)) / EXPERIMENTS <= bound(ALPHA) + 0.01
    assert sum(p <= ALPHA for p in tests) / EXPERIMENTS <= bound(ALPHA)
    both = sum(outside(i) and p <= ALPHA for i, p in zip(intervals, tests, strict=True)) / EXPERIMENTS
    assert both <= bound(ALPHA), "a verdict needs both"


@pytest.mark.parametrize("n", [3, 5, 10])
def test_few_graded_samples_pass_at_a_loss_of_the_margin_at_most_at_half_alpha(n: int) -> None:
    """The low end decides non-inferiority; a plain BCa interval of 5 values lies too high in 8% of experiments."""
    rng = np.random.default_rng(14)
    drawn = rng.normal(-0.05, 0.1, size=(EXPERIMENTS // 4, n))
    passed = sum(own.bca(d, ALPHA, rng, resamples=199).low > -0.05 for d in drawn) / len(drawn)
    assert passed <= ALPHA / 2 + 3 * math.sqrt(ALPHA / 2 * (1 - ALPHA / 2) / len(drawn))
