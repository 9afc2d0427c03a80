"""Did a window of traffic drift from its reference? The decision, with effects and what is still needed.

Owns: which test a feature gets, the verdict of each feature and kind, and which samples moved the score. Never: I/O,
clocks, a generator of its own (`rng` is passed in), the formulas (distances), windows' origin.

The verdict of a feature:

1. **inconclusive**: fewer than `samples_min` values on one side (`feedback_min` of feedback).
2. **act**: q ≤ alpha and the effect ≥ `act`. Feedback that became better is never more than watch.
3. **watch**: q ≤ alpha and the effect ≥ `watch`.
4. **inconclusive**: a window without drift would often show an effect of `watch` at these sizes, so that finding none
   means nothing; or the effect's interval still reaches `act`.
5. **none**: drift of the size of `act` is excluded, and any that there is is under `watch` or within chance.

The effect is the PSI less its mean under permuted labels; p is by permutation at the window's own sizes, of the larger
of KS and PSI for numbers, of χ² for categories, of MMD for embeddings; q is p adjusted over all features of the check.
With many samples tiny drifts become significant: they stay under `watch`. With few, chance makes large PSIs: they stay
over alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitoring import distances, distances_vectors
from monitoring.distances import Array, Labels, Table
from monitoring.features import EMBEDDINGS, FEATURES, Feature
from monitoring.windows import Drift, FeatureDrift, Move, Policy, Row, Suspect, Verdict, needed_for, worst

MOVES_MAX = 3
SAMPLES_MAX = 5
CLASSIFIER_RESAMPLES = 99
LOG_ODDS_MAX = 3.0
NEEDLESS = 1e-12


@dataclass(frozen=True, slots=True)
class _Side:
    """Both windows one after the other, with the labels and weights that all features share."""

    rows: Sequence[Row]
    split: int
    labels: Labels
    weights: Labels
    units: list[str]

    def having(self, values: Sequence[object]) -> tuple[NDArray[np.intp], int]:
        """Where there is a value, and how many of them are the reference's."""
        there = np.flatnonzero([value is not None for value in values])
        return there, int((there < self.split).sum())


@dataclass(frozen=True, slots=True)
class _Found:
    """A feature's result, and what each current sample adds to its score (current index -> (addend, value))."""

    result: FeatureDrift
    addends: Mapping[int, tuple[float, str]]


def check(
    model: str,
    version: str,
    reference: Sequence[Row],
    current: Sequence[Row],
    policy: Policy,
    rng: np.random.Generator,
    *,
    at: float,
    name: str = "",
    against: str = "",
) -> Drift:
    """Compare the windows. Neither needs to be of any size: too few samples are inconclusive."""
    rows = [*reference, *current]
    units = [row.unit or f"#{index}" for index, row in enumerate(rows)]
    found: list[_Found] = []
    if reference and current:
        size = (len(reference), len(current), rng, policy.resamples, units)
        both = _Side(rows, len(reference), distances.permutations(*size), distances.bootstrap_weights(*size), units)
        found += [one for feature in FEATURES if (one := _feature(feature, both, policy)) is not None]
        found += [one for feature in EMBEDDINGS if (one := _embedding(feature, both, policy, rng)) is not None]
    results = _judged([one.result for one in found], policy)
    kinds: dict[str, Verdict] = {
        kind: worst([one.verdict for one in results if one.kind == kind]) for kind in sorted({r.kind for r in results})
    }
    verdict = _overall(kinds)
    times = [row.at for row in current if row.at]
    return Drift(
        model=model,
        version=version,
        verdict=verdict,
        at=at,
        since=min(times, default=0.0),
        until=max(times, default=0.0),
        reference=name,
        against=against,
        reference_n=len(reference),
        current_n=len(current),
        needed=_needed(verdict, results, len(current), policy),
        kinds=kinds,
        features=sorted(results, key=_rank),
        samples=_suspects(found, rows),
    )


def _overall(kinds: Mapping[str, Verdict]) -> Verdict:
    """The worst of the kinds. Inputs or outputs that could not be judged are not "none" because feedback is."""
    found = worst(list(kinds.values()))
    traffic = [verdict for kind, verdict in kinds.items() if kind != "concept"]
    return "inconclusive" if found == "none" and "inconclusive" in traffic else found


def _needed(verdict: Verdict, results: Sequence[FeatureDrift], current: int, policy: Policy) -> int:
    """How many more samples make some verdict."""
    if verdict != "inconclusive":
        return 0
    traffic = [one.needed for one in results if one.kind != "concept"]
    return min(traffic, default=max(0, policy.samples_min - current))


def _rank(one: FeatureDrift) -> tuple[int, float]:
    order = ("act", "watch", "none", "inconclusive")
    return order.index(one.verdict), -(one.effect or 0.0)


def _values(feature: str, rows: Sequence[Row]) -> list[float | str | None]:
    if feature == "feedback":
        return [row.feedback for row in rows]
    return [row.features.get(feature) for row in rows]


def _feature(name: str, both: _Side, policy: Policy) -> _Found | None:
    """A number or a category; None where one side knows nothing of it."""
    feature = FEATURES[name]
    values = _values(name, both.rows)
    there, split = both.having(values)
    n, m = split, len(there) - split
    if not (n and m):
        return None
    least = policy.feedback_min if feature.kind == "concept" else policy.samples_min
    if min(n, m) < least:
        return _Found(_too_few(name, feature, n, m, least), {})
    labels = both.labels[:, there]
    usable = (labels.sum(axis=1) > 0) & (labels.sum(axis=1) < len(there))  # few units may all land on one side
    labels, weights = labels[usable], both.weights[:, there]
    known = [values[index] for index in there]
    if feature.scale == "category":
        texts = [str(value) for value in known]
        table = distances.bin_categories(texts[:split], texts[split:])
        p, test, statistics = _test_categories(table, labels)
    else:
        numbers = np.asarray(known, dtype=np.float64)
        table = distances.bin_numbers(numbers[:split], numbers[split:])
        p, test, statistics = _test_numbers(table, numbers[:split], numbers[split:], labels)
        if feature.kind == "concept":
            statistics |= _means(numbers[:split], numbers[split:], weights, policy.alpha)
    result = _measured(name, feature, table, labels, weights, policy)
    result.p, result.test, result.statistics = p, test, statistics
    ratios = distances.log_ratios(table)
    addends = {
        int(there[at]): (float(ratios[code]), _said(known[at]))
        for at, code in enumerate(table.codes.tolist())
        if at >= split
    }
    return _Found(result, addends)


def _too_few(name: str, feature: Feature, n: int, m: int, least: int) -> FeatureDrift:
    return FeatureDrift(
        feature=name,
        kind=feature.kind,
        scale=feature.scale,
        verdict="inconclusive",
        reference_n=n,
        current_n=m,
        needed=max(0, least - m),
        needed_reference=max(0, least - n),
    )


def _measured(
    name: str, feature: Feature, table: Table, labels: Labels, weights: Labels, policy: Policy
) -> FeatureDrift:
    """PSI with its noise and interval; step 4's question is answered here, the verdict is not."""
    n, m = int(table.reference.sum()), int(table.current.sum())
    psi = float(distances.psi(table.reference, table.current))
    permuted = distances.psi(*distances.permuted_counts(table, labels))
    noise = float(permuted.mean())
    low, high = distances.psi_interval(table, weights, policy.alpha)
    effect = max(0.0, psi - noise)
    needed, needed_reference = _until_excluded(effect, high, n, m, policy)
    if float(np.quantile(permuted, 1 - policy.alpha)) - noise > policy.watch:
        needed, needed_reference = needed_for(policy.watch, len(table.names), n, m)
        if not (needed or needed_reference):  # conversations count for less than their turns
            needed = m
    return FeatureDrift(
        feature=name,
        kind=feature.kind,
        scale=feature.scale,
        verdict="none",
        reference_n=n,
        current_n=m,
        needed=needed,
        needed_reference=needed_reference,
        psi=psi,
        noise=noise,
        effect=effect,
        low=low,
        high=high,
        moves=_moves(table),
    )


def _until_excluded(effect: float, high: float, n: int, m: int, policy: Policy) -> tuple[int, int]:
    """How many more samples of (current, reference) take an interval that reaches `act` under it, if the effect stays:
    its width goes with 1/√n."""
    if high < policy.act or effect >= policy.act:
        return 0, 0
    times = min(100.0, ((high - effect) / (policy.act - effect)) ** 2) - 1
    return max(1, math.ceil(times * m)), math.ceil(times * n) if n < 2 * m else 0


def _moves(table: Table) -> list[Move]:
    before, now = table.reference / table.reference.sum(), table.current / table.current.sum()
    order = np.argsort(-np.abs(now - before), kind="stable")[:MOVES_MAX]
    return [
        Move(table.names[index], float(before[index]), float(now[index]))
        for index in order
        if abs(now[index] - before[index]) > NEEDLESS
    ]


def _test_categories(table: Table, labels: Labels) -> tuple[float, str, dict[str, float]]:
    observed = float(distances.chi_square(table.reference, table.current))
    permuted = distances.chi_square(*distances.permuted_counts(table, labels))
    statistics = {
        "chi_square": observed,
        "jensen_shannon": distances.jensen_shannon(table.reference, table.current),
    }
    return distances.permutation_p(observed, permuted), "χ², permuted", statistics


def _test_numbers(
    table: Table, reference: Array, current: Array, labels: Labels
) -> tuple[float, str, dict[str, float]]:
    """KS sees shifts, PSI sees changes of shape: the more surprising of the two, at the p of that."""
    ks = distances.ks(reference, current)
    psi = float(distances.psi(table.reference, table.current))
    p = distances.joint_p(
        (ks, psi),
        (distances.ks_permuted(reference, current, labels), distances.psi(*distances.permuted_counts(table, labels))),
    )
    statistics = {
        "ks": ks,
        "wasserstein": distances.wasserstein(reference, current),
        "jensen_shannon": distances.jensen_shannon(table.reference, table.current),
    }
    return p, "KS and PSI, permuted", statistics


def _means(reference: Array, current: Array, weights: Labels, alpha: float) -> dict[str, float]:
    difference, low, high = distances.mean_difference(reference, current, weights, alpha)
    return {
        "mean_reference": float(reference.mean()),
        "mean_current": float(current.mean()),
        "mean_difference": difference,
        "mean_difference_low": low,
        "mean_difference_high": high,
    }


def _embedding(name: str, both: _Side, policy: Policy, rng: np.random.Generator) -> _Found | None:
    """Vectors: MMD decides whether, the classifier's AUC how far."""
    there, split = both.having([row.vectors.get(name) for row in both.rows])
    n, m = split, len(there) - split
    if not (n and m):
        return None
    feature = EMBEDDINGS[name]
    least = min(policy.samples_min, policy.vectors_max)
    if min(n, m) < least:
        return _Found(_too_few(name, feature, n, m, least), {})
    kept = np.concatenate([there[:split][: policy.vectors_max], there[split:][-policy.vectors_max :]])
    split = min(split, policy.vectors_max)
    vectors = np.asarray([both.rows[index].vectors[name] for index in kept], dtype=np.float64)
    labels = both.labels[:, kept]
    labels = labels[(labels.sum(axis=1) > 1) & (labels.sum(axis=1) < len(kept) - 1)]
    observed = np.zeros((1, len(kept)), dtype=np.float32)
    observed[:, split:] = 1.0
    kernel = distances_vectors.rbf_kernel(vectors)
    distance = float(distances_vectors.mmd(kernel, observed)[0])
    units = [both.units[index] for index in kept]
    n, m = split, len(kept) - split
    domain = distances_vectors.domain_classifier(vectors, split, labels[:CLASSIFIER_RESAMPLES], rng, units)
    low, high = distances_vectors.auc_interval(domain.auc, n, m, policy.alpha)
    effect, most = distances_vectors.auc_as_psi(domain.auc), distances_vectors.auc_as_psi(high)
    needed, needed_reference = _until_excluded(effect, most, n, m, policy)
    result = FeatureDrift(
        feature=name,
        kind=feature.kind,
        scale=feature.scale,
        verdict="none",
        reference_n=n,
        current_n=m,
        needed=needed,
        needed_reference=needed_reference,
        effect=effect,
        low=distances_vectors.auc_as_psi(low),
        high=most,
        p=distances.permutation_p(distance, distances_vectors.mmd(kernel, labels)),
        test="MMD, permuted",
        statistics={
            "mmd": distance,
            "auc": domain.auc,
            "auc_low": low,
            "auc_high": high,
            "auc_p": distances.permutation_p(domain.auc, domain.permuted),
        },
    )
    odds = np.clip(domain.scores, -LOG_ODDS_MAX, LOG_ODDS_MAX)
    addends = {int(kept[at]): (float(odds[at]), "unlike the reference") for at in range(split, len(kept))}
    return _Found(result, addends)


def _judged(results: list[FeatureDrift], policy: Policy) -> list[FeatureDrift]:
    """Give every result its q and its verdict, by the steps of the module's docstring."""
    tested = [one for one in results if one.p is not None]
    for one, q in zip(tested, distances.benjamini_hochberg([one.p or 0.0 for one in tested]), strict=True):
        one.q = q
        one.verdict = _verdict(one, q, policy)
        if one.verdict != "inconclusive":
            one.needed = one.needed_reference = 0
    return results


def _verdict(one: FeatureDrift, q: float, policy: Policy) -> Verdict:
    effect = one.effect or 0.0
    sure = q <= policy.alpha
    better = one.kind == "concept" and one.statistics["mean_difference"] > 0
    if sure and effect >= policy.act and not better:
        return "act"  # 2
    if sure and effect >= policy.watch:
        return "watch"  # 3
    if one.needed or one.needed_reference:
        return "inconclusive"  # 4
    return "none"  # 5


def _suspects(found: Sequence[_Found], rows: Sequence[Row]) -> list[Suspect]:
    """The current samples that add most to the features that moved."""
    scores: dict[int, list[tuple[float, str]]] = {}
    for one in found:
        if one.result.verdict not in ("watch", "act"):
            continue
        for index, (addend, value) in one.addends.items():
            scores.setdefault(index, []).append((addend, f"{one.result.feature} {value}"))
    totals = sorted(((sum(addend for addend, _ in parts), index) for index, parts in scores.items()), reverse=True)
    return [
        Suspect(
            id=rows[index].id,
            score=total,
            why=[why for addend, why in sorted(scores[index], reverse=True)[:MOVES_MAX] if addend > 0],
            at=rows[index].at,
            text=rows[index].text,
        )
        for total, index in totals[:SAMPLES_MAX]
        if total > 0
    ]


def _said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
