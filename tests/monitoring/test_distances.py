"""Distances and tests of live drift: against Evidently's formulas and scipy's, and by simulation.

Evidently's figures are computed here from its published formulas (its `stattests` folder): `_evidently_bins` is its
binning by Sturges' rule and its filling of empty bins. Simulations are seeded.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitoring import distances as d
from monitoring import distances_vectors as v

NULLS = 600
"""Simulated windows without drift; their share of p ≤ .05 is within .05 ± MONTE_CARLO by 3 standard errors."""
MONTE_CARLO = 3 * math.sqrt(0.05 * 0.95 / NULLS)


def _evidently_bins(reference: np.ndarray, current: np.ndarray, fill: bool) -> tuple[np.ndarray, np.ndarray]:
    edges = np.histogram_bin_edges(np.concatenate([reference, current]), bins="sturges")
    shares = [np.histogram(values, edges)[0] / len(values) for values in (reference, current)]
    for one in shares:
        if fill:
            least = one[one != 0].min()
            one[one == 0] = least / 10**6 if least <= 0.0001 else 0.0001
    return shares[0], shares[1]


def test_psi_is_evidentlys_on_the_same_bins() -> None:
    rng = np.random.default_rng(1)
    reference, current = rng.normal(size=5000), rng.normal(0.4, 1.0, size=4000)
    p, q = _evidently_bins(reference, current, fill=True)
    theirs = float(np.sum((p - q) * np.log(p / q)))
    ours = float(d.psi(p * 5000, q * 4000, smoothing=0.0))
    assert ours == pytest.approx(theirs, rel=1e-12)
    quantile_bins = d.bin_numbers(reference, current)
    assert float(d.psi(quantile_bins.reference, quantile_bins.current)) == pytest.approx(theirs, rel=0.1)
    assert float(d.psi(quantile_bins.reference, quantile_bins.current)) == pytest.approx(0.4**2, rel=0.2)


def test_jensen_shannon_wasserstein_and_chi_square_are_evidentlys() -> None:
    rng = np.random.default_rng(2)
    reference, current = rng.normal(size=3000), rng.normal(0.3, 1.2, size=2000)
    p, q = _evidently_bins(reference, current, fill=False)
    mean = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        halves = [np.nansum(np.where(share > 0, share * np.log2(share / mean), 0)) for share in (p, q)]
    assert d.jensen_shannon(p * 3000, q * 2000) == pytest.approx(math.sqrt(sum(halves) / 2), rel=1e-9)
    x, y = np.sort(reference), np.sort(current)
    grid = np.sort(np.concatenate([x, y]))
    cdf_x, cdf_y = (np.searchsorted(one, grid[:-1], side="right") / len(one) for one in (x, y))
    area = float(np.sum(np.abs(cdf_x - cdf_y) * np.diff(grid)))
    assert d.wasserstein(reference, current) == pytest.approx(area / np.std(reference), rel=1e-9)
    counts = np.array([[30.0, 50, 20], [45.0, 40, 15]])
    two_sample = stats.chi2_contingency(counts, correction=False).statistic
    assert float(d.chi_square(counts[0], counts[1])) == pytest.approx(two_sample, rel=1e-12)
    # Evidently takes the reference's shares for known: the limit of a reference that is much larger.
    theirs = stats.chisquare(counts[1], counts[0]).statistic
    assert float(d.chi_square(counts[0] * 1e7, counts[1])) == pytest.approx(theirs, rel=1e-5)


def test_ks_is_scipys_with_ties_too() -> None:
    rng = np.random.default_rng(3)
    for reference, current in (
        (rng.normal(size=80), rng.normal(size=130)),
        (rng.integers(0, 4, size=80).astype(float), rng.integers(0, 5, size=60).astype(float)),
    ):
        assert d.ks(reference, current) == pytest.approx(stats.ks_2samp(reference, current).statistic, abs=1e-6)


def test_mmd_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(12, 3)), rng.normal(0.5, 1, size=(9, 3))
    labels = np.zeros((1, 21), dtype=np.float32)
    labels[:, 12:] = 1.0
    kernel = v.rbf_kernel(np.concatenate([x, y]))

    def mean(rows: range, columns: range) -> float:
        return float(np.mean([kernel[i, j] for i in rows for j in columns if i != j]))

    plain = mean(range(12), range(12)) + mean(range(12, 21), range(12, 21)) - 2 * mean(range(12), range(12, 21))
    assert float(v.mmd(kernel, labels)[0]) == pytest.approx(plain, abs=1e-6)
    assert v.median_bandwidth(v.squared_distances(np.array([[0.0], [1.0], [3.0]]))) == 4.0


def test_an_auc_has_hanley_and_mcneils_error_and_a_psi() -> None:
    rng = np.random.default_rng(5)
    shift = math.sqrt(2) * float(stats.norm.ppf(0.8))
    drawn = rng.normal(size=(600, 50))[:, :, None] < rng.normal(shift, 1, size=(600, 60))[:, None, :]
    low, high = v.auc_interval(0.8, 50, 60, 0.05)
    assert (high - low) / 2 / 1.959964 == pytest.approx(float(drawn.mean(axis=(1, 2)).std()), rel=0.1)
    assert v.auc_as_psi(0.5) == v.auc_as_psi(0.3) == 0
    reference, current = rng.normal(size=40_000), rng.normal(0.5, 1, size=40_000)
    auc = stats.mannwhitneyu(current, reference).statistic / 40_000**2
    table = d.bin_numbers(reference, current, bins=40)
    assert v.auc_as_psi(auc) == pytest.approx(0.25, rel=0.05)
    assert float(d.psi(table.reference, table.current)) == pytest.approx(0.25, rel=0.07)


@pytest.mark.parametrize(("n", "m"), [(200, 200), (1000, 300), (2000, 2000)])
def test_the_noise_of_psi_is_as_printed(n: int, m: int) -> None:
    rng = np.random.default_rng(6)
    table = d.bin_numbers(rng.gamma(2.0, size=n), rng.gamma(2.0, size=m))
    reference, current = d.permuted_counts(table, d.permutations(n, m, rng, 1500))
    found = d.psi(reference, current)
    assert float(found.mean()) == pytest.approx(d.psi_noise(len(table.names), n, m), rel=0.08)
    assert float(found.std()) == pytest.approx(d.psi_spread(len(table.names), n, m), rel=0.12)


@pytest.mark.parametrize("n", [60, 150])
def test_permutation_tests_keep_their_level(n: int) -> None:
    """PSI and KS on a skewed number with ties, χ² on rare categories: each at most 5% false alarms."""
    rng = np.random.default_rng(7)
    p: dict[str, list[float]] = {"psi": [], "ks": [], "chi2": []}
    labels = d.permutations(n, n, rng, 199)
    for _ in range(NULLS):
        values = np.round(rng.gamma(1.5, 4.0, size=2 * n))
        kinds = rng.choice(["a", "b", "c", "d", "e", "f"], p=[0.9, 0.05, 0.02, 0.01, 0.01, 0.01], size=2 * n)
        table = d.bin_numbers(values[:n], values[n:])
        drawn = d.permuted_counts(table, labels)
        p["psi"].append(d.permutation_p(float(d.psi(table.reference, table.current)), d.psi(*drawn)))
        p["ks"].append(d.permutation_p(d.ks(values[:n], values[n:]), d.ks_permuted(values[:n], values[n:], labels)))
        table = d.bin_categories(kinds[:n], kinds[n:])
        drawn = d.permuted_counts(table, labels)
        p["chi2"].append(d.permutation_p(float(d.chi_square(table.reference, table.current)), d.chi_square(*drawn)))
    for name, found in p.items():
        share = float(np.mean(np.asarray(found) <= 0.05))
        assert share <= 0.05 + MONTE_CARLO, f"{name}: {share}"
    assert float(np.mean(np.asarray(p["ks"]) <= 0.05)) >= 0.05 - MONTE_CARLO  # a number: not conservative either


def test_conversations_stay_together() -> None:
    """Ten turns each of 30 conversations on each side, alike within: samples by themselves would alarm often."""
    rng = np.random.default_rng(8)
    units = np.repeat(np.arange(60), 10)
    together = d.permutations(300, 300, rng, 199, units.tolist())
    apart = d.permutations(300, 300, rng, 199)
    alarms = Counter[str]()
    runs = 200
    for _ in range(runs):
        values = np.repeat(rng.normal(size=60), 10) + rng.normal(0, 0.3, size=600)
        reference, current = values[:300], values[300:]
        for name, labels in (("together", together), ("apart", apart)):
            permuted = d.ks_permuted(reference, current, labels)
            alarms[name] += d.permutation_p(d.ks(reference, current), permuted) <= 0.05
    assert alarms["together"] / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert alarms["apart"] / runs > 0.3


def test_vector_tests_keep_their_level_and_have_power() -> None:
    rng = np.random.default_rng(9)
    n = 40
    labels = d.permutations(n, n, rng, 199)
    observed = np.zeros((1, 2 * n), dtype=np.float32)
    observed[:, n:] = 1.0
    shares = []
    for shift, runs in ((0.0, NULLS), (0.6, 60)):
        hits = 0
        for _ in range(runs):
            vectors = rng.normal(size=(2 * n, 8))
            vectors[n:, 0] += shift
            kernel = v.rbf_kernel(vectors)
            hits += d.permutation_p(float(v.mmd(kernel, observed)[0]), v.mmd(kernel, labels)) <= 0.05
        shares.append(hits / runs)
    assert abs(shares[0] - 0.05) <= MONTE_CARLO
    assert shares[1] > 0.3
    found = []
    for _ in range(20):
        vectors = rng.normal(size=(2 * n, 8))
        domain = v.domain_classifier(vectors, n, labels[:19], rng)
        found.append(d.permutation_p(domain.auc, domain.permuted))
    assert np.mean(np.asarray(found) <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20)
    vectors = rng.normal(size=(2 * n, 8))
    vectors[n:, 0] += 1.5
    domain = v.domain_classifier(vectors, n, labels[:19], rng)
    assert domain.auc > 0.75 > float(domain.permuted.max())
    assert domain.scores[n:].mean() > domain.scores[:n].mean() + 1


@pytest.mark.parametrize(("n", "power"), [(200, 0.8), (800, 0.99)])
def test_the_power_of_ks_at_half_a_standard_deviation(n: int, power: float) -> None:
    rng = np.random.default_rng(10)
    labels = d.permutations(n, n, rng, 199)
    hits = 0
    for _ in range(100):
        reference, current = rng.normal(size=n), rng.normal(0.5, 1.0, size=n)
        hits += d.permutation_p(d.ks(reference, current), d.ks_permuted(reference, current, labels)) <= 0.005
    assert hits / 100 >= power


def test_an_interval_of_psi_covers_the_true_one() -> None:
    rng = np.random.default_rng(11)
    p, q = np.full(10, 0.1), np.array([0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.15, 0.15])
    true = float(np.sum((q - p) * np.log(q / p)))
    covered = 0
    weights = d.bootstrap_weights(600, 600, rng, 199)
    for _ in range(150):
        codes = np.concatenate([rng.choice(10, size=600, p=p), rng.choice(10, size=600, p=q)])
        table = d.bin_categories([str(code) for code in codes[:600]], [str(code) for code in codes[600:]])
        low, high = d.psi_interval(table, weights, 0.05)
        covered += low <= true <= high
    assert covered / 150 >= 0.9


def test_benjamini_hochberg_by_hand() -> None:
    assert d.benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert d.benjamini_hochberg([]) == []


def test_rare_categories_are_pooled_and_heavy_values_have_a_bin() -> None:
    table = d.bin_categories(["a"] * 50 + ["b"] * 3, ["a"] * 40 + ["c"] * 9 + ["d"])
    assert table.names == ("a", "other")
    assert table.reference.tolist() == [50, 3]
    assert table.current.tolist() == [40, 10]
    numbers = d.bin_numbers(np.array([0.0] * 90 + list(range(1, 11))), np.array([0.0] * 50 + [5.0] * 50))
    assert numbers.names[0] == "0"
    assert numbers.reference[0] == 90
    assert "5" in numbers.names


@given(
    st.lists(st.floats(-100, 100).map(lambda value: round(value, 1)), min_size=2, max_size=60),
    st.lists(st.floats(-100, 100).map(lambda value: round(value, 1)), min_size=2, max_size=60),
)
def test_whatever_the_numbers_bins_hold_them_all(one: list[float], two: list[float]) -> None:
    table = d.bin_numbers(np.asarray(one), np.asarray(two))
    assert table.reference.sum() == len(one)
    assert table.current.sum() == len(two)
    assert len(table.names) == len(set(table.names))
    assert float(d.psi(table.reference, table.current)) >= 0
    assert float(d.psi(table.reference, table.reference)) == 0
    assert float(d.ks(np.asarray(one), np.asarray(one))) == pytest.approx(0, abs=1e-6)
