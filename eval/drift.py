"""How far two versions' outputs on the same prompts are apart, at the level of text.

Owns: the measures. Never: I/O, clocks, loading an embedding model (it is handed in), or calling drift good or bad.

A drift figure means little without its noise floor: the same measures between two runs of the baseline (A/A), which
the caller puts beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from eval import statistics
from eval.scorers.base import Embed
from eval.scorers.refusal import is_refusal
from eval.statistics import Interval

DISTANCE_RESAMPLES = 2_000


class Output(Protocol):
    """What is needed of a sample."""

    case: str
    repeat: int
    output: str
    error: str
    finish_reason: str
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Drift:
    """Distances between the outputs of two runs over the `n` samples that both answered."""

    n: int
    exact_match: Estimate
    """Share of outputs equal to the last character. Expected near 1 between equal versions at temperature 0."""
    length_ratio: Estimate
    """Characters of the candidate per character of the baseline."""
    distance: Estimate
    """Mean cosine distance, 0 (same) to 2."""
    distance_by: str
    """The embedding model, or the n-gram fallback."""
    semantic: bool
    refusals: tuple[Estimate, Estimate]
    """Share of refusals of the baseline and of the candidate."""
    finish_reasons: tuple[Mapping[str, int], Mapping[str, int]]
    furthest: tuple[tuple[str, float], ...]
    """The cases with the largest distance, and it."""


def measure(
    baseline: Sequence[Output],
    candidate: Sequence[Output],
    *,
    embed: Embed,
    embed_name: str,
    semantic: bool,
    alpha: float,
    rng: np.random.Generator,
) -> Drift | None:
    """The drift between two runs, joined on (case, repeat); None where they share no answered sample."""
    left = {(one.case, one.repeat): one for one in baseline if not one.error}
    right = {(one.case, one.repeat): one for one in candidate if not one.error}
    keys = sorted(left.keys() & right.keys())
    if not keys:
        return None
    a, b = [left[key] for key in keys], [right[key] for key in keys]
    distances = _distances([one.output for one in a], [one.output for one in b], embed)
    order = np.argsort(-distances, kind="stable")[:5]
    return Drift(
        n=len(keys),
        exact_match=_share([x.output == y.output for x, y in zip(a, b, strict=True)], alpha),
        length_ratio=_length_ratio(a, b, alpha, rng),
        distance=Estimate(
            float(distances.mean()), statistics.percentile_bootstrap(distances, alpha, rng, DISTANCE_RESAMPLES)
        ),
        distance_by=embed_name,
        semantic=semantic,
        refusals=(_share([is_refusal(x.output) for x in a], alpha), _share([is_refusal(y.output) for y in b], alpha)),
        finish_reasons=(_reasons(a), _reasons(b)),
        furthest=tuple((keys[index][0], float(distances[index])) for index in order if distances[index] > 0),
    )


def _distances(left: Sequence[str], right: Sequence[str], embed: Embed) -> statistics.Array:
    """1 - cosine per pair; equal texts are at 0 exactly."""
    vectors_a, vectors_b = embed(left), embed(right)
    distances: statistics.Array = np.clip(1.0 - (vectors_a * vectors_b).sum(axis=1), 0.0, 2.0)
    distances[[x == y for x, y in zip(left, right, strict=True)]] = 0.0
    return distances


def _length_ratio(a: Sequence[Output], b: Sequence[Output], alpha: float, rng: np.random.Generator) -> Estimate:
    lengths_a = np.array([float(len(one.output)) for one in a])
    lengths_b = np.array([float(len(one.output)) for one in b])
    if not lengths_a.sum():
        return Estimate(float("nan"), Interval(float("nan"), float("nan"), "the baseline's outputs are empty"))
    interval = statistics.ratio_interval(lengths_b, lengths_a, alpha, rng, DISTANCE_RESAMPLES)
    return Estimate(float(lengths_b.sum() / lengths_a.sum()), interval)


def _share(flags: Sequence[bool], alpha: float) -> Estimate:
    return Estimate(sum(flags) / len(flags), statistics.wilson(sum(flags), len(flags), alpha))


def _reasons(outputs: Sequence[Output]) -> Mapping[str, int]:
    return dict(Counter(one.finish_reason or "none" for one in outputs).most_common())
