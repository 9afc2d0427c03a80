"""The formulas against scipy, statsmodels, published values and their own definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from eval import statistics as own


def test_wilson_is_statsmodels_own() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for successes, n in ((0, 12), (3, 17), (50, 100), (9, 9)):
        low, high = proportion.proportion_confint(successes, n, alpha=0.05, method="wilson")
        found = own.wilson(successes, n, 0.05)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_mcnemar_exact_is_statsmodels_own() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    for gains, losses in ((0, 4), (3, 9), (12, 12), (1, 7)):
        expected = tables.mcnemar([[10, gains], [losses, 10]], exact=True).pvalue
        assert own.mcnemar(gains, losses).p == pytest.approx(expected)
    assert own.mcnemar(0, 0).p == 1.0


def test_mid_p_is_the_published_value() -> None:
    """Fagerland et al. 2013, airway hyper-responsiveness, discordant pairs 1 and 7: mid-p 0.039, exact 0.070."""
    assert own.mcnemar_mid_p(1, 7) == pytest.approx(0.0391, abs=5e-5)
    assert own.mcnemar(1, 7).p == pytest.approx(0.0703, abs=5e-5)
    assert own.mcnemar(10, 20).method == "McNemar mid-p"


def test_mid_p_at_a_tie_is_what_the_paper_states() -> None:
    observed = stats.binom.pmf(13, 26, 0.5)
    assert own.mcnemar_mid_p(13, 13) == pytest.approx(1 - observed / 2)


def test_tango_is_the_published_interval() -> None:
    """Fagerland et al. 2014 (Stat. Med. 33:2850), the same study of 21 children: -0.517 to -0.026."""
    found = own.tango(1, 7, 21, 0.05)
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def _score_by_search(delta: float, gains: int, losses: int, n: int) -> float:
    """Tango's statistic with the nuisance parameter found by numeric maximum likelihood, not by the formula."""

    def minus_log_likelihood(q: float) -> float:
        cells = ((losses, q), (gains, q + delta), (n - gains - losses, 1 - 2 * q - delta))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12
    q = float(optimize.minimize_scalar(minus_log_likelihood, bounds=(low, high), options={"xatol": 1e-12}).x)
    return (gains - losses - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))


@pytest.mark.parametrize(("gains", "losses", "n"), [(5, 12, 100), (1, 0, 30), (20, 25, 60), (3, 3, 500)])
def test_tango_bounds_solve_its_equation(gains: int, losses: int, n: int) -> None:
    found = own.tango(gains, losses, n, 0.05)
    z = stats.norm.ppf(0.975)
    assert _score_by_search(found.low, gains, losses, n) == pytest.approx(z, abs=2e-3)
    assert _score_by_search(found.high, gains, losses, n) == pytest.approx(-z, abs=2e-3)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_tango_holds_the_estimate_mirrors_and_stays_in_range(drawn: tuple[int, int, int]) -> None:
    n, gains, losses = drawn
    if gains + losses > n:
        losses = n - gains
    found, mirrored = own.tango(gains, losses, n, 0.05), own.tango(losses, gains, n, 0.05)
    assert -1 <= found.low <= (gains - losses) / n + 1e-9
    assert (gains - losses) / n - 1e-9 <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-6)


def test_no_difference_seen_is_never_certainty() -> None:
    few, many = own.tango(0, 0, 5, 0.05), own.tango(0, 0, 1000, 0.05)
    assert few.low < -0.05
    assert -0.005 < many.low < 0


def test_t_is_scipys_paired_test() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=40), rng.normal(0.3, 1, size=40)
    expected = stats.ttest_rel(b, a)
    error = own.plain_error(b - a)
    assert error.mean / error.se == pytest.approx(expected.statistic)
    interval, theirs = own.t_interval(error, 0.05), expected.confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))


def test_clustered_error_is_statsmodels_own() -> None:
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(15), rng.integers(1, 6, size=15))
    d = rng.normal(size=len(clusters)) + rng.normal(size=15)[clusters]
    fitted = api.OLS(d, np.ones_like(d)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    error = own.clustered_error(d, list(clusters))
    assert error.se == pytest.approx(float(fitted.bse[0]))
    assert error.df == 14


def test_clusters_of_one_are_independent_samples() -> None:
    d = np.random.default_rng(3).normal(size=25)
    assert own.clustered_error(d, range(25)).se == pytest.approx(own.plain_error(d).se)


def test_sign_flip_agrees_with_scipys_permutation_test() -> None:
    rng = np.random.default_rng(4)
    d = rng.normal(0.35, 1, size=12)
    exact = stats.permutation_test(
        (d, np.zeros_like(d)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert own.sign_flip(d, rng).p == pytest.approx(exact.pvalue, abs=0.015)


def test_sign_flip_is_reproducible_and_holds_between_its_bounds() -> None:
    d = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    first = own.sign_flip(d, np.random.default_rng(9))
    assert first == own.sign_flip(d, np.random.default_rng(9))
    assert own.sign_flip(np.zeros(5), np.random.default_rng(0)).p == 1.0


def test_holm_is_statsmodels_own() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = [0.04, 0.001, 0.2, 0.03, 0.9]
    assert own.holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]))
    assert own.holm([]) == []


def test_minimum_detectable_effect_is_as_stated() -> None:
    """STATISTICS: with 8% discordance 2.2 points on 1,319 samples and 7.9 points on 100."""
    sd = math.sqrt(0.08)
    assert own.minimum_detectable_effect(sd, 1319, 0.05, 0.8) == pytest.approx(0.022, abs=0.0005)
    assert own.minimum_detectable_effect(sd, 100, 0.05, 0.8) == pytest.approx(0.079, abs=0.0005)
    assert own.samples_needed(sd, own.minimum_detectable_effect(sd, 500, 0.05, 0.8), 0.05, 0.8) == pytest.approx(
        500, abs=1
    )
    assert own.samples_needed(sd, 0.0, 0.05, 0.8) is None


def test_bootstrap_intervals_hold_the_mean_and_do_not_trust_a_single_value() -> None:
    rng = np.random.default_rng(5)
    d = rng.uniform(-0.2, 0.4, size=60)
    found = own.bca(d, 0.05, rng)
    t = own.t_interval(own.plain_error(d), 0.05)
    assert (found.low, found.high) == pytest.approx((t.low, t.high), abs=0.012)
    assert own.bca(np.zeros(20), 0.05, rng).low < 0
    assert own.bca(np.array([0.5]), 0.05, rng).low == -1.0
    assert own.bca(np.full(8, 0.5), 0.05, rng).low == -1.0


def test_a_bootstrap_draws_the_same_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large suite must not need gigabytes: the draws come in pieces, and are the same ones."""
    values = np.random.default_rng(1).uniform(size=50)

    def drawn() -> tuple[own.Interval, own.Interval]:
        rng = np.random.default_rng(2)
        return own.percentile_bootstrap(values, 0.05, rng), own.ratio_interval(values, values + 1, 0.05, rng)

    whole = drawn()
    monkeypatch.setattr(own, "_CHUNK_CELLS", 1_000)
    assert drawn() == whole
    assert next(own._draws(200, np.random.default_rng(2), 9_999)).shape == (5, 200)
