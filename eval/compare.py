"""Two runs of one suite, sample by sample: the paired differences and what they amount to.

Owns: the join, which formula applies, and the comparison of overall, scorers and slices. Never: I/O, clocks, the
verdict's rule (verdict.py), a random generator of its own.

Which formula: binary scores asked once -> Tango's interval and McNemar; anything else -> BCa and the paired
permutation test; cases in clusters -> clustered t (40 clusters or more) or the cluster bootstrap, and a permutation of
clusters. Where weights differ, means are weighted and binary scores are treated like any other. SE and t are given
beside them always.

Several candidates against one baseline are one family: their intervals are simultaneous (each at 1 - alpha divided by
their number) and their p-values Holm-adjusted over candidates x gates, so that the chance of calling any candidate
better, worse or non-inferior wrongly stays where it is for one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from eval import statistics
from eval.statistics import Array, Interval
from eval.suite import OVERALL
from eval.verdict import Verdict, combine, decide

CLUSTERS_FOR_T: Final = 40
POWER: Final = 0.8
CANDIDATES_FAULT: Final = ("missing in the candidate", "failed in the candidate")
"""Reasons why a sample is unpaired that speak against the candidate: the baseline answered it."""
TYPICAL_DISCORDANCE: Final = 0.08
"""Share of samples that two close versions answer differently; for the plan, where nothing better is known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample as the comparison needs it."""

    case: str
    repeat: int
    scorer: str
    score: float | None
    prompt_digest: str
    target_digest: str
    slice: str = ""
    cluster: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A sample that has no usable counterpart, and why."""

    case: str
    repeat: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One case answered by both: mean scores over the repeats that both have."""

    case: str
    scorer: str
    slice: str
    cluster: str
    baseline: float
    candidate: float
    repeats: int
    weight: float = 1.0

    @property
    def difference(self) -> float:
        return self.candidate - self.baseline


def join(baseline: Iterable[Answer], candidate: Iterable[Answer]) -> tuple[list[Pair], list[Unpaired]]:
    """Pair the answers on (case, repeat). Whatever cannot be paired is returned with its reason, never dropped."""
    left = {(answer.case, answer.repeat): answer for answer in baseline}
    right = {(answer.case, answer.repeat): answer for answer in candidate}
    unpaired: list[Unpaired] = []
    scores: dict[str, list[tuple[Answer, float, float]]] = {}
    for key in sorted(left.keys() | right.keys()):
        a, b = left.get(key), right.get(key)
        reason = _why_not(a, b)
        if reason or a is None or b is None or a.score is None or b.score is None:
            unpaired.append(Unpaired(*key, reason))
            continue
        scores.setdefault(key[0], []).append((a, a.score, b.score))
    pairs = []
    for case, found in scores.items():
        first = found[0][0]
        pairs.append(
            Pair(
                case,
                first.scorer,
                first.slice,
                first.cluster,
                math.fsum(a for _, a, _ in found) / len(found),
                math.fsum(b for *_, b in found) / len(found),
                len(found),
                first.weight,
            )
        )
    return pairs, unpaired


def _why_not(a: Answer | None, b: Answer | None) -> str:
    if a is None or b is None:
        return "missing in the baseline" if a is None else "missing in the candidate"
    if a.prompt_digest != b.prompt_digest:
        return "the prompts differ"
    if a.target_digest != b.target_digest:
        return "the targets differ"
    sides = [name for name, answer in (("baseline", a), ("candidate", b)) if answer.score is None]
    return f"failed in the {' and the '.join(sides)}" if sides else ""


@dataclass(frozen=True, slots=True)
class Side:
    """One version's mean score."""

    mean: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired comparison over one group of cases: overall, of one scorer, or of one slice."""

    name: str
    n: int
    clusters: int
    """0 where the cases are independent."""
    baseline: Side
    candidate: Side
    difference: float
    interval: Interval
    se: float
    t: float | None
    df: int
    p: float
    test: str
    sd: float
    """Of the differences."""
    gains: int
    """Cases that the candidate scored higher."""
    losses: int
    detectable: float
    """The minimum detectable effect at this n and spread."""
    planning_sd: float = 0.0
    """The sd that n independent cases of equal weight would need for the same error: what N is planned with."""
    q: float | None = None
    """Of a slice: p adjusted over all slices (Benjamini-Hochberg); many slices show some small p by chance."""

    @property
    def discordance(self) -> float:
        """The share of cases with different scores."""
        return (self.gains + self.losses) / self.n


def compare(name: str, pairs: Sequence[Pair], *, alpha: float, rng: np.random.Generator) -> Comparison:
    """Compare one group. `pairs` must not be empty."""
    if not pairs:
        raise ValueError(f"no pair to compare in {name}")
    a = np.array([pair.baseline for pair in pairs])
    b = np.array([pair.candidate for pair in pairs])
    d = b - a
    clusters = _clusters(pairs)
    weights = uneven([pair.weight for pair in pairs])
    gains, losses = int((d > 0).sum()), int((d < 0).sum())
    error = statistics.clustered_error(d, clusters or range(len(d)), weights)
    interval, test = _inference(d, clusters, weights, _binary(a, b), alpha, rng)
    design_se = error.se if clusters or weights is not None else 0.0
    sd = _planning_sd(error.sd, len(pairs), design_se)
    return Comparison(
        name=name,
        n=len(pairs),
        clusters=len(set(clusters)) if clusters else 0,
        baseline=side(a, clusters, alpha, rng, weights),
        candidate=side(b, clusters, alpha, rng, weights),
        difference=error.mean,
        interval=_bounded(interval),
        se=error.se,
        t=error.mean / error.se if error.se else None,
        df=error.df,
        p=test.p,
        test=test.method,
        sd=error.sd,
        gains=gains,
        losses=losses,
        detectable=statistics.minimum_detectable_effect(sd, len(pairs), alpha, POWER),
        planning_sd=sd,
    )


def uneven(weights: Sequence[float]) -> Array | None:
    """The weights where they differ; None where every case counts the same."""
    found = np.array(weights, dtype=np.float64)
    return None if np.ptp(found) == 0 else found


def _inference(
    d: Array,
    clusters: Sequence[str] | None,
    weights: Array | None,
    binary: bool,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Interval, statistics.Test]:
    if clusters:
        test = statistics.sign_flip(d, rng, clusters, weights=weights)
        if len(set(clusters)) < CLUSTERS_FOR_T:
            return statistics.cluster_bootstrap_t(d, clusters, alpha, rng, weights=weights), test
        if not d.any():
            return statistics.unseen_interval(len(set(clusters)), alpha), test
        return statistics.t_interval(statistics.clustered_error(d, clusters, weights), alpha, "clustered t"), test
    if weights is not None:
        return statistics.bca(d, alpha, rng, weights=weights), statistics.sign_flip(d, rng, weights=weights)
    if binary:
        gains, losses = int((d > 0).sum()), int((d < 0).sum())
        return statistics.tango(gains, losses, len(d), alpha), statistics.mcnemar(gains, losses)
    return statistics.bca(d, alpha, rng), statistics.sign_flip(d, rng)


def side(
    values: Array,
    clusters: Sequence[str] | None,
    alpha: float,
    rng: np.random.Generator,
    weights: Array | None = None,
) -> Side:
    """A version's mean score: clustered t where cases share clusters (Wilson over the clusters where all scores are
    equal), Wilson where binary, else percentile. Weighted: percentile, or Wilson by Kish's n where all are equal."""
    mean = float(values.mean() if weights is None else np.average(values, weights=weights))
    if weights is not None and not clusters:
        if _binary(values) and np.ptp(values) == 0:
            count = max(1, round(statistics.kish(weights)))
            return Side(mean, statistics.wilson(round(mean * count), count, alpha))
        return Side(mean, statistics.percentile_bootstrap(values, alpha, rng, weights=weights))
    if clusters:
        count = len(set(clusters))
        if _binary(values) and np.ptp(values) == 0:  # no spread for a t; so many clusters that all said the same
            return Side(mean, statistics.wilson(round(mean * count), count, alpha))
        error = statistics.clustered_error(values, clusters, weights)
        return Side(mean, _bounded(statistics.t_interval(error, alpha, "clustered t"), 0.0))
    if _binary(values):
        return Side(mean, statistics.wilson(int(values.sum()), len(values), alpha))
    return Side(mean, statistics.percentile_bootstrap(values, alpha, rng))


def _binary(*columns: Array) -> bool:
    return all(bool(np.isin(column, (0.0, 1.0)).all()) for column in columns)


def _clusters(pairs: Sequence[Pair]) -> list[str] | None:
    """A cluster's name per pair, a case without one standing for itself; None where no two pairs share one."""
    names = [f"c:{pair.cluster}" if pair.cluster else f"i:{pair.case}" for pair in pairs]
    return names if len(set(names)) < len(names) else None


def _bounded(interval: Interval, low: float = -1.0) -> Interval:
    """Scores lie between 0 and 1, so differences between -1 and 1."""
    return Interval(max(low, interval.low), min(1.0, interval.high), interval.method)


def _planning_sd(sd: float, n: int, clustered_se: float = 0.0) -> float:
    """For planning, never 0: as if one sample in n + 1 differed. With clusters, the sd that n independent samples would
    need for the same SE, where that is larger."""
    return max(sd, math.sqrt(1 / (n + 1)), clustered_se * math.sqrt(n))


def planned_effects(n: int, alpha: float, discordances: Sequence[float]) -> list[tuple[float, float]]:
    """Before running: (share of samples that flip, minimum detectable effect) with n binary samples, sd = √share."""
    return [(share, statistics.minimum_detectable_effect(math.sqrt(share), n, alpha, POWER)) for share in discordances]


def samples_to_decide(found: Comparison, *, alpha: float, margin: float) -> int | None:
    """The n at which the observed difference would be decided with power POWER, whichever way is nearest.

    Distances: to -δ from above (non-inferior), to 0 from below (worse), to 0 from above (better).
    """
    d = found.difference
    distances = [abs(d)] if d else []
    if d > -margin:
        distances.append(d + margin)
    needed = [statistics.samples_needed(found.planning_sd, distance, alpha, POWER) for distance in distances]
    known = [count for count in needed if count is not None]
    return min(known) if known else None


@dataclass(frozen=True, slots=True)
class Gate:
    """A comparison that decides, with its Holm-adjusted p and its verdict."""

    comparison: Comparison
    p_adjusted: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that a comparison of two runs found."""

    overall: Comparison
    scorers: tuple[Comparison, ...]
    slices: tuple[Comparison, ...]
    gates: tuple[Gate, ...]
    verdict: Verdict
    unpaired: tuple[Unpaired, ...]
    failed: int = 0
    """Samples that the baseline answered and the candidate did not."""
    samples: int = 0
    """These and the paired ones."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One candidate's comparison, before anything is adjusted or decided."""

    pairs: tuple[Pair, ...]
    unpaired: tuple[Unpaired, ...]
    overall: Comparison
    scorers: tuple[Comparison, ...]
    slices: tuple[Comparison, ...]


def analyse(
    pairs: Sequence[Pair],
    unpaired: Sequence[Unpaired],
    *,
    gates: Sequence[str],
    margin: float,
    alpha: float,
    rng: np.random.Generator,
) -> Result:
    """Compare one candidate overall, by scorer and by slice, and decide at the gates."""
    measured = measure(pairs, unpaired, alpha=alpha, rng=rng)
    return decide_all([measured], gates=gates, margin=margin, alpha=alpha)[0]


def measure(
    pairs: Sequence[Pair],
    unpaired: Sequence[Unpaired],
    *,
    alpha: float,
    rng: np.random.Generator,
    family: int = 1,
) -> Measured:
    """One of `family` candidates compared: intervals at 1 - alpha / family."""
    level = alpha / family
    return Measured(
        tuple(pairs),
        tuple(unpaired),
        compare(OVERALL, pairs, alpha=level, rng=rng),
        _grouped(pairs, "scorer", level, rng),
        _grouped(pairs, "slice", level, rng),
    )


def decide_all(found: Sequence[Measured], *, gates: Sequence[str], margin: float, alpha: float) -> list[Result]:
    """Decide on all candidates of a family: Holm over candidates x gates, Benjamini-Hochberg over candidates x slices.

    `found` must have been measured with `family=len(found)`.
    """
    level = alpha / len(found)
    deciding = [[one for one in _named(each).items() if one[0] in gates] for each in found]
    adjusted = iter(statistics.holm([one.p for each in deciding for _, one in each]))
    shared = iter(statistics.benjamini_hochberg([one.p for each in found for one in each.slices]))
    results = []
    for each, candidates_gates in zip(found, deciding, strict=True):
        slices = tuple(replace(one, q=next(shared)) for one in each.slices)
        decided = tuple(
            Gate(one, p, _verdict(one, p, alpha=alpha, level=level, margin=margin))
            for one, p in [(one, next(adjusted)) for _, one in candidates_gates]
        )
        unseen = [name for name in gates if name not in _named(each)]
        verdict = _final(decided, unseen, *_failures(each), margin)
        results.append(Result(each.overall, each.scorers, slices, decided, verdict, each.unpaired, *_failures(each)))
    return results


def _named(found: Measured) -> dict[str, Comparison]:
    return {one.name: one for one in found.scorers} | {OVERALL: found.overall}


def _failures(found: Measured) -> tuple[int, int]:
    """Samples that the candidate left unanswered, and all that count."""
    failed = sum(1 for one in found.unpaired if one.reason in CANDIDATES_FAULT)
    return failed, failed + sum(pair.repeats for pair in found.pairs)


def _final(decided: Sequence[Gate], unseen: Sequence[str], failed: int, samples: int, margin: float) -> Verdict:
    """The gates' verdict; no pass where a gate has no pair, or the candidate failed more than δ of the samples."""
    verdict = combine([(gate.comparison.name, gate.verdict) for gate in decided]) if decided else None
    if unseen and (verdict is None or verdict.kind != "worse"):
        return Verdict("inconclusive", f"inconclusive: not one sample of {', '.join(unseen)} could be paired")
    assert verdict is not None
    if verdict.passed and failed > margin * samples:
        return Verdict(
            "inconclusive", f"inconclusive: {failed} of {samples} samples have no answer of the candidate, more than δ"
        )
    return verdict


def _verdict(found: Comparison, p: float, *, alpha: float, level: float, margin: float) -> Verdict:
    return decide(
        low=found.interval.low,
        high=found.interval.high,
        p=p,
        alpha=alpha,
        margin=margin,
        n=found.n,
        needed=samples_to_decide(found, alpha=level, margin=margin),
    )


def _grouped(pairs: Sequence[Pair], field: str, alpha: float, rng: np.random.Generator) -> tuple[Comparison, ...]:
    groups: dict[Any, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(getattr(pair, field), []).append(pair)
    return tuple(compare(str(name), group, alpha=alpha, rng=rng) for name, group in groups.items() if name)
