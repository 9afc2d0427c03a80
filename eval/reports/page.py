"""Reports as one HTML file each, which needs nothing else and sends nothing anywhere.

Owns: filling the templates; the content policy; how many cases a page holds. Never: statistics, drawing, file names.

Every text of a user, a model or a data set goes through Jinja's escaping and `words.clean`; the only markup that is not
escaped is made here (`marked`, the plots, the page's own style and script). The policy allows exactly this style and
this script, by their hashes, and no request at all.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from eval.errors import need
from eval.reports import facts, figures, words
from eval.reports.differences import marked
from eval.reports.gather import ComparisonReport, Paired, RunReport, names, slices_of
from eval.results import Sample

if TYPE_CHECKING:
    from jinja2 import Environment

PROMPT_CHARACTERS: Final = 2_000
OUTPUT_CHARACTERS: Final = 4_000
LISTED_MAX: Final = 50
"""Of samples without an answer or a counterpart; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Text:
    """A user's text, cut, and how many characters were left out."""

    text: str | Markup
    left: int


@dataclass(frozen=True, slots=True)
class Card:
    """A case as the page shows it."""

    case: str
    slice: str
    change: str
    about: str
    prompt: Text
    target: Text
    baseline: Text
    candidate: Text
    baseline_score: str
    candidate_score: str
    detail: str


def comparison(report: ComparisonReport, *, flips: int) -> str:
    """The page of a comparison, with at most so many flips each way."""
    found, result = report.found, report.found.result
    baseline, candidate = names(found.baseline.subject, found.candidate.subject)
    verdict = result.verdict
    shown = [one for way in ("lost", "gained") for one in [flip for flip in report.flips if flip.change == way][:flips]]
    paired = [pair for pair in report.pairs if pair.difference is not None]
    scores = [
        ("baseline", [pair.baseline.score or 0.0 for pair in paired if pair.baseline]),
        ("candidate", [pair.candidate.score or 0.0 for pair in paired if pair.candidate]),
    ]
    sides = [("baseline", list(report.sides[0].values())), ("candidate", list(report.sides[1].values()))]
    return _render(
        "comparison.html",
        title=words.line(f"{words.WORD[verdict.kind]}: {candidate} against {baseline}, {report.baseline.suite}"),
        baseline=baseline,
        candidate=candidate,
        suite=report.baseline.suite,
        overall=result.overall,
        verdict=verdict,
        word=words.WORD[verdict.kind],
        sign=words.SIGN[verdict.kind],
        headline=words.headline(verdict.kind, baseline, candidate, report.settings.margin),
        sentences=[words.measured(result, report.level), words.meaning(result)],
        tiles=facts.tiles(report),
        how=facts.how(report),
        forest=figures.forest(report),
        sections=facts.sections(report.rows),
        table_note=facts.table_note(report),
        scores=figures.scores(scores),
        quality=figures.quality(report),
        costs=facts.costs(report),
        latency=figures.latency(sides),
        ratios=facts.ratios(report),
        drift=facts.drift(report),
        positions=figures.positions(report),
        flips=[_flip(pair) for pair in shown],
        flips_note=facts.flips_note(report, len(shown)),
        slices=slices_of(pair.any for pair in shown),
        unpaired=[(one.case, str(one.repeat), one.reason) for one in result.unpaired[:LISTED_MAX]],
        unpaired_note=_listed(len(result.unpaired)),
        command=report.command,
        facts=facts.provenance(report),
    )


def run(report: RunReport, *, cases: int) -> str:
    """The page of one run, with at most so many of its cases."""
    scores = [one.score for one in report.samples if one.score is not None]
    shown = report.lowest[:cases]
    failed = report.failed
    return _render(
        "run.html",
        title=words.line(f"{report.info.subject.ref} on {report.info.suite}"),
        name=report.info.subject.ref,
        suite=report.info.suite,
        samples=len(report.samples),
        finished=report.info.finished_at is not None,
        tiles=facts.run_tiles(report),
        means=figures.means(report),
        scores=figures.scores([("run", scores)]),
        latency=figures.latency([("run", report.samples)]),
        cases=[_case(one) for one in shown],
        cases_note=f"{len(shown):,} of {len(report.lowest):,}, the lowest scores first.",
        slices=slices_of(shown),
        failed=[(one.case, str(one.repeat), one.error) for one in failed[:LISTED_MAX]],
        failed_note=_listed(len(failed)),
        command=report.command,
        facts=facts.run_provenance(report),
    )


def _listed(number: int) -> str:
    more = f", of which {LISTED_MAX} are listed" if number > LISTED_MAX else ""
    return f"{words.count(number, 'sample')}{more}."


def _flip(pair: Paired) -> Card:
    assert pair.baseline is not None
    assert pair.candidate is not None
    left, right = _text(facts.answer(pair.baseline)), _text(facts.answer(pair.candidate))
    old, new = marked(str(left.text), str(right.text))
    return _card(pair.any, pair.change, Text(old, left.left), Text(new, right.left), pair.candidate)


def _case(sample: Sample) -> Card:
    return _card(sample, "", _text(facts.answer(sample)), Text("", 0), None)


def _card(sample: Sample, change: str, baseline: Text, candidate: Text, other: Sample | None) -> Card:
    detail = (other or sample).detail
    return Card(
        case=words.line(sample.case),
        slice=words.clean(sample.slice),
        change=change,
        about=facts.about(sample),
        prompt=_text(sample.prompt, PROMPT_CHARACTERS),
        target=_text(facts.target(sample.target), PROMPT_CHARACTERS),
        baseline=baseline,
        candidate=candidate,
        baseline_score=facts.score(sample.score),
        candidate_score=facts.score(other.score if other else None),
        detail=words.line(detail, 300),
    )


def _text(text: str, characters: int = OUTPUT_CHARACTERS) -> Text:
    return Text(*words.cut(text, characters))


@functools.cache
def _environment() -> Environment:
    jinja2 = need("jinja2")
    made: Environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.reports", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: words.clean(value) if type(value) is str else value,
    )
    made.filters |= {
        "clean": words.clean,
        "count": words.count,
        "signed": words.signed,
        "percent": words.percent,
        "p_value": words.p_value,
        "number": lambda value: f"{value:,}",
        "hundred": lambda share: f"{100 * share:.1f}",
    }
    return made


def _render(template: str, **values: Any) -> str:
    style, script = _part("style.css"), _part("script.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    page: str = (
        _environment()
        .get_template(template)
        .render(policy=Markup(policy), style=Markup(style), script=Markup(script), **values)  # noqa: S704 - our own
    )
    return page


def _part(name: str) -> str:
    return resources.files("eval.reports").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
