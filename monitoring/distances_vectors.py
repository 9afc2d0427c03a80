"""How far two samples of embeddings are apart, and how surely: MMD, a domain classifier, topics.

Owns: the arithmetic for vectors. Never: making vectors, I/O, a generator of its own (`rng` is passed in).

Sources: Gretton et al. 2012 (JMLR 13:723) for the unbiased MMD² with an RBF kernel and the median heuristic; Lopez-Paz
and Oquab 2017 (ICLR) for classifiers as two-sample tests; Hanley and McNeil 1982 (Radiology 143:29) for the standard
error of an AUC. All that is learnt of the vectors before the test (components, clusters, folds) is learnt without the
labels, and the classifier anew under each permutation, so that both tests are exact.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from monitoring.distances import Array, Labels

COMPONENTS: Final = 16
"""Principal components that the classifier sees."""
FOLDS: Final = 3
TOPICS: Final = 8
_MEDIAN_PAIRS: Final = 1000


@dataclass(frozen=True, slots=True)
class Domain:
    """What a classifier that tells the current sample from the reference achieves out of its training folds."""

    auc: float
    scores: Array
    """Log-odds of each sample, the reference's first; those of the current sample are high where it is new."""
    permuted: Array
    """AUCs under the labellings."""


def squared_distances(vectors: Array) -> Array:
    """Squared Euclidean distances of all pairs, n x n."""
    norms = (vectors**2).sum(axis=1)
    apart: Array = np.maximum(norms[:, None] + norms[None, :] - 2 * vectors @ vectors.T, 0.0)
    return apart


def median_bandwidth(apart: Array) -> float:
    """The median of the pairs' squared distances, over _MEDIAN_PAIRS samples taken evenly; 1 where it is 0."""
    step = max(1, len(apart) // _MEDIAN_PAIRS)
    some = apart[::step, ::step]
    found = float(np.median(some[np.triu_indices(len(some), k=1)]))
    return found if found > 0 else 1.0


def mmd(kernel: Array, labels: Labels) -> Array:
    """Unbiased MMD² for each row of labels (1: current), from the kernel matrix of all samples."""
    without = kernel.astype(np.float32).copy()
    np.fill_diagonal(without, 0.0)
    m = labels.sum(axis=1, dtype=np.float64)
    n = len(kernel) - m
    to_current = labels @ without
    both = (to_current * labels).sum(axis=1, dtype=np.float64)
    of_current = to_current.sum(axis=1, dtype=np.float64)
    neither = float(without.sum(dtype=np.float64)) - 2 * of_current + both
    found: Array = both / (m * (m - 1)) + neither / (n * (n - 1)) - 2 * (of_current - both) / (m * n)
    return found


def rbf_kernel(vectors: Array) -> Array:
    """exp(-‖x - y‖² / median): the median heuristic's kernel of the pooled samples."""
    apart = squared_distances(vectors)
    kernel: Array = np.exp(-apart / median_bandwidth(apart))
    return kernel


def domain_classifier(
    vectors: Array, split: int, labels: Labels, rng: np.random.Generator, units: Sequence[Any] | None = None
) -> Domain:
    """Cross-validated logistic regression; the first `split` vectors are the reference's. Units share a fold."""
    components = _components(vectors)
    names = list(dict.fromkeys(units)) if units is not None else list(range(len(vectors)))
    fold_of = dict(zip(names, rng.permutation(len(names)) % FOLDS, strict=True))
    folds = np.fromiter((fold_of[unit] for unit in (units or names)), dtype=np.intp, count=len(vectors))
    truth = np.zeros(len(vectors))
    truth[split:] = 1.0
    auc, scores = _cross_validated(components, truth, folds)
    permuted = np.asarray([_cross_validated(components, row.astype(np.float64), folds)[0] for row in labels])
    return Domain(auc, scores, permuted)


def auc_interval(auc: float, reference: int, current: int, alpha: float) -> tuple[float, float]:
    """Hanley and McNeil's interval, within [0, 1]."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (current - 1) * (q1 - auc**2) + (reference - 1) * (q2 - auc**2)
    half = float(stats.norm.ppf(1 - alpha / 2)) * math.sqrt(max(0.0, variance) / (reference * current))
    return max(0.0, auc - half), min(1.0, auc + half)


def auc_as_psi(auc: float) -> float:
    """The PSI of two normal distributions of one variance that a threshold tells apart with this AUC: with
    AUC = Φ(d / √2) it is d². So an embedding's effect is on the scale of every other feature's."""
    return 2 * float(stats.norm.ppf(min(max(auc, 0.5), 1 - 1e-6))) ** 2


def topics(vectors: Array, rng: np.random.Generator, count: int = TOPICS) -> tuple[NDArray[np.intp], list[int]]:
    """The cluster of each vector, and the vector nearest to each cluster's centre. K-means without the labels."""
    clusters = importlib.import_module("sklearn.cluster")  # 1.7 s, for those who have embeddings
    count = min(count, len(np.unique(vectors, axis=0)))
    model = clusters.KMeans(n_clusters=count, n_init=3, random_state=int(rng.integers(2**31)))
    apart = model.fit_transform(vectors)
    return apart.argmin(axis=1), [int(index) for index in apart.argmin(axis=0)]


def _components(vectors: Array) -> Array:
    """The first principal components, in units of the first one's spread."""
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(COMPONENTS, len(sizes))
    spread = float(sizes[0]) / math.sqrt(len(vectors)) or 1.0
    found: Array = left[:, :kept] * sizes[:kept] / spread
    return found


def _cross_validated(components: Array, truth: Array, folds: NDArray[np.intp]) -> tuple[float, Array]:
    """The mean AUC over folds, and every sample's log-odds by the model that was not trained on it."""
    linear = importlib.import_module("sklearn.linear_model")
    scores = np.zeros(len(truth))
    found: list[float] = []
    for fold in range(FOLDS):
        held = folds == fold
        if len(np.unique(truth[~held])) < 2:
            continue
        model = linear.LogisticRegression(solver="newton-cholesky", max_iter=50).fit(components[~held], truth[~held])
        scores[held] = model.decision_function(components[held])
        if len(np.unique(truth[held])) == 2:
            found.append(_auc(truth[held], scores[held]))
    return (float(np.mean(found)) if found else 0.5), scores


def _auc(truth: Array, scores: Array) -> float:
    """The chance that a current sample scores above a reference one: Mann-Whitney's U over its largest value."""
    ranks = stats.rankdata(scores)
    m = float(truth.sum())
    n = len(truth) - m
    return float((ranks[truth == 1].sum() - m * (m + 1) / 2) / (m * n))
