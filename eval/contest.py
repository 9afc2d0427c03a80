"""A baseline and its candidates on one suite, from the plan to the decision: what `compare` and `gate` share.

Owns: the order of planning, running, measuring the floor and deciding. Never: printing, policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval import assessment, compare, statistics
from eval.assessment import Assessment
from eval.session import Job, Session, state_of
from registry import terminal

TYPICAL_FLIPS = (compare.TYPICAL_DISCORDANCE, 0.2)
"""Shares of flipped answers that the plan states its power for."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What is about to be compared, and what the comparison will be able to see."""

    baseline: Job
    candidates: tuple[Job, ...]
    twin: Job | None
    """The baseline's second run, where the noise floor is to be measured."""
    states: tuple[str, ...]
    """What became of the runs, the baseline's first."""
    margin: float
    planned: tuple[tuple[float, float], ...]
    """(share of flips, minimum detectable effect), at the level of one candidate of the family."""


def plan(
    session: Session,
    baseline: str,
    candidates: Sequence[str],
    *,
    margin: float | None,
    alpha: float,
    with_floor: bool = False,
) -> Contest:
    """Open the runs. `with_floor` adds the baseline's second run, which tells the noise floor (A/A)."""
    left, rights = session.contest(baseline, candidates)
    subject = left.plan.subject
    twin = session.job(subject, twin=True) if with_floor else None
    weights = compare.uneven([case.weight for case in session.suite.cases])
    n = len(session.suite.cases) if weights is None else max(1, int(statistics.kish(weights)))
    planned = compare.planned_effects(n, alpha / len(rights), TYPICAL_FLIPS)
    return Contest(
        baseline=left,
        candidates=tuple(rights),
        twin=twin,
        states=tuple(state_of(job) for job in (left, *rights)),
        margin=session.margin(margin, subject),
        planned=tuple(planned),
    )


def decide(
    session: Session, contest: Contest, *, gates: Sequence[str], alpha: float, with_drift: bool = True
) -> list[Assessment]:
    """Run what is missing, then decide on all candidates as one family."""
    left, rights = contest.baseline, contest.candidates
    already = {right.run.name for right in rights}
    twin = [contest.twin] if contest.twin is not None and contest.twin.run.name not in already else []
    session.execute([left, *twin, *rights])
    with terminal.busy("Comparing"):
        return assessment.assess_all(
            assessment.party(left.plan.subject, left.run, session.endpoint),
            [assessment.party(right.plan.subject, right.run, session.endpoint) for right in rights],
            floor=session.floor(left, alpha),
            gates=gates,
            margin=contest.margin,
            alpha=alpha,
            seed=session.settings.seed,
            with_drift=with_drift,
        )
