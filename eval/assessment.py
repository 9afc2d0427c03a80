"""Finished runs put side by side: everything that `eval compare` reports.

Owns: gathering scores, flips, drift, noise floor, speed and cost of a baseline and its candidates. Never: running a
suite, printing, the formulas (compare.py, drift.py, performance.py, costs.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from eval import compare, costs, drift, embeddings, endpoint, performance, statistics
from eval.compare import Answer, Result
from eval.drift import Drift
from eval.errors import RunError
from eval.floors import Floor
from eval.performance import Performance
from eval.results import Run, Sample, Subject
from eval.scorers.language import language_of
from eval.statistics import Interval

Samples = Mapping[tuple[str, int], Sample]

RATIO_SAMPLES_MIN: Final = 5
"""Under so many pairs no ratio is given: its interval would mean nothing."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A case that the two versions answered differently well."""

    case: str
    scorer: str
    prompt: str
    target: str
    baseline: str
    candidate: str
    baseline_score: float
    candidate_score: float
    repeat: int = 0
    slice: str = ""
    baseline_detail: str = ""
    candidate_detail: str = ""

    @property
    def gained(self) -> bool:
        return self.candidate_score > self.baseline_score


@dataclass(frozen=True, slots=True)
class Cost:
    """A unit cost as the admin API states it, of all traffic that the version has had."""

    basis: str
    method: str
    currency: str
    per_1k_requests: float


@dataclass(frozen=True, slots=True)
class RunCost:
    """What the run itself cost, on one basis."""

    basis: str
    method: str
    currency: str
    total: float
    answered: int
    """The answers that `total` paid for."""
    per_1k_requests: float | None
    per_correct: float | None
    """Cost per right answer: cost per answer / mean score of the answers; None where not one was right."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Candidate / baseline of a mean per answer, over the samples that both engines answered themselves."""

    name: str
    """`time to first token`, `latency`, `output tokens`, `engine time`."""
    unit: str
    n: int
    baseline: float
    candidate: float
    ratio: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Party:
    """One side of the comparison."""

    subject: Subject
    run: Run
    performance: Performance
    costs: tuple[Cost, ...]
    spent: tuple[RunCost, ...] = ()
    """What this run cost, by basis."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """The comparison of one candidate, decided together with the others of its family."""

    baseline: Party
    candidate: Party
    result: Result
    flips: tuple[Flip, ...]
    drift: Drift | None
    floor: Floor | None
    """What the baseline does against itself (A/A), where that was ever measured."""
    ratios: tuple[Ratio, ...] = ()
    """Speed and engine time, paired. `engine time` per answer is what cost is proportional to on one device."""
    family: int = 1
    """Candidates that were compared with the baseline at once."""


def assess(
    baseline: Party,
    candidate: Party,
    *,
    twin: Run | None = None,
    floor: Floor | None = None,
    gates: Sequence[str],
    margin: float,
    alpha: float,
    seed: int,
) -> Assessment:
    """Compare the runs of two parties. Raises RunError where not one sample can be paired.

    The noise floor is `floor`, else measured with `twin`, the baseline's finished second run.
    """
    if floor is None and twin is not None:
        floor = measure_floor(baseline.run, twin, alpha=alpha, seed=seed)
    return assess_all(baseline, [candidate], floor=floor, gates=gates, margin=margin, alpha=alpha, seed=seed)[0]


def assess_all(
    baseline: Party,
    candidates: Sequence[Party],
    *,
    floor: Floor | None,
    gates: Sequence[str],
    margin: float,
    alpha: float,
    seed: int,
    with_drift: bool = True,
) -> list[Assessment]:
    """Compare each candidate's run with the baseline's, and decide on them as one family. The drift of outputs, which
    takes longer than all the rest, can be left out where nobody reads it.

    Raises RunError where not one sample of a candidate can be paired.
    """
    left = baseline.run.samples()
    rng = np.random.default_rng(seed)
    runs = [candidate.run.samples() for candidate in candidates]
    measured = []
    for candidate, right in zip(candidates, runs, strict=True):
        pairs, unpaired = compare.join(answers(left), answers(right))
        if not pairs:
            reason = unpaired[0].reason if unpaired else "both runs are empty"
            raise RunError(f"no sample of {baseline.run.name} and {candidate.run.name} can be paired ({reason})")
        measured.append(compare.measure(pairs, unpaired, alpha=alpha, rng=rng, family=len(candidates)))
    results = compare.decide_all(measured, gates=gates, margin=margin, alpha=alpha)
    embedder = (embeddings.load() or embeddings.FALLBACK) if with_drift else None
    return [
        Assessment(
            baseline=baseline,
            candidate=candidate,
            result=result,
            flips=tuple(flips(left, right)),
            drift=measure_drift(left, right, embedder, alpha, rng) if embedder is not None else None,
            floor=floor,
            ratios=tuple(ratios(left, right, alpha / len(candidates), rng)),
            family=len(candidates),
        )
        for candidate, right, result in zip(candidates, runs, results, strict=True)
    ]


def answers(samples: Samples) -> list[Answer]:
    """The samples as the comparison needs them."""
    return [
        Answer(
            one.case,
            one.repeat,
            one.scorer,
            one.score,
            one.prompt_digest,
            one.target_digest,
            one.slice,
            one.cluster,
            one.weight,
        )
        for one in samples.values()
    ]


def flips(left: Samples, right: Samples) -> list[Flip]:
    """The samples with different scores: losses first, the largest first; one per case."""
    found: dict[str, Flip] = {}
    for flip in _pairs(left, right):
        if flip.baseline_score != flip.candidate_score:
            found.setdefault(flip.case, flip)
    return sorted(found.values(), key=lambda flip: (flip.gained, -abs(flip.candidate_score - flip.baseline_score)))


def side_by_side(left: Samples, right: Samples, case: str) -> list[Flip]:
    """Every repeat of a case that both have a score for, whether it flipped or not."""
    return [flip for flip in _pairs(left, right) if flip.case == case]


def _pairs(left: Samples, right: Samples) -> Iterator[Flip]:
    for key in sorted(left.keys() & right.keys()):
        a, b = left[key], right[key]
        if a.score is None or b.score is None or a.prompt_digest != b.prompt_digest:
            continue
        yield Flip(
            case=a.case,
            scorer=a.scorer,
            prompt=a.prompt,
            target=a.target,
            baseline=a.output,
            candidate=b.output,
            baseline_score=a.score,
            candidate_score=b.score,
            repeat=a.repeat,
            slice=a.slice,
            baseline_detail=a.detail,
            candidate_detail=b.detail,
        )


def measure_drift(
    left: Samples, right: Samples, embedder: embeddings.Embedder, alpha: float, rng: np.random.Generator
) -> Drift | None:
    """The text-level drift between two runs' samples."""
    return drift.measure(
        list(left.values()),
        list(right.values()),
        embed=embedder.embed,
        embed_name=embedder.name,
        semantic=embedder.semantic,
        alpha=alpha,
        rng=rng,
        language=language_of,
    )


def measure_floor(left: Run, twin: Run, *, alpha: float, seed: int) -> Floor | None:
    """What a version does against itself: a run and its second run. None where no sample of them can be paired."""
    samples, again = left.samples(), twin.samples()
    embedder = embeddings.load() or embeddings.FALLBACK
    rng = np.random.default_rng(seed)
    pairs, _ = compare.join(answers(samples), answers(again))
    distance = measure_drift(samples, again, embedder, alpha, rng)
    if not pairs or distance is None:
        return None
    found = compare.compare("A/A", pairs, alpha=alpha, rng=rng)
    return Floor(
        run=twin.name,
        discordance=found.discordance,
        exact_match=distance.exact_match.value,
        distance=distance.distance.value,
        difference=found.difference,
        bound=max(abs(found.interval.low), abs(found.interval.high)) if found.discordance else 0.0,
        n=found.n,
    )


def ratios(left: Samples, right: Samples, alpha: float, rng: np.random.Generator) -> list[Ratio]:
    """Candidate / baseline of what an answer took, paired, with intervals. Answers from the cache took nothing."""
    shares = _engine_time(left), _engine_time(right)
    both = sorted(shares[0].keys() & shares[1].keys())
    if len(both) < RATIO_SAMPLES_MIN:
        return []
    columns: list[tuple[str, str, list[float | None], list[float | None]]] = [
        ("time to first token", "s", [left[key].ttft_s for key in both], [right[key].ttft_s for key in both]),
        ("latency", "s", [left[key].latency_s for key in both], [right[key].latency_s for key in both]),
        (
            "output tokens",
            "tokens",
            [float(left[key].completion_tokens) for key in both],
            [float(right[key].completion_tokens) for key in both],
        ),
        ("engine time", "s", [shares[0][key] for key in both], [shares[1][key] for key in both]),
    ]
    found = []
    for name, unit, a, b in columns:
        known = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
        below, above = np.array([x for x, _ in known]), np.array([y for _, y in known])
        if len(known) < RATIO_SAMPLES_MIN or not below.sum() > 0:
            continue
        interval = statistics.ratio_interval(above, below, alpha, rng)
        mean = float(below.mean()), float(above.mean())
        found.append(Ratio(name, unit, len(known), *mean, mean[1] / mean[0], interval))
    return found


def _engine_time(samples: Samples) -> dict[tuple[str, int], float]:
    """Sample -> its share of the run's busy time, of the samples that the engine answered."""
    asked = {key: one for key, one in samples.items() if not one.error and not one.cached and one.latency_s > 0}
    spans = [(one.started_at, one.started_at + one.latency_s) for one in asked.values()]
    return dict(zip(asked, performance.busy_shares(spans), strict=True))


def party(subject: Subject, run: Run, where: endpoint.Endpoint | None) -> Party:
    """One side, with its speed and, where an admin API tells it, its cost."""
    unit_costs = _costs(where, subject) if where is not None and subject.digest else ()
    samples = list(run.samples().values())
    return Party(subject, run, performance.measure(samples), unit_costs, run_costs(run, samples))


def run_costs(run: Run, samples: Sequence[Sample]) -> tuple[RunCost, ...]:
    """What the run's own requests cost, per basis."""
    answered = sum(1 for sample in samples if not sample.error and not sample.cached)
    right = costs.right_answers(samples)
    return tuple(
        RunCost(
            basis=one.basis,
            method=one.method,
            currency=one.currency,
            total=one.amount,
            answered=one.answered,
            per_1k_requests=one.per_1k_requests,
            per_correct=one.amount / one.answered / (right / answered) if right and one.answered else None,
        )
        for one in run.info().costs
    )


def _costs(where: endpoint.Endpoint, subject: Subject) -> tuple[Cost, ...]:
    statement = endpoint.admin_get(where, "cost")
    rows: Any = statement.get("unit_costs") if isinstance(statement, dict) else None
    return tuple(
        Cost(str(row["basis"]), str(row["method"]), str(row["currency"]), float(row["per_1k_requests"]))
        for row in rows or []
        if row.get("version") == subject.model and row.get("per_1k_requests") is not None
    )
