"""Results as tables for people.

Owns: what is shown in which order, and how figures are rounded. Never: computing them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from eval.assessment import Assessment, Flip, Party, Ratio
from eval.compare import Comparison
from eval.drift import Drift, Estimate
from eval.floors import Floor
from eval.performance import Performance
from eval.reports import words
from eval.reports.facts import target
from eval.results import Sample, Subject
from eval.statistics import Interval
from eval.suite import Suite
from eval.summary import Group
from eval.verdict import Kind

_COLOURS: dict[Kind, str] = {"better": "green", "non-inferior": "green", "worse": "red", "inconclusive": "yellow"}
_TEXT_CHARACTERS = 160
SIDES_WITH_INTERVALS_COLUMNS = 100


def plan(
    console: Console,
    suite: Suite,
    sides: Sequence[tuple[str, Subject, str]],
    *,
    repeats: int,
    margin: float,
    alpha: float,
    planned: Sequence[tuple[float, float]],
) -> None:
    """What is about to be compared, and what the comparison will be able to see."""
    asked = f"{len(suite.cases)} cases" + (f" x {repeats} repeats" if repeats > 1 else "")
    console.print(f"[bold]{_safe(suite.name)}[/] {suite.version}  {asked}  [dim]{short(suite.digest)}[/]")
    for name, subject, state in sides:
        digest = short(subject.digest) if subject.digest else "digest unknown"
        console.print(f"  {name:<9} [bold]{_safe(subject.ref)}[/]  [dim]{digest}[/]  {state}")
        if subject.note:
            console.print(f"            [dim]{_safe(subject.note)}[/]")
    effects = ", ".join(
        f"{100 * effect:.1f} points if {100 * share:g}% of the answers flip" for share, effect in planned
    )
    console.print(f"  detectable at alpha {alpha:g} with power 0.8: {effects};  margin δ {100 * margin:g} points\n")


def comparison(console: Console, found: Assessment, *, alpha: float, flips: int) -> None:
    """Everything after the runs: scores, verdict, flips, drift, speed, cost."""
    result = found.result
    console.print(
        f"scores and their difference in points, with {100 * (1 - alpha):g}% intervals; flips lost / gained\n"
    )
    _groups(console, "scorer", (*result.scorers, result.overall))
    if len(result.slices) > 1:
        _groups(console, "slice", result.slices)
        console.print("[dim]q: p adjusted over the slices (Benjamini-Hochberg)[/]\n")
    _unpaired(console, found)
    overall = result.overall
    units = f", {overall.clusters} clusters" if overall.clusters else ""
    t = f", t = {overall.t:.2f} on {overall.df} df" if overall.t is not None else ""
    console.print(
        f"paired difference {signed(overall.difference)} points, SE {100 * overall.se:.1f}{t}, n = {overall.n}{units}; "
        f"interval: {overall.interval.method}; test: {overall.test}, p = {overall.p:.3g}; "
        f"detectable here: {100 * overall.detectable:.1f} points"
    )
    if len(result.gates) > 1:
        for gate in result.gates:
            console.print(
                f"  gate {_safe(gate.comparison.name)}: {_safe(gate.verdict.text)} (Holm p = {gate.p_adjusted:.3g})"
            )
    _flips(console, found.flips, flips)
    if found.drift:
        drift(console, found.drift, found.floor)
    _parties(console, found.baseline, found.candidate)
    _ratios(console, found.ratios)
    kind = result.verdict.kind
    name = f"{_safe(found.candidate.subject.ref)} against {_safe(found.baseline.subject.ref)}"
    console.print(f"[bold]verdict[/]  {name}: [bold {_COLOURS[kind]}]{_safe(result.verdict.text)}[/]")


def drift(console: Console, found: Drift, floor: Floor | None) -> None:
    """Output drift, with the noise floor beside it."""
    table = _table("output drift", "value", "interval", "A/A noise", title_rows=True)
    unknown = "not measured"
    table.add_row("same text", *_share(found.exact_match), f"{100 * floor.exact_match:.0f}%" if floor else unknown)
    table.add_row("length ratio", *_number(found.length_ratio), "")
    table.add_row("mean distance", *_number(found.distance, 3), f"{floor.distance:.3f}" if floor else unknown)
    table.add_row("shared word pairs", *_share(found.ngram_overlap), "")
    if found.mmd:
        table.add_row("MMD² of all", f"{found.mmd.value:.4f}", f"p = {found.mmd.test.p:.3g}", "")
    sides = ("baseline", "candidate")
    for side, refusals in zip(sides, found.refusals, strict=True):
        table.add_row(f"refusals, {side}", *_share(refusals), "")
    if any(one.value for one in found.json_valid):
        for side, valid in zip(sides, found.json_valid, strict=True):
            table.add_row(f"valid JSON, {side}", *_share(valid), "")
    if found.same_language and found.same_language.value < 1:
        table.add_row("same language", *_share(found.same_language), "")
    if floor:
        table.add_row("scores that differ", "", "", f"{100 * floor.discordance:.1f}%")
    console.print(table)
    for side, reasons in zip(sides, found.finish_reasons, strict=True):
        told = ", ".join(f"{name} {count}" for name, count in reasons.items())
        console.print(f"[dim]finish reasons, {side}: {_safe(told)}[/]")
    by = found.distance_by if found.semantic else f"{found.distance_by}; spelling, not meaning"
    console.print(f"[dim]distances by {_safe(by)}[/]")
    if floor is None:
        console.print("[dim]noise floor: compare the baseline with itself to measure it[/]")
    console.print()


def run_summary(
    console: Console, title: str, groups: Sequence[Group], speed: Performance, failed: Sequence[Sample]
) -> None:
    """The scores of one run."""
    console.print(f"[bold]{_safe(title)}[/]")
    table = _table("scores", "", "n", "mean", "interval")
    for group in groups:
        low_high = f"[{group.score.interval.low:.2f}, {group.score.interval.high:.2f}]"
        kind = "" if group.kind == group.name else group.kind
        table.add_row(_safe(group.name), kind, str(group.n), f"{group.score.mean:.3f}", _safe(low_high))
    console.print(table)
    if failed:
        first = f"{failed[0].case}: {failed[0].error}"
        console.print(f"[yellow]{len(failed)} samples failed[/], the first: {_safe(first)}")
    console.print(
        f"time to first token p50 {seconds(speed.ttft_p50_s)} p95 {seconds(speed.ttft_p95_s)}, latency p50 "
        f"{seconds(speed.latency_p50_s)} p95 {seconds(speed.latency_p95_s)}; {speed.prompt_tokens:,} tokens in, "
        f"{speed.completion_tokens:,} out; busy {seconds(speed.busy_s)}"
    )


def runs(console: Console, rows: Iterable[dict[str, Any]]) -> None:
    """The list of runs."""
    table = _table("run", "samples", "failed", "score", "state", "started")
    for row in rows:
        score = f"{row['score']:.3f}" if row["score"] is not None else "-"
        started = datetime.fromtimestamp(row["started_at"]).astimezone().strftime("%Y-%m-%d %H:%M")
        done = f"{row['done']}/{row['planned']}"
        table.add_row(_safe(row["run"]), done, str(row["failed"]), score, row["state"], started)
    console.print(table)


def _groups(console: Console, first: str, groups: Sequence[Comparison]) -> None:
    """A row per group. A narrow terminal gets the sides' means without their intervals: a cell never wraps."""
    wide = console.width >= SIDES_WITH_INTERVALS_COLUMNS
    adjusted = any(group.q is not None for group in groups)
    columns = ("n", "baseline", "candidate", "difference", "flips", "q" if adjusted else "p")
    table = _table(first, *columns, no_wrap=True)
    for group in groups:
        interval = group.interval
        table.add_row(
            _safe(group.name),
            str(group.n),
            _side(group.baseline.mean, group.baseline.interval if wide else None),
            _side(group.candidate.mean, group.candidate.interval if wide else None),
            f"{signed(group.difference)} [{signed(interval.low)}, {signed(interval.high)}]",
            f"{group.losses} / {group.gains}",
            f"{group.p if group.q is None else group.q:.3g}",
            style="bold" if group.name == "overall" else None,
        )
    console.print(table)
    console.print()


def _unpaired(console: Console, found: Assessment) -> None:
    missing = found.result.unpaired
    if missing:
        listed = "; ".join(f"{_line(one.case, 40)} ({one.reason})" for one in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        console.print(f"[yellow]{len(missing)} samples could not be paired:[/] {escape(listed)}{more}")


def _flips(console: Console, found: Sequence[Flip], count: int) -> None:
    for gained, title in ((False, "lost: the baseline was right"), (True, "gained: the candidate is right")):
        those = [flip for flip in found if flip.gained is gained]
        if not those or not count:
            continue
        console.print(f"\n[bold]{title}[/] ({len(those)})")
        for flip in those[:count]:
            _flip(console, flip)
        if len(those) > count:
            console.print(f"  [dim]and {len(those) - count} more (--flips {len(those)})[/]")
    console.print()


def _flip(console: Console, flip: Flip) -> None:
    """Prompt, target and both answers, a line of the terminal each."""
    console.print(f"  [bold]{_safe(flip.case)}[/]")
    rows = (("prompt", flip.prompt), ("target", target(flip.target)), ("baseline", flip.baseline))
    for name, text in (*rows, ("candidate", flip.candidate)):
        style = "dim" if name in {"prompt", "target"} else ""
        room = min(_TEXT_CHARACTERS, max(20, console.width - 14))
        console.print(Text(f"    {name:<9} {_line(text, room)}", style=style))


def _parties(console: Console, baseline: Party, candidate: Party) -> None:
    table = _table("speed and cost", "baseline", "candidate", title_rows=True)

    def row(name: str, read: Callable[[Performance], str]) -> None:
        table.add_row(name, read(baseline.performance), read(candidate.performance))

    row("time to first token p50 / p95", lambda one: f"{seconds(one.ttft_p50_s)} / {seconds(one.ttft_p95_s)}")
    row("latency p50 / p95", lambda one: f"{seconds(one.latency_p50_s)} / {seconds(one.latency_p95_s)}")
    row("tokens in / out", lambda one: f"{one.prompt_tokens:,} / {one.completion_tokens:,}")
    row("client's busy time per 1k", lambda one: seconds(one.busy_s_per_1k))
    bases = dict.fromkeys((cost.basis, cost.method) for one in (baseline, candidate) for cost in one.costs)
    for basis, method in bases:
        cells = [
            next(
                (f"{c.per_1k_requests:.4f} {c.currency}" for c in one.costs if (c.basis, c.method) == (basis, method)),
                "-",
            )
            for one in (baseline, candidate)
        ]
        table.add_row(f"cost per 1k, {basis} ({method})*", *cells)
    _cost_rows(table, baseline, candidate)
    console.print(table)
    if bases:
        console.print("[dim]* per 1,000 requests, over all traffic that the version has had[/]")
    elif not (baseline.spent or candidate.spent):
        console.print("[dim]no cost is known: no admin API told one, and --price was not given[/]")
    console.print()


def browse(console: Console, baseline: str, candidate: str, found: Sequence[Flip], *, one: bool) -> None:
    """Flips in full, a screen at a time where a terminal shows them."""
    with console.pager(styles=True) if console.is_terminal and not one else nullcontext():
        console.print(f"[bold]{_safe(baseline)}[/] against [bold]{_safe(candidate)}[/]: {len(found)}\n")
        for number, flip in enumerate(found, start=1):
            kind = "gained" if flip.gained else "lost" if flip.candidate_score < flip.baseline_score else "same"
            where = f"  slice {_safe(flip.slice)}" if flip.slice else ""
            console.print(f"[bold]{number}/{len(found)} {_safe(flip.case)}[/]  {kind}  {_safe(flip.scorer)}{where}")
            rows = [
                ("prompt", flip.prompt, ""),
                ("target", flip.target, ""),
                ("baseline", flip.baseline, _worth(flip.baseline_score, flip.baseline_detail)),
                ("candidate", flip.candidate, _worth(flip.candidate_score, flip.candidate_detail)),
            ]
            for name, text, worth in rows:
                console.print(f"  [dim]{name:<9}[/] {_safe(worth)}".rstrip())
                console.print(Padding(escape(words.clean(text)), (0, 0, 0, 4), expand=False))
            console.print()


def _worth(score: float, detail: str) -> str:
    return f"{score:g}" + (f"  {detail}" if detail else "")


def family(console: Console, found: Sequence[Assessment], *, alpha: float) -> None:
    """Several candidates in a row each, decided as one family."""
    table = _table("candidate", "n", "mean", "difference", "p (Holm)", "engine time", "verdict", no_wrap=True)
    for one in found:
        overall = one.result.overall
        adjusted = [gate.p_adjusted for gate in one.result.gates]
        engine = next((ratio for ratio in one.ratios if ratio.name == "engine time"), None)
        kind = one.result.verdict.kind
        table.add_row(
            _safe(one.candidate.subject.ref),
            str(overall.n),
            f"{overall.candidate.mean:.3f}",
            f"{signed(overall.difference)} [{signed(overall.interval.low)}, {signed(overall.interval.high)}]",
            f"{min(adjusted):.3g}" if adjusted else "-",
            f"x {engine.ratio:.2f}" if engine else "-",
            f"[{_COLOURS[kind]}]{kind}[/]",
        )
    console.print(table)
    level = 100 * (1 - alpha / len(found))
    console.print(
        f"[dim]{len(found)} candidates against one baseline: intervals at {level:g}%, p adjusted over candidates and "
        "gates (Holm)[/]\n"
    )


def _ratios(console: Console, ratios: Sequence[Ratio]) -> None:
    """Speed and engine time, candidate / baseline, over the same samples."""
    if not ratios:
        return
    table = _table("candidate / baseline, paired", "n", "ratio", "interval", "baseline", "candidate", no_wrap=True)
    for one in ratios:
        means = [seconds(value) if one.unit == "s" else f"{value:.1f}" for value in (one.baseline, one.candidate)]
        low_high = f"[{one.interval.low:.2f}, {one.interval.high:.2f}]"
        table.add_row(one.name, str(one.n), f"{one.ratio:.2f}", _safe(low_high), *means)
    console.print(table)
    console.print()


def _cost_rows(table: Table, baseline: Party, candidate: Party) -> None:
    """What the two runs themselves cost, by basis."""
    bases = dict.fromkeys((one.basis, one.currency) for party in (baseline, candidate) for one in party.spent)
    for basis, currency in bases:
        found = [
            next((one for one in party.spent if (one.basis, one.currency) == (basis, currency)), None)
            for party in (baseline, candidate)
        ]
        table.add_row(
            f"this run, {basis}", *(f"{one.total:.6f} {currency}" if one else "not measured" for one in found)
        )
        rights = (f"{one.per_correct:.8f} {currency}" if one and one.per_correct is not None else "-" for one in found)
        table.add_row(f"per right answer, {basis}", *rights)


def _table(first: str, *columns: str, title_rows: bool = False, no_wrap: bool = False) -> Table:
    gap = 1 if no_wrap else 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap, 0, 0))
    table.add_column(first, overflow="fold", ratio=None)
    for column in columns:
        table.add_column(column, justify="left" if title_rows else "right", no_wrap=no_wrap)
    return table


def _side(mean: float, interval: Interval | None) -> str:
    return f"{mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]" if interval else f"{mean:.2f}"


def _share(estimate: Estimate) -> tuple[str, str]:
    interval = estimate.interval
    return f"{100 * estimate.value:.0f}%", f"[{100 * interval.low:.0f}%, {100 * interval.high:.0f}%]"


def _number(estimate: Estimate, digits: int = 2) -> tuple[str, str]:
    interval = estimate.interval
    return f"{estimate.value:.{digits}f}", f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _line(text: str, characters: int = _TEXT_CHARACTERS) -> str:
    """On one line and without control characters: an answer must not steer the terminal."""
    return words.line(text, characters)


def _safe(text: str) -> str:
    """The same, and no markup of rich's."""
    return escape(_line(text, 300))


def signed(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}"


def seconds(value: float | None) -> str:
    """A duration in the unit that reads best."""
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:,.1f} s"


def short(digest: str) -> str:
    """`sha256:` and the first twelve characters."""
    return digest[:19]
