"""The verdict on a difference: better, worse, non-inferior within δ, or inconclusive with the samples still needed.

Owns: the decision. Never: computing the interval or the p-value it decides from; I/O.

With the interval [low, high] of candidate - baseline at 1 - alpha, the margin δ, and the test's p (Holm-adjusted over
the gates where there are several):

1. low > 0 and p ≤ alpha: better.
2. low > -δ: non-inferior within δ. (Also where high < 0: measurably lower, but by less than δ.)
3. high < 0 and p ≤ alpha: worse.
4. otherwise: inconclusive, with N.

There is no "no difference". Non-inferiority has to hold at every gate, which needs no adjustment of alpha; better and
worse need one gate, which is what Holm adjusts for.

Nothing passes where a gate has no pair at all, nor where the candidate left more than δ of the samples unanswered that
the baseline answered: a failure is reported as unpaired, and must not read as a pass (compare.analyse sees to it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["better", "non-inferior", "inconclusive", "worse"]

MORE_MAX: Final = 1_000_000
"""Beyond this many samples N is given as "more than"."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and the sentence that says it."""

    kind: Kind
    text: str
    more_samples: int | None = None
    """Of an inconclusive verdict: about how many more samples are needed; None where no number can be given."""

    @property
    def passed(self) -> bool:
        return self.kind in {"better", "non-inferior"}


def decide(*, low: float, high: float, p: float, alpha: float, margin: float, n: int, needed: int | None) -> Verdict:
    """The verdict of one gate. `needed` is the n at which a decision is likely, see compare.samples_to_decide."""
    if low > 0 and p <= alpha:
        return Verdict("better", f"better: the difference lies above 0 (p = {p:.3g})")
    if low > -margin:
        lower = ", though measurably lower" if high < 0 and p <= alpha else ""
        return Verdict("non-inferior", f"non-inferior within {_points(margin)}{lower}")
    if high < 0 and p <= alpha:
        return Verdict("worse", f"worse: the difference lies below 0 (p = {p:.3g})")
    more = max(1, needed - n) if needed is not None else None
    return Verdict("inconclusive", f"inconclusive: {_more(more)}", more)


def combine(gates: Sequence[tuple[str, Verdict]]) -> Verdict:
    """One verdict of several gates: worse where one is worse, passed where all pass, else inconclusive."""
    if len(gates) == 1:
        return gates[0][1]
    worse = [name for name, verdict in gates if verdict.kind == "worse"]
    if worse:
        return Verdict("worse", f"worse at {', '.join(worse)}")
    open_gates = [(name, verdict) for name, verdict in gates if verdict.kind == "inconclusive"]
    if open_gates:
        counts = [verdict.more_samples for _, verdict in open_gates]
        known = [count for count in counts if count is not None]
        more = max(known) if len(known) == len(counts) else None
        return Verdict(
            "inconclusive", f"inconclusive at {', '.join(name for name, _ in open_gates)}: {_more(more)}", more
        )
    better = [name for name, verdict in gates if verdict.kind == "better"]
    if better:
        return Verdict(
            "better",
            f"better at {', '.join(better)}, non-inferior at the others"
            if len(better) < len(gates)
            else "better at every gate",
        )
    return Verdict("non-inferior", "non-inferior at every gate")


def of_candidates(verdicts: Sequence[Verdict]) -> Kind:
    """One kind for several candidates: worse where one is, inconclusive where one is, else the least that all are."""
    order: tuple[Kind, ...] = ("worse", "inconclusive", "non-inferior", "better")
    return min((verdict.kind for verdict in verdicts), key=order.index)


def _points(share: float) -> str:
    return f"{100 * share:g} points"


def _more(count: int | None) -> str:
    if count is None or count > MORE_MAX:
        return f"more than {MORE_MAX:,} more samples needed"
    return f"about {count:,} more samples needed"
