"""Finished runs for the tests of reports, made from samples through the real classes.

Owns: two versions and a second run of the first, on a small suite with texts that mean harm. Never: asserting.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from eval.reports import gather
from eval.reports.gather import ComparisonReport, Settings
from eval.results import Journal, Run, RunKey, RunStore, Sample, Subject
from eval.suite import Case, Message, Sampling, ScorerSpec, Suite

HARM = '<script>window.harm=1</script><img src=x onerror="window.harm=1"></pre></code><a href="javascript:harm()">'
"""Harmful wherever it is not escaped: `window.harm` tells."""
TABLE_BREAKER = "a|b `c` [d](http://example.com) @somebody #1\n| e |"
CONTROL = "bell \x07 escape \x1b[31m null \x00 override \u202e end"
STARTED_AT = 1_795_259_080.5

SETTINGS = Settings(gates=("overall",), margin=0.05, alpha=0.05, seed=7)


@dataclass(frozen=True)
class Runs:
    """Two finished runs, the first's second run, and the store that they are in."""

    store: RunStore
    baseline: Run
    candidate: Run
    twin: Run

    def report(self, settings: Settings = SETTINGS) -> ComparisonReport:
        return gather.of_runs(self.baseline, self.candidate, store=self.store, settings=settings)


def suite(cases: int, prompt: str = HARM) -> Suite:
    """Cases in three slices, the first two of them with harmful names."""
    slices = ("arithmetic", f"s|{HARM}", "$x^2$ <b>")
    made = tuple(
        Case(
            id=f"case-{index:03d}" if index else f"case-000 {CONTROL}",
            messages=(Message("user", f"Question {index} {prompt}\nsecond line | {TABLE_BREAKER}"),),
            target=["right", {"a": "<b>"}][index % 2],
            scorer=ScorerSpec(("exact", "contains")[index % 2]),
            slice=slices[index % 3],
        )
        for index in range(cases)
    )
    return Suite(
        name="report-suite", version=3, description="", cases=made, sampling=Sampling(), source="away/suite.yaml"
    )


def run(store: RunStore, asked: Suite, label: str, scores: list[float | None], *, twin: bool = False) -> Run:
    """A finished run with these scores; None for a sample without an answer."""
    ref = f"assistant@{label}"
    subject = Subject(ref=ref, model=ref, url="http://127.0.0.1:8000", digest=f"sha256:{label:0<64}")
    key = RunKey(
        suite_digest=asked.digest, identity=subject.identity, sampling=asked.sampling, seed=0, repeats=1, twin=twin
    )
    made = store.open(asked, subject, key, fresh=False, now=STARTED_AT)
    journal = Journal(made.journal)
    for index, (case, score) in enumerate(zip(asked.cases, scores, strict=True)):
        journal.append(_sample(case, index, score, label))
    journal.close()
    made.compact(STARTED_AT + 60)
    return made


def _sample(case: Case, index: int, score: float | None, label: str) -> Sample:
    answered = score is not None
    return Sample(
        case=case.id,
        repeat=0,
        slice=case.slice,
        scorer=case.scorer.name,
        prompt=case.messages[-1].content,
        prompt_digest=case.prompt_digest,
        target=json.dumps(case.target),
        target_digest=case.target_digest,
        output=f"The answer of {label} is {score} {HARM} {CONTROL}" if answered else "",
        score=score,
        error="" if answered else f"HTTP 400 {HARM}",
        finish_reason="stop" if answered else "",
        prompt_tokens=12,
        completion_tokens=7 + index % 5,
        ttft_s=0.05 + 0.001 * index if answered else None,
        latency_s=0.2 + 0.01 * index + (0.05 if label == "v2" else 0.0),
        started_at=STARTED_AT + index,
        detail=f"because | {HARM}",
    )


def make(root: Path, cases: int = 60, *, lost: int = 14, gained: int = 3, prompt: str = HARM) -> Runs:
    """Runs of which the candidate lost and gained so many cases, and left one without an answer."""
    store, asked = RunStore(root), suite(cases, prompt)
    before: list[float | None] = [1.0 if index < cases * 2 // 3 else 0.0 for index in range(cases)]
    after, again = list(before), list(before)
    for index in range(lost):
        after[index + 1] = 0.0
    for index in range(gained):
        after[cases - 1 - index] = 1.0
    after[0] = None
    again[5] = 0.0
    baseline = run(store, asked, "v1", before)
    candidate = run(store, asked, "v2", after)
    return Runs(store, baseline, candidate, run(store, asked, "v1", again, twin=True))
