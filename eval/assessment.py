"""Two finished runs put side by side: everything that `eval compare` reports.

Owns: gathering scores, flips, drift, noise floor, speed and cost of two runs. Never: running a suite, printing, the
formulas (compare.py, drift.py, performance.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval import compare, drift, embeddings, endpoint, performance
from eval.compare import Answer, Result
from eval.drift import Drift
from eval.errors import RunError
from eval.performance import Performance
from eval.results import Run, Sample, Subject

Samples = Mapping[tuple[str, int], Sample]


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

    @property
    def gained(self) -> bool:
        return self.candidate_score > self.baseline_score


@dataclass(frozen=True, slots=True)
class Floor:
    """What the baseline does against itself (A/A): the noise that any difference has to rise above."""

    run: str
    discordance: float
    exact_match: float
    distance: float


@dataclass(frozen=True, slots=True)
class Cost:
    """A unit cost as the admin API states it, of all traffic that the version has had."""

    basis: str
    method: str
    currency: str
    per_1k_requests: float


@dataclass(frozen=True, slots=True)
class Party:
    """One side of the comparison."""

    subject: Subject
    run: Run
    performance: Performance
    costs: tuple[Cost, ...]


@dataclass(frozen=True, slots=True)
class Assessment:
    """The whole comparison."""

    baseline: Party
    candidate: Party
    result: Result
    flips: tuple[Flip, ...]
    drift: Drift | None
    floor: Floor | None


def assess(
    baseline: Party,
    candidate: Party,
    *,
    twin: Run | None,
    gates: Sequence[str],
    margin: float,
    alpha: float,
    seed: int,
) -> Assessment:
    """Compare the runs of two parties. `twin` is the baseline's second run where there is a finished one.

    Raises RunError where not one sample can be paired.
    """
    left, right = baseline.run.samples(), candidate.run.samples()
    pairs, unpaired = compare.join(answers(left), answers(right))
    if not pairs:
        reason = unpaired[0].reason if unpaired else "both runs are empty"
        raise RunError(f"no sample of {baseline.run.name} and {candidate.run.name} can be paired ({reason})")
    rng = np.random.default_rng(seed)
    result = compare.analyse(pairs, unpaired, gates=gates, margin=margin, alpha=alpha, rng=rng)
    embedder = embeddings.load() or embeddings.FALLBACK
    return Assessment(
        baseline=baseline,
        candidate=candidate,
        result=result,
        flips=tuple(flips(left, right)),
        drift=measure_drift(left, right, embedder, alpha, rng),
        floor=_floor(left, twin, embedder, alpha, rng) if twin else None,
    )


def answers(samples: Samples) -> list[Answer]:
    """The samples as the comparison needs them."""
    return [
        Answer(
            one.case, one.repeat, one.scorer, one.score, one.prompt_digest, one.target_digest, one.slice, one.cluster
        )
        for one in samples.values()
    ]


def flips(left: Samples, right: Samples) -> list[Flip]:
    """The samples with different scores: losses first, the largest first; one per case."""
    found: dict[str, Flip] = {}
    for key in sorted(left.keys() & right.keys()):
        a, b = left[key], right[key]
        if a.score is None or b.score is None or a.score == b.score or a.case in found:
            continue
        found[a.case] = Flip(a.case, a.scorer, a.prompt, a.target, a.output, b.output, a.score, b.score)
    return sorted(found.values(), key=lambda flip: (flip.gained, -abs(flip.candidate_score - flip.baseline_score)))


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
    )


def _floor(
    left: Samples, twin: Run, embedder: embeddings.Embedder, alpha: float, rng: np.random.Generator
) -> Floor | None:
    again = twin.samples()
    pairs, _ = compare.join(answers(left), answers(again))
    distance = measure_drift(left, again, embedder, alpha, rng)
    if not pairs or distance is None:
        return None
    changed = sum(1 for pair in pairs if pair.difference) / len(pairs)
    return Floor(twin.name, changed, distance.exact_match.value, distance.distance.value)


def party(subject: Subject, run: Run, where: endpoint.Endpoint | None) -> Party:
    """One side, with its speed and, where an admin API tells it, its cost."""
    costs = _costs(where, subject) if where is not None and subject.digest else ()
    return Party(subject, run, performance.measure(run.samples().values()), costs)


def _costs(where: endpoint.Endpoint, subject: Subject) -> tuple[Cost, ...]:
    statement = endpoint.admin_get(where, "cost")
    rows: Any = statement.get("unit_costs") if isinstance(statement, dict) else None
    return tuple(
        Cost(str(row["basis"]), str(row["method"]), str(row["currency"]), float(row["per_1k_requests"]))
        for row in rows or []
        if row.get("version") == subject.model and row.get("per_1k_requests") is not None
    )
