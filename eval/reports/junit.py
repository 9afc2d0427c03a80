"""A comparison or a run as JUnit XML, for the test view of a CI system.

Owns: what counts as a failed test there. Never: the verdict, computing a figure.

One test suite. Its first test cases are the verdict and, where there are several, the gates: worse is a failure,
inconclusive an error, for nothing passes that was not shown. Then a test case per sample: a failure where the baseline
had it right and the candidate has not (a score from at least one half to below it), an error where the candidate has no
answer, skipped where the baseline has none. Of one run: a failure where the score is below one half, an error where
there is no answer. The figures are properties of the suite.

The document satisfies the schema of Ant's JUnit task as published, and the looser one of Jenkins' xUnit plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal
from xml.etree import ElementTree

from eval.compare import CANDIDATES_FAULT
from eval.reports import facts, words
from eval.reports.gather import ComparisonReport, Paired, RunReport
from eval.results import RunInfo, Sample
from eval.verdict import Verdict

RIGHT: Final = 0.5
"""From this score on, a sample counts as right."""
_TEXT_CHARACTERS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Test:
    """One test case, and what became of it."""

    group: str
    name: str
    time_s: float = 0.0
    outcome: Literal["", "failure", "error", "skipped"] = ""
    type: str = ""
    message: str = ""
    text: str = ""


def comparison(report: ComparisonReport) -> str:
    """The test suite of a comparison."""
    result = report.found.result
    overall = result.overall
    tests = [_verdict("verdict", result.verdict)]
    if len(result.gates) > 1:
        tests += [_verdict(gate.comparison.name, gate.verdict) for gate in result.gates]
    tests += [_pair(pair, repeats=report.baseline.key.repeats) for pair in report.pairs]
    figures = [
        ("verdict", result.verdict.text),
        ("difference", f"{overall.difference:.6f}"),
        ("interval", f"{overall.interval.low:.6f} {overall.interval.high:.6f}"),
        ("p", f"{overall.p:.6g}"),
        ("n", str(overall.n)),
        ("baseline mean", f"{overall.baseline.mean:.6f}"),
        ("candidate mean", f"{overall.candidate.mean:.6f}"),
        *((name.lower(), value) for name, value in facts.provenance(report)),
    ]
    return _document(report.candidate, tests, figures)


def run(report: RunReport) -> str:
    """The test suite of one run."""
    tests = [_sample(one, repeats=report.info.key.repeats) for one in report.samples]
    overall = [one for one in report.groups if one.kind == "overall"]
    figures = [(f"mean, {one.name}", f"{one.score.mean:.6f}") for one in overall]
    figures += [(name.lower(), value) for name, value in facts.run_provenance(report)]
    return _document(report.info, tests, figures)


def _verdict(name: str, verdict: Verdict) -> Test:
    if verdict.kind == "worse":
        return Test("gates", name, outcome="failure", type="worse", message=verdict.text)
    if verdict.kind == "inconclusive":
        return Test("gates", name, outcome="error", type="inconclusive", message=verdict.text)
    return Test("gates", name)


def _pair(pair: Paired, *, repeats: int) -> Test:
    name = _name(pair.any, repeats)
    group = pair.any.slice or pair.any.scorer
    time_s = pair.candidate.latency_s if pair.candidate else 0.0
    if pair.difference is None:
        if pair.reason in CANDIDATES_FAULT:
            why = pair.candidate.error if pair.candidate else ""
            return Test(group, name, time_s, "error", "unanswered", pair.reason, why)
        return Test(group, name, time_s, "skipped", "unpaired", pair.reason or "it has no score")
    assert pair.baseline is not None
    assert pair.candidate is not None
    before, after = pair.baseline.score or 0.0, pair.candidate.score or 0.0
    if not before >= RIGHT > after:
        return Test(group, name, time_s)
    text = _texts(
        ("prompt", pair.any.prompt),
        ("target", facts.target(pair.any.target)),
        ("baseline", facts.answer(pair.baseline)),
        ("candidate", facts.answer(pair.candidate)),
        ("why", pair.candidate.detail),
    )
    return Test(group, name, time_s, "failure", "lost", f"score {facts.score(before)} -> {facts.score(after)}", text)


def _sample(sample: Sample, *, repeats: int) -> Test:
    name, group = _name(sample, repeats), sample.slice or sample.scorer
    if sample.score is None:
        return Test(group, name, sample.latency_s, "error", "unanswered", sample.error or "it has no score")
    if sample.score >= RIGHT:
        return Test(group, name, sample.latency_s)
    text = _texts(
        ("prompt", sample.prompt),
        ("target", facts.target(sample.target)),
        ("answer", facts.answer(sample)),
        ("why", sample.detail),
    )
    return Test(group, name, sample.latency_s, "failure", "wrong", f"score {facts.score(sample.score)}", text)


def _name(sample: Sample, repeats: int) -> str:
    return f"{sample.case} [{sample.repeat}]" if repeats > 1 else sample.case


def _texts(*texts: tuple[str, str]) -> str:
    return "\n".join(f"{name}: {words.cut(text, _TEXT_CHARACTERS)[0]}" for name, text in texts if text)


def _document(info: RunInfo, tests: Sequence[Test], figures: Iterable[tuple[str, str]]) -> str:
    counts = {kind: sum(1 for test in tests if test.outcome == kind) for kind in ("failure", "error", "skipped")}
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": _token(info.suite),
            "package": _token(info.subject.ref),
            "id": "0",
            "timestamp": datetime.fromtimestamp(info.started_at, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": "localhost",
            "tests": str(len(tests)),
            "failures": str(counts["failure"]),
            "errors": str(counts["error"]),
            "skipped": str(counts["skipped"]),
            "time": f"{sum(test.time_s for test in tests):.3f}",
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in figures:
        ElementTree.SubElement(properties, "property", {"name": _token(name), "value": words.clean(value)})
    for test in tests:
        names = {"name": _token(test.name), "classname": _token(f"{info.suite}.{test.group}")}
        case = ElementTree.SubElement(suite, "testcase", names | {"time": f"{test.time_s:.3f}"})
        if test.outcome == "skipped":
            ElementTree.SubElement(case, "skipped", {"message": words.clean(test.message)})
        elif test.outcome:
            said = {"message": words.clean(test.message), "type": test.type}
            ElementTree.SubElement(case, test.outcome, said).text = words.clean(test.text)
    ElementTree.SubElement(suite, "system-out")
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _token(text: str) -> str:
    """As XML Schema's `token` has it: one line, single spaces; never empty."""
    return words.line(text, 300) or "-"
