"""The scores of one run, with their intervals.

Owns: grouping a run's samples by scorer and overall. Never: I/O, clocks, comparing runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from eval.compare import Side, side, uneven
from eval.results import Sample
from eval.suite import OVERALL


@dataclass(frozen=True, slots=True)
class Group:
    """The mean score over the `n` cases of a scorer, a slice, or all."""

    kind: str
    """`scorer`, `slice` or `overall`."""
    name: str
    n: int
    score: Side


def groups(samples: Iterable[Sample], *, alpha: float, rng: np.random.Generator) -> list[Group]:
    """Each scorer, each slice, and overall. A case asked several times counts once, with its mean."""
    cases: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.score is not None:
            cases.setdefault(sample.case, []).append(sample)
    members: dict[tuple[str, str], list[str]] = {}
    for name, found in cases.items():
        first = found[0]
        for key in (("scorer", first.scorer), ("slice", first.slice), (OVERALL, OVERALL)):
            if key[1]:
                members.setdefault(key, []).append(name)
    means = {name: math.fsum(one.score or 0.0 for one in found) / len(found) for name, found in cases.items()}
    made = []
    for (kind, name), names in members.items():
        values = np.array([means[case] for case in names])
        clusters = [cases[case][0].cluster or f"case {case}" for case in names]
        shared = clusters if len(set(clusters)) < len(clusters) else None
        weights = uneven([cases[case][0].weight for case in names])
        made.append(Group(kind, name, len(names), side(values, shared, alpha, rng, weights)))
    return sorted(made, key=lambda group: ("scorer", "slice", OVERALL).index(group.kind))
