"""Weighted cases and families of candidates: against other libraries, and what they promise over simulations."""

import functools
import math

import numpy as np
import pytest

from eval import statistics as own
from eval.compare import Pair, compare, decide_all, measure
from eval.results import Sample
from eval.summary import groups

ALPHA = 0.05
EXPERIMENTS = 2_000


def bound(rate: float, experiments: int = EXPERIMENTS) -> float:
    """The rate plus three Monte Carlo standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / experiments)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def pairs(d: np.ndarray, weights: np.ndarray | None = None, clusters: list[str] | None = None) -> list[Pair]:
    return [
        Pair(f"c{i}", "s", "", clusters[i] if clusters else "", 0.0, float(value), 1,
             1.0 if weights is None else float(weights[i]))
        for i, value in enumerate(d)
    ]  # fmt: skip


def test_the_error_of_a_weighted_mean_is_that_of_weighted_least_squares() -> None:
    """An intercept alone, with cluster-robust covariance; statsmodels' small-sample factor is C/(C-1) there too."""
    sm = pytest.importorskip("statsmodels.api")
    random = rng()
    d, weights = random.normal(size=60), random.uniform(0.2, 5, size=60)
    clusters = np.arange(60) % 13
    fitted = sm.WLS(d, np.ones(60), weights=weights).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    found = own.clustered_error(d, list(clusters), weights)
    assert (found.mean, found.se) == (pytest.approx(fitted.params[0]), pytest.approx(fitted.bse[0]))
    alone = sm.WLS(d, np.ones(60), weights=weights).fit(cov_type="cluster", cov_kwds={"groups": np.arange(60)})
    found = own.plain_error(d, weights)
    assert (found.mean, found.se) == (pytest.approx(alone.params[0]), pytest.approx(alone.bse[0]))


def test_equal_weights_are_no_weights() -> None:
    random = rng()
    d = random.normal(size=50)
    same = np.full(50, 3.0)
    assert own.plain_error(d, same).se == pytest.approx(own.plain_error(d).se)
    assert own.clustered_error(d, list(np.arange(50) % 7), same).se == pytest.approx(
        own.clustered_error(d, list(np.arange(50) % 7)).se
    )
    assert compare("x", pairs(d, same), alpha=ALPHA, rng=rng()) == compare("x", pairs(d), alpha=ALPHA, rng=rng())
    assert own.kish(same) == pytest.approx(50)


def test_a_whole_number_as_weight_moves_the_mean_as_so_many_cases_would() -> None:
    d = np.array([0.0, 1.0, -1.0, 0.5, 0.0, 1.0])
    weights = np.array([1.0, 3.0, 1.0, 2.0, 1.0, 1.0])
    repeated = np.repeat(d, weights.astype(int))
    found = compare("x", pairs(d, weights), alpha=ALPHA, rng=rng())
    assert found.difference == pytest.approx(repeated.mean())
    assert found.candidate.mean == pytest.approx(repeated.mean())
    assert found.n == 6, "a weight is no sample"
    assert found.se > own.plain_error(repeated).se


def test_the_weighted_interval_agrees_with_scipys_bootstrap_of_the_ratio() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = rng()
    d, weights = random.normal(0.3, 1, size=80), random.uniform(0.5, 4, size=80)

    def mean(x: np.ndarray, w: np.ndarray, axis: int = -1) -> np.ndarray:
        return (x * w).sum(axis=axis) / w.sum(axis=axis)

    theirs = stats.bootstrap((d, weights), mean, paired=True, n_resamples=9_999, rng=rng(5)).confidence_interval
    t = own.t_interval(own.plain_error(d, weights), ALPHA)
    ours = own.bca(d, ALPHA, rng(6), weights=weights)
    assert ours.low == pytest.approx(min(theirs.low, t.low), abs=0.02)
    assert ours.high == pytest.approx(max(theirs.high, t.high), abs=0.02)


def test_weighted_tests_hold_alpha_and_have_their_power() -> None:
    random = rng(21)
    n, resamples = 60, 199
    weights = random.uniform(0.2, 5, size=n)
    noise = random.normal(size=(EXPERIMENTS, n))
    alarms = sum(own.sign_flip(d, random, resamples=resamples, weights=weights).p <= ALPHA for d in noise)
    assert alarms / EXPERIMENTS <= bound(ALPHA)
    effect = own.minimum_detectable_effect(1.0, round(own.kish(weights)), ALPHA, 0.8)
    hits = sum(own.sign_flip(d + effect, random, resamples=resamples, weights=weights).p <= ALPHA for d in noise)
    assert hits / EXPERIMENTS == pytest.approx(0.8, abs=0.05)


def test_the_weighted_intervals_cover_what_they_say() -> None:
    """Of cases drawn with their weights, where the heavier ones differ more and few of them carry half of the mean."""
    random = rng(22)
    experiments, n = 500, 60
    missed = clustered_missed = 0
    for _ in range(experiments):
        weights = random.exponential(size=n) + 0.2
        d = random.normal(size=n) + 0.3 * (weights - 1.2)  # heavier cases differ more
        truth = 0.3 / 1.2  # E[w d] / E[w]: cov(w, d) = 0.3 var(w), var(w) = 1
        found = own.bca(d, ALPHA, random, resamples=399, weights=weights)
        missed += not found.low <= truth <= found.high
        groups_of_two = list(np.arange(n) // 2)
        error = own.clustered_error(d, groups_of_two, weights)
        interval = own.t_interval(error, ALPHA)
        clustered_missed += not interval.low <= truth <= interval.high
    assert missed / experiments <= bound(ALPHA, experiments) + 0.02
    assert clustered_missed / experiments <= bound(ALPHA, experiments) + 0.02


@functools.cache
def _level(n: int, gains: int, losses: int, family: int) -> tuple[float, float, float]:
    interval = own.tango(gains, losses, n, ALPHA / family)
    return interval.low, interval.high, own.mcnemar(gains, losses).p


@pytest.mark.parametrize("candidates", [2, 5])
def test_no_candidate_of_a_family_is_called_better_or_worse_more_often_than_one_alone(candidates: int) -> None:
    """The chance that any of several equal candidates is called so stays below alpha; without Holm it does not."""
    random = rng(23)
    n, flips = 200, 0.16
    called = naive = 0
    for _ in range(EXPERIMENTS):
        drawn = random.multinomial(n, [flips / 2, flips / 2, 1 - flips], size=candidates)
        found = [_level(n, int(gains), int(losses), candidates) for gains, losses, _ in drawn]
        adjusted = own.holm([p for *_, p in found])
        called += any(p <= ALPHA and (low > 0 or high < 0) for (low, high, _), p in zip(found, adjusted, strict=True))
        naive += any(p <= ALPHA for *_, p in found)
    assert called / EXPERIMENTS <= bound(ALPHA)
    assert naive / EXPERIMENTS > bound(ALPHA)


def test_no_candidate_of_a_family_passes_at_a_loss_of_the_margin_more_often_than_one_alone() -> None:
    random = rng(24)
    n, margin, candidates = 300, 0.05, 4
    passed = 0
    for _ in range(EXPERIMENTS):
        drawn = random.multinomial(n, [0.05, 0.05 + margin, 0.9 - margin], size=candidates)
        passed += any(_level(n, int(gains), int(losses), candidates)[0] > -margin for gains, losses, _ in drawn)
    assert passed / EXPERIMENTS <= bound(ALPHA / 2)


def test_a_family_is_adjusted_as_statsmodels_does() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    random = rng(25)
    measured = []
    for shift in (0.0, 0.2, 0.5):
        d = np.sign(random.normal(shift, 1, size=80)) * (random.random(80) < 0.4)
        measured.append(measure(pairs(d), [], alpha=ALPHA, rng=random, family=3))
    results = decide_all(measured, gates=["overall"], margin=0.05, alpha=ALPHA)
    expected = multitest.multipletests([one.overall.p for one in measured], method="holm")[1]
    assert [result.gates[0].p_adjusted for result in results] == pytest.approx(list(expected))


def test_the_scores_of_a_run_are_weighted_too() -> None:
    samples = [
        Sample(case=f"c{i}", repeat=0, scorer="exact", prompt="", prompt_digest="", target="", target_digest="",
               score=float(i < 5), weight=4.0 if i < 5 else 1.0)
        for i in range(20)
    ]  # fmt: skip
    overall = groups(samples, alpha=ALPHA, rng=rng())[-1]
    assert overall.score.mean == pytest.approx(20 / 35)
    assert overall.score.interval.low < 20 / 35 < overall.score.interval.high


def test_the_interval_of_a_ratio_covers_it() -> None:
    """Latencies of the same cases by two engines: skewed, correlated. A gate passes where the upper end is below."""
    random = rng(26)
    experiments, n, true = 400, 80, 1.5
    missed = passed = 0
    for _ in range(experiments):
        length = random.lognormal(0, 0.6, size=n)
        below, above = length * random.lognormal(0, 0.2, size=n), true * length * random.lognormal(0, 0.2, size=n)
        found = own.ratio_interval(above, below, ALPHA, random, resamples=399)
        missed += not found.low <= true <= found.high
        passed += found.high <= true
    assert missed / experiments <= bound(ALPHA, experiments) + 0.02
    assert passed / experiments <= bound(ALPHA / 2, experiments) + 0.02
