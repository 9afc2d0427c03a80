"""What a report of one run or of a comparison shows, gathered from finished runs.

Owns: joining what was assessed with the samples it came from: slices, both outputs, noise floor per group, speed,
settings. Never: statistics (compare.py, summary.py), layout, writing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import yaml

from eval import assessment, compare, performance, summary
from eval.assessment import Assessment
from eval.compare import Comparison
from eval.drift_tokens import Band
from eval.errors import RunError
from eval.floors import Floor, Floors
from eval.performance import Performance
from eval.results import Run, RunInfo, RunStore, Sample, Subject
from eval.session import MARGIN
from eval.suite import OVERALL
from eval.summary import Group
from eval.verdict import Verdict
from registry.terminal import UserError

RowKind = Literal["overall", "gate", "scorer", "slice"]
Samples = Mapping[tuple[str, int], Sample]


@dataclass(frozen=True, slots=True)
class Settings:
    """What decided the verdict beside the runs."""

    gates: tuple[str, ...]
    margin: float
    alpha: float
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of differences."""

    kind: RowKind
    group: Comparison
    verdict: Verdict | None
    """Of a gate."""
    p_adjusted: float | None
    """Holm over the gates, or Benjamini-Hochberg over the slices."""
    noise: float | None
    """Share of the group's cases whose score changed when the baseline was asked twice; None where nobody did."""


@dataclass(frozen=True, slots=True)
class Paired:
    """One sample of both runs; one side is missing where only the other run has it."""

    case: str
    repeat: int
    baseline: Sample | None
    candidate: Sample | None
    reason: str
    """Why the two cannot be compared; "" where they can."""

    @property
    def any(self) -> Sample:
        """Whichever side is there, for what they share."""
        found = self.baseline or self.candidate
        assert found is not None
        return found

    @property
    def difference(self) -> float | None:
        """Candidate - baseline."""
        a, b = self.baseline, self.candidate
        if self.reason or a is None or b is None or a.score is None or b.score is None:
            return None
        return b.score - a.score

    @property
    def change(self) -> str:
        """`lost`, `gained`, `same`, or `unpaired`."""
        if self.difference is None:
            return "unpaired"
        return "lost" if self.difference < 0 else "gained" if self.difference > 0 else "same"


@dataclass(frozen=True, slots=True)
class TokenDrift:
    """Drift by position, where somebody measured it at the level of tokens (`eval drift --json`)."""

    bands: tuple[Band, ...]
    lower_bound: bool = False
    """Only the most likely tokens were known: the true divergence is at least this."""


@dataclass(frozen=True)
class ComparisonReport:
    """Two runs and what came of comparing them."""

    found: Assessment
    settings: Settings
    token_drift: TokenDrift | None = None

    @cached_property
    def baseline(self) -> RunInfo:
        return self.found.baseline.run.info()

    @cached_property
    def candidate(self) -> RunInfo:
        return self.found.candidate.run.info()

    @cached_property
    def sides(self) -> tuple[Samples, Samples]:
        return self.found.baseline.run.samples(), self.found.candidate.run.samples()

    @cached_property
    def pairs(self) -> list[Paired]:
        """Every sample of either run, in the order of cases."""
        left, right = self.sides
        reasons = {(one.case, one.repeat): one.reason for one in self.found.result.unpaired}
        return [Paired(*key, left.get(key), right.get(key), reasons.get(key, "")) for key in sorted({*left, *right})]

    @cached_property
    def rows(self) -> list[Row]:
        """Overall and gates first, then the other scorers, then the slices."""
        result = self.found.result
        gates = {gate.comparison.name: gate for gate in result.gates}
        noise = self._noise

        def row(kind: RowKind, group: Comparison) -> Row:
            gate = gates.get(group.name) if kind != "slice" else None
            named: RowKind = "gate" if gate and kind == "scorer" else kind
            adjusted = gate.p_adjusted if gate else group.q
            return Row(named, group, gate.verdict if gate else None, adjusted, noise.get((kind, group.name)))

        rows = [row("overall", result.overall)]
        if len(result.scorers) > 1 or any(one.name in gates for one in result.scorers):
            rows += sorted((row("scorer", one) for one in result.scorers), key=lambda one: one.kind != "gate")
        if len(result.slices) > 1:
            rows += [row("slice", one) for one in result.slices]
        return rows

    @cached_property
    def flips(self) -> list[Paired]:
        """One sample of each case that the two answered differently well, in the order of the assessment."""
        first: dict[str, Paired] = {}
        for pair in self.pairs:
            if pair.change in {"lost", "gained"}:
                first.setdefault(pair.case, pair)
        return [first[flip.case] for flip in self.found.flips if flip.case in first]

    @cached_property
    def _noise(self) -> Mapping[tuple[str, str], float]:
        floor = self.found.floor
        if floor is None:
            return {}
        twin = Run(self.found.baseline.run.folder.parent / floor.run)
        if not twin.finished:
            return {}
        pairs, _ = compare.join(assessment.answers(self.sides[0]), assessment.answers(twin.samples()))
        changed: dict[tuple[str, str], list[bool]] = {}
        for pair in pairs:
            for key in (("overall", OVERALL), ("scorer", pair.scorer), ("slice", pair.slice)):
                changed.setdefault(key, []).append(pair.difference != 0)
        return {key: sum(flags) / len(flags) for key, flags in changed.items()}

    @property
    def level(self) -> float:
        """Of the intervals: 1 - alpha, shared among the candidates of one comparison."""
        return 1 - self.settings.alpha / self.found.family

    @property
    def command(self) -> str:
        """What makes this report again from the same runs."""
        words = ["modelyard", "eval", "report", "compare", self.found.baseline.run.name, self.found.candidate.run.name]
        chosen = self.settings
        words += ["--margin", f"{chosen.margin:g}", "--alpha", f"{chosen.alpha:g}", "--seed", str(chosen.seed)]
        return shlex.join([*words, *(word for gate in chosen.gates for word in ("--gate", gate))])


@dataclass(frozen=True)
class RunReport:
    """One run, its scores and its speed."""

    run: Run
    info: RunInfo
    samples: tuple[Sample, ...]
    groups: tuple[Group, ...]
    speed: Performance
    alpha: float

    @property
    def failed(self) -> list[Sample]:
        return [one for one in self.samples if one.error]

    @cached_property
    def lowest(self) -> list[Sample]:
        """Samples that got less than the full score, the lowest first."""
        wrong = [one for one in self.samples if one.score is not None and one.score < 1]
        return sorted(wrong, key=lambda one: (one.score or 0.0, one.id))

    @property
    def command(self) -> str:
        return shlex.join(["modelyard", "eval", "report", "show", self.run.name, "--alpha", f"{self.alpha:g}"])


def of_run(run: Run, *, alpha: float) -> RunReport:
    """The report of one run. Raises RunError where it has no sample yet."""
    info = run.info()
    samples = tuple(sorted(run.samples().values(), key=lambda one: one.id))
    if not samples:
        raise RunError(f"the run {run.name} has no sample yet: there is nothing to report")
    groups = summary.groups(samples, alpha=alpha, rng=np.random.default_rng(info.key.seed))
    return RunReport(run, info, samples, tuple(groups), performance.measure(samples), alpha)


def of_runs(
    baseline: Run, candidate: Run, *, store: RunStore, settings: Settings, token_drift: TokenDrift | None = None
) -> ComparisonReport:
    """The comparison of two runs that are on disk. Raises RunError where they cannot be compared."""
    left, right = baseline.info(), candidate.info()
    for run, info in ((baseline, left), (candidate, right)):
        if not run.finished:
            raise RunError(f"the run {run.name} is not finished: the command that began it goes on with it")
        if info.key.suite_digest != left.key.suite_digest:
            raise RunError(
                f"{baseline.name} and {candidate.name} are runs of different suites ({left.suite} "
                f"{left.key.suite_digest[:19]}, {info.suite} {info.key.suite_digest[:19]}): only runs of one suite "
                "can be compared"
            )
    kept = kept_floor(left, store)
    found = assessment.assess(
        assessment.party(left.subject, baseline, None),
        assessment.party(right.subject, candidate, None),
        floor=kept,
        twin=twin_of(baseline, store) if kept is None else None,
        gates=settings.gates,
        margin=settings.margin,
        alpha=settings.alpha,
        seed=settings.seed,
    )
    return ComparisonReport(found, settings, token_drift)


def token_drift_of(path: Path) -> TokenDrift:
    """What `eval drift --json` wrote of two models' tokens. Raises UserError where the file is something else."""
    try:
        read = msgspec.json.decode(path.read_bytes(), type=_TokenFile)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise UserError(
            f"{path} holds no drift at the level of tokens ({error}): eval drift --level tokens --json writes it"
        ) from error
    return TokenDrift(read.drift.bands, lower_bound=read.drift.bound != "exact")


class _Bands(msgspec.Struct):
    bound: str
    bands: tuple[Band, ...]


class _TokenFile(msgspec.Struct):
    drift: _Bands


def settings_of(
    info: RunInfo,
    store: RunStore,
    *,
    margin: float | None,
    gates: Sequence[str] | None,
    alpha: float,
    seed: int,
) -> Settings:
    """What was given, else what the run's suite says today, else overall and what `eval compare` takes as margin."""
    declared = _declared(info)
    said = declared.get("margin")
    if margin is None and isinstance(said, int | float):
        margin = float(said)
    if margin is None:
        floor = kept_floor(info, store)
        margin = max(MARGIN, floor.bound) if floor else MARGIN
    named = declared.get("gates")
    chosen = tuple(gates or (named if isinstance(named, list) else ()) or (OVERALL,))
    return Settings(tuple(str(one) for one in chosen), margin, alpha, seed)


def kept_floor(info: RunInfo, store: RunStore) -> Floor | None:
    """The noise floor that was measured for the run's version on its suite."""
    return Floors(store.root.parent / "floors").get(info.key.suite_digest, info.subject.identity)


def _declared(info: RunInfo) -> Mapping[str, Any]:
    """The suite's file, where it is still there and still that suite's; it may have changed since, within a digest."""
    try:
        read = yaml.safe_load(Path(info.suite_source).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return read if isinstance(read, dict) and read.get("name") == info.suite else {}


def twin_of(run: Run, store: RunStore) -> Run | None:
    """The latest finished second run of the same version on the same suite, if there is one."""
    wanted = msgspec.structs.replace(run.info().key, twin=True)
    found = [one for one in store.all() if wanted.short in one.name and one.finished and one.name != run.name]
    return found[-1] if found else None


def names(baseline: Subject, candidate: Subject) -> tuple[str, str]:
    """How the two are called: by their references, told apart where these are one (A/A)."""
    if baseline.ref != candidate.ref:
        return baseline.ref, candidate.ref
    return f"{baseline.ref} (first run)", f"{candidate.ref} (second run)"


def slices_of(samples: Iterable[Sample]) -> Sequence[str]:
    """The slices in order of appearance."""
    return list(dict.fromkeys(one.slice for one in samples if one.slice))
