"""Results as plain values for `--json`.

Owns: the names in the JSON. Never: computing what it states.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from eval.assessment import Assessment, Party
from eval.compare import Comparison
from eval.performance import Performance
from eval.reports.words import when
from eval.results import Run
from eval.suite import Suite
from eval.summary import Group
from eval.verdict import Kind
from registry.terminal import ExitCode

if TYPE_CHECKING:
    from eval.reports.gather import ComparisonReport

EXIT: Mapping[Kind, ExitCode] = {
    "better": ExitCode.DONE,
    "non-inferior": ExitCode.DONE,
    "worse": ExitCode.GATE_FAILED,
    "inconclusive": ExitCode.INCONCLUSIVE,
}
"""Verdict -> exit code of `eval compare`."""


def of_suite(suite: Suite) -> dict[str, Any]:
    """Which suite, and how much of it."""
    return {
        "name": suite.name,
        "version": suite.version,
        "digest": suite.digest,
        "source": suite.source,
        "cases": len(suite.cases),
        "slices": suite.slices,
    }


def of_comparisons(
    found: Sequence[Assessment],
    suite: Suite,
    *,
    margin: float,
    alpha: float,
    seed: int,
    planned: Sequence[tuple[float, float]],
    states: Sequence[str],
    exit_code: int,
) -> dict[str, Any]:
    """The one JSON object of `eval compare`; of several candidates, the object of each under `comparisons`."""
    each = [
        of_comparison(
            one, suite, margin=margin, alpha=alpha, seed=seed, planned=planned, states=(states[0], states[1 + index])
        )
        for index, one in enumerate(found)
    ]
    return each[0] if len(each) == 1 else {"comparisons": each, "exit_code": exit_code}


def of_comparison(
    found: Assessment,
    suite: Suite,
    *,
    margin: float,
    alpha: float,
    seed: int,
    planned: Sequence[tuple[float, float]],
    states: tuple[str, str],
) -> dict[str, Any]:
    """The one JSON object of `eval compare`."""
    return _comparison(found, of_suite(suite), margin=margin, alpha=alpha, seed=seed, planned=planned, states=states)


def of_report(report: ComparisonReport) -> dict[str, Any]:
    """The same object, of two runs that were on disk."""
    info = report.baseline
    slices = Counter(one.any.slice for one in report.pairs)
    suite = {
        "name": info.suite,
        "version": info.suite_version,
        "digest": info.key.suite_digest,
        "source": info.suite_source,
        "cases": len({one.case for one in report.pairs}),
        "slices": dict(slices),
    }
    settings = report.settings
    states = tuple(f"on disk since {when(one.finished_at)}" for one in (report.baseline, report.candidate))
    return _comparison(
        report.found,
        suite,
        margin=settings.margin,
        alpha=settings.alpha,
        seed=settings.seed,
        planned=(),
        states=(states[0], states[1]),
    )


def _comparison(
    found: Assessment,
    suite: Mapping[str, Any],
    *,
    margin: float,
    alpha: float,
    seed: int,
    planned: Sequence[tuple[float, float]],
    states: tuple[str, str],
) -> dict[str, Any]:
    result = found.result
    value: dict[str, Any] = finite(
        {
            "suite": suite,
            "alpha": alpha,
            "margin": margin,
            "seed": seed,
            "planned": [{"flip_share": share, "detectable": effect} for share, effect in planned],
            "baseline": _party(found.baseline, states[0]),
            "candidate": _party(found.candidate, states[1]),
            "verdict": asdict(result.verdict) | {"exit_code": int(EXIT[result.verdict.kind])},
            "gates": [
                {"name": gate.comparison.name, "p_adjusted": gate.p_adjusted, "verdict": asdict(gate.verdict)}
                for gate in result.gates
            ],
            "overall": of_group(result.overall),
            "scorers": [of_group(one) for one in result.scorers],
            "slices": [of_group(one) for one in result.slices],
            "flips": [asdict(flip) | {"gained": flip.gained} for flip in found.flips],
            "unpaired": [asdict(one) for one in result.unpaired],
            "drift": asdict(found.drift) if found.drift else None,
            "noise_floor": asdict(found.floor) if found.floor else None,
            "ratios": [asdict(one) for one in found.ratios],
            "candidates": found.family,
        }
    )
    return value


def of_group(group: Comparison) -> dict[str, Any]:
    """One comparison, with its share of flips."""
    return asdict(group) | {"discordance": group.discordance}


def of_run(run: Run) -> dict[str, Any]:
    """One line of the list of runs."""
    info, samples = run.info(), run.samples().values()
    scored = [(sample.score, sample.weight) for sample in samples if sample.score is not None]
    weight = math.fsum(weight for _, weight in scored)
    return {
        "run": run.name,
        "suite": info.suite,
        "suite_digest": info.key.suite_digest,
        "ref": info.subject.ref,
        "model": info.subject.model,
        "version_digest": info.subject.digest,
        "url": info.subject.url,
        "state": "finished" if run.finished else "begun",
        "done": sum(1 for sample in samples if sample.final),
        "planned": info.planned,
        "failed": sum(1 for sample in samples if sample.error),
        "score": math.fsum(score * weight for score, weight in scored) / weight if weight else None,
        "seed": info.key.seed,
        "repeats": info.key.repeats,
        "twin": info.key.twin,
        "started_at": info.started_at,
        "finished_at": info.finished_at,
        "cached": sum(1 for sample in samples if sample.cached),
        "costs": [msgspec.to_builtins(one) for one in info.costs],
    }


def of_summary(run: Run, groups: Sequence[Group], speed: Performance, state: str) -> dict[str, Any]:
    """The one JSON object of `eval run` and `eval report show`."""
    scores: dict[str, list[dict[str, Any]]] = {"scorer": [], "slice": [], "overall": []}
    for group in groups:
        scores[group.kind].append({"name": group.name, "n": group.n} | asdict(group.score))
    value: dict[str, Any] = finite(
        of_run(run)
        | {
            "how": state or None,
            "folder": str(run.folder),
            "overall": scores["overall"][0] if scores["overall"] else None,
            "scorers": scores["scorer"],
            "slices": scores["slice"],
            "performance": asdict(speed) | {"busy_s_per_1k": speed.busy_s_per_1k},
        }
    )
    return value


def _party(party: Party, state: str) -> dict[str, Any]:
    subject = party.subject
    return {
        "ref": subject.ref,
        "model": subject.model,
        "url": subject.url,
        "digest": subject.digest or None,
        "note": subject.note,
        "run": party.run.name,
        "state": state,
        "performance": asdict(party.performance) | {"busy_s_per_1k": party.performance.busy_s_per_1k},
        "costs": [asdict(cost) for cost in party.costs],
        "spent": [asdict(cost) for cost in party.spent],
    }


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
