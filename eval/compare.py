"""Two runs of one suite, sample by sample: the paired differences and what they amount to.

Owns: the join, which formula applies, and the comparison of overall, scorers and slices. Never: I/O, clocks, the
verdict's rule (verdict.py), a random generator of its own.

Which formula: binary scores asked once -> Tango's interval and McNemar; anything else -> BCa and the paired
permutation test; cases in clusters -> clustered t (40 clusters or more) or the cluster bootstrap, and a permutation of
clusters. SE and t are given beside them always.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
    gains, losses = int((d > 0).sum()), int((d < 0).sum())
    error = statistics.clustered_error(d, clusters) if clusters else statistics.plain_error(d)
    interval, test = _inference(d, clusters, _binary(a, b), alpha, rng)
    sd = _planning_sd(error.sd, len(pairs), error.se if clusters else 0.0)
    return Comparison(
        name=name,
        n=len(pairs),
        clusters=len(set(clusters)) if clusters else 0,
        baseline=side(a, clusters, alpha, rng),
        candidate=side(b, clusters, alpha, rng),
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
    )


def _inference(
    d: Array, clusters: Sequence[str] | None, binary: bool, alpha: float, rng: np.random.Generator
) -> tuple[Interval, statistics.Test]:
    if clusters:
        test = statistics.sign_flip(d, rng, clusters)
        if len(set(clusters)) < CLUSTERS_FOR_T:
            return statistics.cluster_bootstrap_t(d, clusters, alpha, rng), test
        if not d.any():
            return statistics.unseen_interval(len(set(clusters)), alpha), test
        return statistics.t_interval(statistics.clustered_error(d, clusters), alpha, "clustered t"), test
    if binary:
        gains, losses = int((d > 0).sum()), int((d < 0).sum())
        return statistics.tango(gains, losses, len(d), alpha), statistics.mcnemar(gains, losses)
    return statistics.bca(d, alpha, rng), statistics.sign_flip(d, rng)


def side(values: Array, clusters: Sequence[str] | None, alpha: float, rng: np.random.Generator) -> Side:
    """A version's mean score: clustered t where cases share clusters (Wilson over the clusters where all scores are
    equal), Wilson where binary, else percentile."""
    mean = float(values.mean())
    if clusters:
        count = len(set(clusters))
        if _binary(values) and np.ptp(values) == 0:  # no spread for a t; so many clusters that all said the same
            return Side(mean, statistics.wilson(round(mean * count), count, alpha))
        error = statistics.clustered_error(values, clusters)
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
    sd = _planning_sd(found.sd, found.n, found.se if found.clusters else 0.0)
    needed = [statistics.samples_needed(sd, distance, alpha, POWER) for distance in distances]
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


def analyse(
    pairs: Sequence[Pair],
    unpaired: Sequence[Unpaired],
    *,
    gates: Sequence[str],
    margin: float,
    alpha: float,
    rng: np.random.Generator,
) -> Result:
    """Compare overall, by scorer and by slice, and decide at the gates."""
    overall = compare(OVERALL, pairs, alpha=alpha, rng=rng)
    scorers = _grouped(pairs, "scorer", alpha, rng)
    slices = _grouped(pairs, "slice", alpha, rng)
    shared = statistics.benjamini_hochberg([one.p for one in slices])
    slices = tuple(replace(one, q=q) for one, q in zip(slices, shared, strict=True))
    by_name: Mapping[str, Comparison] = {one.name: one for one in scorers} | {OVERALL: overall}
    deciding = [by_name[name] for name in gates if name in by_name]
    adjusted = statistics.holm([one.p for one in deciding])
    decided = tuple(
        Gate(one, p, _verdict(one, p, alpha=alpha, margin=margin)) for one, p in zip(deciding, adjusted, strict=True)
    )
    unseen = [name for name in gates if name not in by_name]
    verdict = _final(decided, unseen, pairs, unpaired, margin)
    return Result(overall, scorers, slices, decided, verdict, tuple(unpaired))


def _final(
    decided: Sequence[Gate], unseen: Sequence[str], pairs: Sequence[Pair], unpaired: Sequence[Unpaired], margin: float
) -> Verdict:
    """The gates' verdict; no pass where a gate has no pair, or the candidate failed more than δ of the samples."""
    verdict = combine([(gate.comparison.name, gate.verdict) for gate in decided]) if decided else None
    if unseen and (verdict is None or verdict.kind != "worse"):
        return Verdict("inconclusive", f"inconclusive: not one sample of {', '.join(unseen)} could be paired")
    assert verdict is not None
    failed = sum(1 for one in unpaired if one.reason in CANDIDATES_FAULT)
    samples = failed + sum(pair.repeats for pair in pairs)
    if verdict.passed and failed > margin * samples:
        return Verdict(
            "inconclusive", f"inconclusive: {failed} of {samples} samples have no answer of the candidate, more than δ"
        )
    return verdict


def _verdict(found: Comparison, p: float, *, alpha: float, margin: float) -> Verdict:
    return decide(
        low=found.interval.low,
        high=found.interval.high,
        p=p,
        alpha=alpha,
        margin=margin,
        n=found.n,
        needed=samples_to_decide(found, alpha=alpha, margin=margin),
    )


def _grouped(pairs: Sequence[Pair], field: str, alpha: float, rng: np.random.Generator) -> tuple[Comparison, ...]:
    groups: dict[Any, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(getattr(pair, field), []).append(pair)
    return tuple(compare(str(name), group, alpha=alpha, rng=rng) for name, group in groups.items() if name)
