"""How far two versions' outputs on the same prompts are apart, at the level of text.

Owns: the measures. Never: I/O, clocks, loading an embedding model (it is handed in), or calling drift good or bad.

A drift figure means little without its noise floor: the same measures between two runs of the baseline (A/A), which
the caller puts beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from eval import statistics
from eval.scorers.base import Embed
from eval.scorers.refusal import is_refusal
from eval.statistics import Array, Interval, Test
from monitoring.distances_vectors import mmd, rbf_kernel

DISTANCE_RESAMPLES = 2_000
PERMUTATIONS: Final = 999
MMD_PAIRS_MIN: Final = 4
MMD_PAIRS_MAX: Final = 1_000
"""More are drawn at random down to this many: the kernel of all of them would not stay small."""
WORDS: Final = 2
"""Length in words of the n-grams whose overlap is measured."""

Language = Callable[[str], str]
"""The ISO 639-1 code of a text's language; "" where it cannot be told."""


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
class Discrepancy:
    """Maximum mean discrepancy: how far two sets of vectors are apart as distributions, not pair by pair."""

    value: float
    """Unbiased MMD² with an RBF kernel of the median distance: about 0 (or just under) where they are the same."""
    test: Test
    """Each pair's two outputs may as well have changed sides."""
    pairs: int


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
    ngram_overlap: Estimate
    """Mean Dice coefficient of the two outputs' word bigrams: 1 where they are the same, 0 where none is shared."""
    json_valid: tuple[Estimate, Estimate]
    """Share of outputs that are JSON, of the baseline and of the candidate."""
    mmd: Discrepancy | None = None
    """Of the outputs' embeddings; None under MMD_PAIRS_MIN pairs."""
    same_language: Estimate | None = None
    """Share of outputs in the language of the baseline's; None where languages were not told apart."""
    languages: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})
    """Language -> outputs in it, of the baseline and of the candidate."""


def measure(
    baseline: Sequence[Output],
    candidate: Sequence[Output],
    *,
    embed: Embed,
    embed_name: str,
    semantic: bool,
    alpha: float,
    rng: np.random.Generator,
    language: Language | None = None,
) -> Drift | None:
    """The drift between two runs, joined on (case, repeat); None where they share no answered sample."""
    left = {(one.case, one.repeat): one for one in baseline if not one.error}
    right = {(one.case, one.repeat): one for one in candidate if not one.error}
    keys = sorted(left.keys() & right.keys())
    if not keys:
        return None
    a, b = [left[key] for key in keys], [right[key] for key in keys]
    texts = [one.output for one in a], [one.output for one in b]
    vectors = embed(texts[0]), embed(texts[1])
    distances = _distances(*texts, *vectors)
    order = np.argsort(-distances, kind="stable")[:5]
    spoken = [(language(x), language(y)) for x, y in zip(*texts, strict=True)] if language else []
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
        ngram_overlap=_overlap(*texts, alpha, rng),
        json_valid=(_share(list(map(_is_json, texts[0])), alpha), _share(list(map(_is_json, texts[1])), alpha)),
        mmd=_discrepancy(*vectors, rng),
        same_language=_same_language(spoken, alpha),
        languages=(_counts(one for one, _ in spoken), _counts(other for _, other in spoken)),
    )


def _distances(left: Sequence[str], right: Sequence[str], vectors_a: Array, vectors_b: Array) -> Array:
    """1 - cosine per pair; equal texts are at 0 exactly."""
    distances: Array = np.clip(1.0 - (vectors_a * vectors_b).sum(axis=1), 0.0, 2.0)
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
    return _counts(one.finish_reason for one in outputs)


def _counts(names: Iterable[str]) -> Mapping[str, int]:
    return dict(Counter(name or "none" for name in names).most_common())


def _discrepancy(left: Array, right: Array, rng: np.random.Generator) -> Discrepancy | None:
    """MMD² of two rows of vectors that belong together pair by pair, and its permutation p. Gretton et al. 2012."""
    if len(left) < MMD_PAIRS_MIN:
        return None
    if len(left) > MMD_PAIRS_MAX:
        drawn = rng.choice(len(left), MMD_PAIRS_MAX, replace=False)
        left, right = left[drawn], right[drawn]
    pairs = len(left)
    swapped = np.zeros((PERMUTATIONS + 1, pairs), dtype=np.float32)
    swapped[1:] = rng.integers(0, 2, size=(PERMUTATIONS, pairs))
    found = mmd(rbf_kernel(np.concatenate([left, right])), np.concatenate([swapped, 1 - swapped], axis=1))
    # The kernel's sums are in float32: what is apart by its rounding only is a tie.
    hits = int((found[1:] >= found[0] - 1e-6).sum())
    test = Test((1 + hits) / (1 + PERMUTATIONS), "paired permutation of MMD²")
    return Discrepancy(float(found[0]), test, pairs)


def _overlap(left: Sequence[str], right: Sequence[str], alpha: float, rng: np.random.Generator) -> Estimate:
    values = np.array([dice(x, y) for x, y in zip(left, right, strict=True)])
    return Estimate(float(values.mean()), statistics.percentile_bootstrap(values, alpha, rng, DISTANCE_RESAMPLES))


def dice(left: str, right: str, words: int = WORDS) -> float:
    """Twice the n-grams of words in common by the sum of both: 1 for equal texts, 0 without a common one.

    A text shorter than an n-gram counts as one by itself.
    """
    a, b = _ngrams(left, words), _ngrams(right, words)
    return 2 * (a & b).total() / (a.total() + b.total())


def _ngrams(text: str, words: int) -> Counter[tuple[str, ...]]:
    split = text.split()
    return Counter(tuple(split[at : at + words]) for at in range(max(1, len(split) - words + 1)))


def _is_json(text: str) -> bool:
    """Whether the text is a JSON object or array: a bare number or word is no more than a text."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _same_language(spoken: Sequence[tuple[str, str]], alpha: float) -> Estimate | None:
    """Among the outputs whose language is told on both sides."""
    told = [one == other for one, other in spoken if one and other]
    return _share(told, alpha) if told else None
