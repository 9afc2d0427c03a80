"""A policy applied to finished comparisons: one verdict, and every check that led to it.

Owns: the decision. Never: running suites, the statistics (compare.py), writing verdicts.

    quality    every gate of every suite non-inferior within its margin; better and worse Holm-adjusted over all of them
    slices     those that the policy names not measurably worse, Holm-adjusted over all of them
    ratios     latency and engine time: the interval's upper end at or below the limit passes, its lower end above fails
    samples    enough pairs, and as few failures as the comparison demands

Fails where one check fails, passes where all pass, else inconclusive. Never a pass by absence: what could not be
measured is inconclusive. Several checks that all have to pass need no adjustment of alpha for passing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from eval import statistics
from eval.assessment import Assessment
from eval.compare import Comparison
from eval.policy import ALL_SLICES, Policy, SuitePolicy
from eval.verdict import decide
from registry.terminal import ExitCode

Outcome = Literal["pass", "fail", "inconclusive"]
EXIT: Final[dict[Outcome, ExitCode]] = {
    "pass": ExitCode.DONE,
    "fail": ExitCode.GATE_FAILED,
    "inconclusive": ExitCode.INCONCLUSIVE,
}


@dataclass(frozen=True, slots=True)
class Judged:
    """One suite of the policy, compared."""

    policy: SuitePolicy
    suite: str
    suite_digest: str
    margin: float
    gates: tuple[str, ...]
    assessment: Assessment


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that had to hold."""

    suite: str
    name: str
    """`overall` or a scorer, `slice NAME`, `latency`, `engine time`, `samples`."""
    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says."""

    outcome: Outcome
    text: str
    checks: tuple[Check, ...]


def judge(policy: Policy, suites: Sequence[Judged]) -> Decision:
    """Apply the policy to all of its suites."""
    checks = [*_quality(policy, suites), *_slices(policy, suites)]
    for one in suites:
        checks += _samples(one)
        for name, limit in (("latency", policy.max_latency_ratio), ("engine time", policy.max_cost_ratio)):
            if limit is not None:
                checks.append(_ratio(one, name, limit))
    failed = [check for check in checks if check.outcome == "fail"]
    unsure = [check for check in checks if check.outcome == "inconclusive"]
    if failed:
        return Decision("fail", f"fails: {_list(failed)}", tuple(checks))
    if unsure:
        return Decision("inconclusive", f"inconclusive: {_list(unsure)}", tuple(checks))
    return Decision("pass", f"passes all {len(checks)} checks", tuple(checks))


def _quality(policy: Policy, suites: Sequence[Judged]) -> list[Check]:
    """Each gate's verdict with its p adjusted over the gates of all suites."""
    measured = [(one, name, _comparison(one.assessment, name)) for one in suites for name in one.gates]
    adjusted = iter(statistics.holm([found.p for _, _, found in measured if found is not None]))
    checks = []
    for one, name, found in measured:
        if found is None:
            checks.append(Check(one.suite, name, "inconclusive", "not one sample could be paired"))
            continue
        known = next((gate for gate in one.assessment.result.gates if gate.comparison.name == name), None)
        decided = decide(
            low=found.interval.low,
            high=found.interval.high,
            p=next(adjusted),
            alpha=policy.alpha,
            margin=one.margin,
            n=found.n,
            needed=None
            if known is None or known.verdict.more_samples is None
            else found.n + known.verdict.more_samples,
        )
        outcome: Outcome = "pass" if decided.passed else "fail" if decided.kind == "worse" else "inconclusive"
        difference = (
            f"{100 * found.difference:+.1f} [{100 * found.interval.low:+.1f}, {100 * found.interval.high:+.1f}]"
        )
        checks.append(Check(one.suite, name, outcome, f"{decided.text}; {difference} points, n = {found.n}"))
    return checks


def _comparison(found: Assessment, name: str) -> Comparison | None:
    known = {one.name: one for one in found.result.scorers} | {"overall": found.result.overall}
    return known.get(name)


def _slices(policy: Policy, suites: Sequence[Judged]) -> list[Check]:
    wanted: list[tuple[Judged, str, Comparison | None]] = []
    for one in suites:
        found = {each.name: each for each in one.assessment.result.slices}
        named = one.policy.slices_not_worse
        wanted += [(one, name, found.get(name)) for name in (found if named == ALL_SLICES else named)]
    adjusted = iter(statistics.holm([found.p for _, _, found in wanted if found is not None]))
    checks = []
    for one, name, slice_ in wanted:
        if slice_ is None:
            checks.append(Check(one.suite, f"slice {name}", "inconclusive", "not one sample could be paired"))
            continue
        p = next(adjusted)
        worse = slice_.interval.high < 0 and p <= policy.alpha
        text = f"{100 * slice_.difference:+.1f} points, n = {slice_.n}, p = {p:.3g}"
        checks.append(
            Check(
                one.suite,
                f"slice {name}",
                "fail" if worse else "pass",
                f"{'worse' if worse else 'not measurably worse'}: {text}",
            )
        )
    return checks


def _samples(one: Judged) -> list[Check]:
    """Enough pairs; and nothing that the comparison itself holds against a pass (failures, gates without a pair)."""
    n = one.assessment.result.overall.n
    checks = []
    if n < one.policy.samples_min:
        text = f"{n} cases could be paired, the policy wants {one.policy.samples_min}"
        checks.append(Check(one.suite, "samples", "inconclusive", text))
    failed, samples = one.assessment.result.failed, one.assessment.result.samples
    if failed > one.margin * samples:
        text = f"{failed} of {samples} samples have no answer of the candidate, more than δ"
        checks.append(Check(one.suite, "failures", "inconclusive", text))
    return checks


def _ratio(one: Judged, name: str, limit: float) -> Check:
    found = next((ratio for ratio in one.assessment.ratios if ratio.name == name), None)
    if found is None:
        text = (
            f"{name} was not measured: too few answers of both engines (answers from the cache do not count: --fresh)"
        )
        return Check(one.suite, name, "inconclusive", text)
    low, high = found.interval.low, found.interval.high
    outcome: Outcome = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    return Check(one.suite, name, outcome, f"x {found.ratio:.2f} [{low:.2f}, {high:.2f}], allowed {limit:g}")


def _list(checks: Sequence[Check]) -> str:
    return ", ".join(f"{check.suite} {check.name}" for check in checks)
