"""What the pages say beside their plots: tiles, how it was decided, cost, drift, provenance. Plain texts.

Owns: the choice and the wording. Never: computing a figure, escaping, layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata

from eval import judge_labels
from eval.assessment import Party
from eval.drift import Estimate
from eval.reports import words
from eval.reports.gather import ComparisonReport, Row, RunReport
from eval.results import RunInfo, Sample

Line = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure with its name, and what one has to know to read it."""

    name: str
    value: str
    note: str = ""


def tiles(report: ComparisonReport) -> list[Tile]:
    """The five or six figures that one wants first."""
    found = report.found
    overall, floor = found.result.overall, found.floor
    level = words.level(report.level)
    low, high = words.signed(overall.interval.low), words.signed(overall.interval.high)
    lost, gained = (sum(1 for one in report.flips if one.change == way) for way in ("lost", "gained"))
    noise = f"A/A noise: {words.percent(floor.discordance, 1)} of scores" if floor else "A/A noise not measured"
    before, after = found.baseline.performance, found.candidate.performance
    made = [
        Tile("Mean score of 100", f"{100 * overall.baseline.mean:.1f} → {100 * overall.candidate.mean:.1f}"),
        Tile("Difference, points", words.signed(overall.difference), f"{level} interval {low} to {high}"),
        Tile("Cases that changed", f"{lost:,} lost, {gained:,} gained", noise),
        Tile("Median time of an answer", _arrow(before.latency_p50_s, after.latency_p50_s), "as the client saw it"),
    ]
    costs = _cost_lines((found.baseline, found.candidate))
    if costs:
        made.append(Tile("Cost of 1,000 requests", f"{costs[0][1]} → {costs[0][2]}", costs[0][0].partition(", ")[2]))
    else:
        busy = _arrow(before.busy_s_per_1k, after.busy_s_per_1k)
        made.append(Tile("Busy time of 1,000 requests", busy, "no cost is known"))
    if found.drift:
        same = f"A/A noise: {words.percent(floor.exact_match)}" if floor else "A/A noise not measured"
        made.append(Tile("Answers equal to the letter", words.percent(found.drift.exact_match.value), same))
    return made


def how(report: ComparisonReport) -> list[str]:
    """How the verdict came about, a sentence each."""
    found, settings = report.found, report.settings
    result, overall = found.result, found.result.overall
    gates = ", ".join(gate.comparison.name for gate in result.gates) or ", ".join(settings.gates)
    adjusted = ", Holm-adjusted" if len(result.gates) > 1 else ""
    said = [
        f"The rule's verdict: {result.verdict.text}. It decides on {gates}{adjusted}.",
        f"Both versions got the same cases, and each case is compared with itself: {words.count(overall.n, 'pair')}"
        + (f"; {words.count(len(result.unpaired), 'sample')} could not be paired." if result.unpaired else "."),
        f"Interval: {overall.interval.method}. Test: {overall.test}, p {_p(overall.p)}. Two-sided error rate "
        f"α = {settings.alpha:g}; margin δ = {words.points(settings.margin)}.",
        f"So many cases show a true difference of {words.points(overall.detectable)} with a probability of 80%, a "
        "smaller one more rarely.",
    ]
    if len(result.gates) > 1:
        said += [
            f"Gate {gate.comparison.name}: {gate.verdict.text} (p {_p(gate.p_adjusted)})." for gate in result.gates
        ]
    if found.floor:
        said.append(
            f"Noise floor: asked twice, the baseline changed {words.percent(found.floor.discordance, 1)} of its scores "
            f"and {words.percent(1 - found.floor.exact_match, 1)} of its texts"
            + (
                f"; its mean score moved by {words.signed(found.floor.difference)} points, at most "
                f"{words.points(found.floor.bound)} by the interval."
                if found.floor.bound
                else "."
            )
        )
    else:
        said.append("Noise floor: not measured. eval compare --aa asks the baseline twice and keeps what it finds.")
    if found.family > 1:
        said.append(
            f"It was compared together with {words.count(found.family - 1, 'other candidate')}: intervals and p are "
            "adjusted for that."
        )
    for party in (found.baseline, found.candidate):
        if party.subject.note:
            said.append(f"{party.subject.ref}: {party.subject.note}.")
    return said


def sections(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """The rows in blocks: what decides, scorers, slices."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault("decides" if row.kind in {"overall", "gate"} else row.kind, []).append(row)
    return list(blocks.items())


def table_note(report: ComparisonReport) -> str:
    """What has to be known to read the table."""
    parts = [
        "Scores are of 100, differences in points. Changed: the share of cases with another score; A/A noise: the same "
        f"share where the baseline was asked twice{'' if report.found.floor else ' (– : nobody did)'}."
    ]
    if any(row.kind == "slice" for row in report.rows):
        parts.append("The p of slices is adjusted over all slices (Benjamini-Hochberg); slices decide nothing.")
    return " ".join(parts)


def flips_note(report: ComparisonReport, shown: int) -> str:
    """How many cases changed, how many are on the page, and how to get the rest."""
    total = len(report.flips)
    lost = sum(1 for one in report.flips if one.change == "lost")
    text = f"{words.count(lost, 'case')} lost, {total - lost:,} gained. Marked: the words that only one version has."
    if total > shown:
        text += f" The page holds {shown:,} of {total:,}; --flips {total} holds all, --format csv too."
    return text


def costs(report: ComparisonReport) -> list[Line]:
    """Costs, tokens and busy time of the two."""
    parties = (report.found.baseline, report.found.candidate)
    speeds = [party.performance for party in parties]
    return [
        *((f"cost of {name}", *values) for name, *values in _cost_lines(parties)),
        ("busy time of 1,000 requests, as the client saw it", *(words.seconds(one.busy_s_per_1k) for one in speeds)),
        ("tokens in", *(f"{one.prompt_tokens:,}" for one in speeds)),
        ("tokens out", *(f"{one.completion_tokens:,}" for one in speeds)),
        ("retries", *(f"{one.retries:,}" for one in speeds)),
    ]


def drift(report: ComparisonReport) -> list[Line]:
    """Text-level drift, the noise floor beside it."""
    found, floor = report.found.drift, report.found.floor
    if found is None:
        return []
    unknown = "not measured"
    by = found.distance_by if found.semantic else f"{found.distance_by}: spelling, not meaning"
    same = words.percent(floor.exact_match) if floor else unknown
    lines: list[Line] = [
        ("answers equal to the letter", *_share(found.exact_match), same),
        ("length, candidate : baseline", *_number(found.length_ratio, 2), ""),
        (f"mean distance ({by})", *_number(found.distance, 3), f"{floor.distance:.3f}" if floor else unknown),
        ("word pairs in common", *_share(found.ngram_overlap), ""),
    ]
    if found.mmd:
        lines.append(("MMD² of all answers", f"{found.mmd.value:.4f}", f"p {_p(found.mmd.test.p)}", ""))
    if found.same_language:
        lines.append(("answers in the baseline's language", *_share(found.same_language), ""))
    sides = ("baseline", "candidate")
    for side, refusals in zip(sides, found.refusals, strict=True):
        lines.append((f"refusals, {side}", *_share(refusals), ""))
    if any(one.value for one in found.json_valid):
        lines += [
            (f"valid JSON, {side}", *_share(valid), "") for side, valid in zip(sides, found.json_valid, strict=True)
        ]
    for side, reasons in zip(sides, found.finish_reasons, strict=True):
        told = ", ".join(f"{name} {number:,}" for name, number in reasons.items())
        lines.append((f"finish reasons, {side}", told, "", ""))
    return lines


def provenance(report: ComparisonReport) -> list[tuple[str, str]]:
    """Everything that the figures follow from."""
    found, settings = report.found, report.settings
    lines = [
        *_side("Baseline", report.baseline, found.baseline.run.name),
        *_side("Candidate", report.candidate, found.candidate.run.name),
        *_suite(report.baseline),
        *(("Judge", line) for line in judge_labels.of_run(found.candidate.run)),
        ("Gates, margin, α", f"{', '.join(settings.gates)}; {words.points(settings.margin)}; {settings.alpha:g}"),
        ("Seed of resampling", str(settings.seed)),
    ]
    if found.floor:
        lines.append(("A/A run", found.floor.run))
    return [*lines, _made_by()]


def run_tiles(report: RunReport) -> list[Tile]:
    """The figures of one run that one wants first."""
    overall = next((one for one in report.groups if one.kind == "overall"), None)
    speed = report.speed
    made = []
    if overall:
        interval = overall.score.interval
        level = words.level(1 - report.alpha)
        around = f"{level} interval {100 * interval.low:.1f} to {100 * interval.high:.1f}"
        made.append(Tile("Mean score of 100", f"{100 * overall.score.mean:.1f}", around))
    made += [
        Tile("Samples", f"{len(report.samples):,}", f"{len(report.failed):,} without an answer"),
        Tile(
            "Median time of an answer", words.seconds(speed.latency_p50_s), f"p95 {words.seconds(speed.latency_p95_s)}"
        ),
        Tile("Median time to first token", words.seconds(speed.ttft_p50_s), f"p95 {words.seconds(speed.ttft_p95_s)}"),
        Tile("Tokens in, out", f"{speed.prompt_tokens:,}, {speed.completion_tokens:,}"),
        Tile("Busy time of 1,000 requests", words.seconds(speed.busy_s_per_1k), "as the client saw it"),
    ]
    return made


def run_provenance(report: RunReport) -> list[tuple[str, str]]:
    """Everything that the figures of one run follow from."""
    judges = [("Judge", line) for line in judge_labels.of_run(report.run)]
    return [*_side("Version", report.info, report.run.name), *_suite(report.info), *judges, _made_by()]


def answer(sample: Sample) -> str:
    """What the version answered: text, then tool calls."""
    parts = [sample.output, f"tool calls: {sample.tool_calls}" if sample.tool_calls else ""]
    return "\n".join(part for part in parts if part) or (f"(no answer: {sample.error})" if sample.error else "")


def target(text: str) -> str:
    """A target as one reads it: a string without its quotes, anything else as JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def about(sample: Sample) -> str:
    """Where a case belongs."""
    return words.line(" · ".join(part for part in (sample.slice, sample.scorer, sample.cluster) if part))


def score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _side(title: str, info: RunInfo, run: str) -> list[tuple[str, str]]:
    subject = info.subject
    return [
        (title, f"{subject.ref} ({subject.model} at {subject.url})"),
        (f"{title}'s digest", subject.digest or "unknown: URL and model name stand for it"),
        (f"{title}'s run", f"{run}, {words.when(info.started_at)}"),
    ]


def _suite(info: RunInfo) -> list[tuple[str, str]]:
    key = info.key
    sampling = f"temperature {key.sampling.temperature:g}, at most {key.sampling.max_tokens} tokens"
    if key.sampling.top_p is not None:
        sampling += f", top p {key.sampling.top_p:g}"
    return [
        ("Suite", f"{info.suite} {info.suite_version} ({info.suite_source})"),
        ("Suite's digest", key.suite_digest),
        ("Sampling", f"{sampling}; seed {key.seed}; {words.count(key.repeats, 'repeat')}"),
    ]


def _made_by() -> tuple[str, str]:
    try:
        return ("Made by", f"modelyard {metadata.version('modelyard')}")
    except metadata.PackageNotFoundError:  # run from a checkout
        return ("Made by", "modelyard")


def _cost_lines(parties: Sequence[Party]) -> list[tuple[str, str, str]]:
    """(what, baseline, candidate) of each basis that either version has: the runs' own cost first."""
    lines = []
    for basis, method in dict.fromkeys((cost.basis, cost.method) for party in parties for cost in party.spent):
        each = [next((c for c in party.spent if (c.basis, c.method) == (basis, method)), None) for party in parties]
        where = f"{basis} ({method}; this run)"
        for what, values in (
            ("1,000 requests", [one.per_1k_requests if one else None for one in each]),
            ("a right answer", [one.per_correct if one else None for one in each]),
            ("the whole run", [one.total if one else None for one in each]),
        ):
            cells = [_money(value, one.currency if one else "") for value, one in zip(values, each, strict=True)]
            lines.append((f"{what}, {where}", *cells))
    for basis, method in dict.fromkeys((cost.basis, cost.method) for party in parties for cost in party.costs):
        known = [next((c for c in party.costs if (c.basis, c.method) == (basis, method)), None) for party in parties]
        cells = [_money(one.per_1k_requests, one.currency) if one else "–" for one in known]
        lines.append((f"1,000 requests, {basis} ({method}; all traffic so far)", *cells))
    return [(name, before, after) for name, before, after in lines]


def _money(value: float | None, currency: str) -> str:
    return "–" if value is None else f"{value:,.4g} {currency}"


def ratios(report: ComparisonReport) -> list[Line]:
    """Speed and engine time, candidate : baseline, over the same samples."""
    return [
        (
            one.name,
            f"{one.n:,}",
            f"{one.ratio:.2f}",
            f"{one.interval.low:.2f} to {one.interval.high:.2f}",
            *(words.seconds(mean) if one.unit == "s" else f"{mean:,.1f}" for mean in (one.baseline, one.candidate)),
        )
        for one in report.found.ratios
    ]


def _arrow(before: float | None, after: float | None) -> str:
    return f"{words.seconds(before)} → {words.seconds(after)}"


def _p(p: float) -> str:
    text = words.p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _share(estimate: Estimate) -> tuple[str, str]:
    low, high = estimate.interval.low, estimate.interval.high
    return words.percent(estimate.value), f"{words.percent(low)} to {words.percent(high)}"


def _number(estimate: Estimate, digits: int) -> tuple[str, str]:
    low, high = estimate.interval.low, estimate.interval.high
    return f"{estimate.value:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"
