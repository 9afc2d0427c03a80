"""Does the judge agree with people? Its calibration against answers that people have labelled.

Owns: the labels' file, asking the judge about each, the agreement, and where it is kept. Never: a judge's prompt, or
hiding what could not be judged: unreadable verdicts are counted, and are in no figure.

    STATE_DIR/judges/<key>.json     one calibration per judge, criterion and prompts; the latest one counts
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median_low
from typing import Any, Final, Literal

import msgspec
import numpy as np

from eval.agreement import Level, cohen_kappa, krippendorff_alpha
from eval.errors import StateDirError, SuiteError, SuiteGoneError
from eval.judge import AT_ONCE
from eval.results import Run, Sample
from eval.scorers import Judge, NoScoreError
from eval.scorers.judge import AGREE, DISAGREE, Judged, Judging, LlmJudge
from eval.statistics import wilson

RESAMPLES: Final = 1000
LABELS_MIN: Final = 10
"""Below, an agreement is noise: the calibration is refused."""
_PAIR: Final = {"second": 0, "tie": 1, "first": 2}
_PAIR_LABELS: Final = {"a": "first", "b": "second", "tie": "tie"}


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of a labels' file: an answer, or two, with what people say of it."""

    prompt: str
    id: str = ""
    answer: str | None = None
    reference: str = ""
    a: str | None = None
    b: str | None = None
    label: int | str | None = None
    """1 to the scale; of a pair `a`, `b` or `tie`."""
    labels: tuple[int | str, ...] = ()
    """In place of `label`, where several people said it."""


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its interval."""

    value: float
    low: float
    high: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How a judge fared on labelled answers."""

    judging: Judging
    labels: int
    labels_digest: str
    unreadable: int
    """Answers on which the judge gave no verdict that could be read."""
    accuracy: Estimate
    """Share of verdicts that are the people's; Wilson's interval."""
    kappa: float | None
    """Cohen's."""
    alphas: dict[str, float | None]
    """Krippendorff's, of the judge and the people's consensus: nominal, ordinal, interval."""
    alpha: Estimate | None
    """The one that fits: ordinal for scores, nominal for pairs; percentile bootstrap interval over the answers."""
    people: float | None = None
    """The same alpha among the people themselves, where several labelled each answer: what a judge can reach."""
    consistent: Estimate | None = None
    """Of pairs: the share whose verdict is the same in both orders."""
    first: int = 0
    """Of pairs: how often the one shown first won both times, as the next for the one shown last."""
    last: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    made_at: float = 0.0
    """Unix seconds."""

    @property
    def line(self) -> str:
        """The calibration in a line, for beside judged scores."""
        parts = [f"agrees with people on {self.accuracy.value:.0%} of {self.labels - self.unreadable} answers"]
        parts[0] += f" [{self.accuracy.low:.0%}, {self.accuracy.high:.0%}]"
        if self.alpha is not None:
            level = "nominal" if self.judging.criterion.mode == "pairwise" else "ordinal"
            parts.append(f"{level} α {self.alpha.value:.2f} [{self.alpha.low:.2f}, {self.alpha.high:.2f}]")
        if self.kappa is not None:
            parts.append(f"κ {self.kappa:.2f}")
        if self.consistent is not None:
            parts.append(f"same verdict in both orders for {self.consistent.value:.0%}")
        if self.unreadable:
            parts.append(f"{self.unreadable} unreadable")
        return ", ".join(parts)


def read(path: Path) -> list[Label]:
    """The labels in a JSONL file, all of one mode. Raises SuiteError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise SuiteGoneError(f"there are no labels at {path}: give the path of a JSONL file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path} cannot be read: {error}") from error
    found: list[Label] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label = msgspec.json.decode(line, type=Label)
        except msgspec.DecodeError as error:
            raise SuiteError(f"{path} line {number}: {error}") from error
        if (label.answer is None) == (label.a is None or label.b is None) or not (label.labels or label.label):
            raise SuiteError(
                f'{path} line {number}: a label is {{"prompt": …, "answer": …, "label": 4}}, or of a pair '
                '{"prompt": …, "a": …, "b": …, "label": "a"}'
            )
        if found and mode_of(found[0]) != mode_of(label):
            raise SuiteError(f"{path} line {number}: answers and pairs cannot be mixed: use a file for each")
        found.append(label)
    if len(found) < LABELS_MIN:
        raise SuiteError(f"{path} has {len(found)} labels: agreement needs at least {LABELS_MIN}, better 100 or more")
    return found


def mode_of(label: Label) -> Literal["rubric", "pairwise"]:
    return "rubric" if label.answer is not None else "pairwise"


def calibrate(
    judge: Judge,
    scorer: LlmJudge,
    judging: Judging,
    labels: Sequence[Label],
    *,
    alpha: float,
    rng: np.random.Generator,
    now: float,
    on_done: Callable[[], None] = lambda: None,
) -> Calibration:
    """Ask the judge about every labelled answer and compare.

    Raises SuiteError where a label is outside the scale, or where no verdict could be read.
    """
    people = [_ratings(label, scorer) for label in labels]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        judged = list(pool.map(lambda label: _judged(judge, scorer, label, on_done), labels))
    pairs = [(verdict, rated) for verdict, rated in zip(judged, people, strict=True) if verdict is not None]
    if len(pairs) < 2:
        raise SuiteError(f"the judge {scorer.judge} gave no verdict that can be read: is it fit to judge?")
    verdicts = [_number(verdict.verdict) for verdict, _ in pairs]
    consensus = [_consensus(rated) for _, rated in pairs]
    units = list(zip(verdicts, consensus, strict=True))
    right = sum(a == b for a, b in units)
    level: Level = "nominal" if scorer.mode == "pairwise" else "ordinal"
    levels: tuple[Level, ...] = ("nominal", "ordinal", "interval")
    orders = [verdict.orders for verdict, _ in pairs if verdict.orders is not None]
    same = sum(a == b for a, b in orders)
    several = [rated for rated in people if len(rated) > 1]
    return Calibration(
        judging=judging,
        labels=len(labels),
        labels_digest=hashlib.sha256(msgspec.json.encode(list(labels))).hexdigest(),
        unreadable=len(labels) - len(pairs),
        accuracy=_share(right, len(units), alpha),
        kappa=cohen_kappa(verdicts, consensus),
        alphas={one: krippendorff_alpha(units, one) for one in levels},
        alpha=_bootstrapped(units, level, alpha, rng),
        people=krippendorff_alpha(several, level) if several else None,
        consistent=_share(same, len(orders), alpha) if orders else None,
        first=orders.count(("first", "second")),
        last=orders.count(("second", "first")),
        prompt_tokens=sum(verdict.prompt_tokens for verdict, _ in pairs),
        completion_tokens=sum(verdict.completion_tokens for verdict, _ in pairs),
        made_at=now,
    )


def _judged(judge: Judge, scorer: LlmJudge, label: Label, on_done: Callable[[], None]) -> Judged | None:
    try:
        if label.answer is not None:
            return scorer.rate(judge, label.prompt, label.answer, label.reference)
        return scorer.compare(judge, label.prompt, label.a or "", label.b or "")
    except NoScoreError as error:
        if error.passing:  # a judge that is away tells nothing about how it judges
            raise SuiteError(str(error)) from error
        return None
    finally:
        on_done()


def _ratings(label: Label, scorer: LlmJudge) -> list[int]:
    """What each person said, as a number. Raises SuiteError where it is nothing that the judge could say."""
    given = label.labels or (label.label,)
    where = f"the label {given[0]!r} of {label.id or label.prompt[:40]!r}"
    if scorer.mode == "pairwise":
        if not all(isinstance(one, str) and one.lower() in _PAIR_LABELS for one in given):
            raise SuiteError(f"{where} must be `a`, `b` or `tie`")
        return [_PAIR[_PAIR_LABELS[str(one).lower()]] for one in given]
    if not all(isinstance(one, int) and 1 <= one <= scorer.scale for one in given):
        raise SuiteError(f"{where} must be a whole number from 1 to {scorer.scale} (--scale)")
    return [int(str(one)) for one in given]


def _consensus(ratings: Sequence[int]) -> int:
    """What most said; where several are said as often, the lower of the middle ones."""
    counts = Counter(ratings)
    most = [rating for rating, count in counts.items() if count == max(counts.values())]
    return most[0] if len(most) == 1 else median_low(ratings)


def _number(verdict: int | str) -> int:
    return _PAIR[verdict] if isinstance(verdict, str) else verdict


def _share(successes: int, n: int, alpha: float) -> Estimate:
    interval = wilson(successes, n, alpha)
    return Estimate(successes / n, interval.low, interval.high)


def _bootstrapped(
    units: Sequence[tuple[int, int]], level: Level, alpha: float, rng: np.random.Generator
) -> Estimate | None:
    value = krippendorff_alpha(units, level)
    if value is None:
        return None
    drawn = (
        krippendorff_alpha([units[i] for i in rng.integers(0, len(units), len(units))], level) for _ in range(RESAMPLES)
    )
    found = [one for one in drawn if one is not None]
    low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2])
    return Estimate(value, float(low), float(high))


def save(calibration: Calibration, folder: Path) -> Path:
    """Keep it, in one rename. Raises StateDirError."""
    path = folder / f"{calibration.judging.key}.json"
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(calibration)))
        temporary.replace(path)
    except OSError as error:
        raise StateDirError(path, "written", error) from error
    return path


def load(folder: Path, judging: Judging) -> Calibration | None:
    """The calibration of that judge, criterion and prompts, where there is one that can be read."""
    try:
        return msgspec.json.decode((folder / f"{judging.key}.json").read_bytes(), type=Calibration)
    except (OSError, msgspec.DecodeError):
        return None


def known(folder: Path) -> list[Calibration]:
    """Every calibration that can be read, the latest last."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Calibration))
        except (OSError, msgspec.DecodeError):
            continue
    return sorted(found, key=lambda one: one.made_at)


def of_run(run: Run, samples: Iterable[Sample] = ()) -> list[str]:
    """`told` about a run of a state directory; with its samples, also how often orders agreed, and what it took."""
    lines = told(run.info().judges, run.folder.parent.parent / "judges")
    tokens = seconds = 0.0
    pairs: Counter[bool] = Counter()
    for sample in samples:
        tokens += sample.scoring_tokens
        seconds += sample.scoring_s
        if sample.scorer == "judge" and sample.detail.startswith((AGREE, DISAGREE)):
            pairs[sample.detail.startswith(AGREE)] += 1
    if pairs:
        lines.append(f"both orders gave the same verdict for {pairs[True]} of {pairs.total()} pairs")
    if lines and tokens:
        lines.append(f"judging took {tokens:,.0f} tokens and {seconds:,.0f} s of waiting")
    return lines


def told(judgings: Sequence[Judging], folder: Path) -> list[str]:
    """A line for each judge of a run: how it agrees with people, or that nobody has looked."""
    lines = []
    for judging in judgings:
        calibration = load(folder, judging)
        what = (
            calibration.line
            if calibration is not None
            else ("never compared with people: modelyard eval judge calibrate LABELS.jsonl does it")
        )
        lines.append(f"judge {judging.ref} ({judging.criterion.mode}): {what}")
    return lines


def as_document(calibration: Calibration) -> dict[str, Any]:
    """The calibration as JSON has it, with its key."""
    found: dict[str, Any] = msgspec.to_builtins(calibration)
    return {"key": calibration.judging.key} | found
