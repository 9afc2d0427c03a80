"""A comparison or a run as Markdown for a pull request.

Owns: order, brevity and escaping. Never: computing a figure.

A comment on GitHub holds 65,536 characters; this stays under 60,000 bytes and counts what it left out. Texts of users,
models and data sets stand in `<code>` and `<pre>` with every ASCII sign as an entity: they can open no tag, no table
cell, no link, and mention nobody.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from eval.reports import facts, words
from eval.reports.gather import ComparisonReport, Paired, Row, RunReport, names
from eval.results import Sample

Item = TypeVar("Item")

BYTES_MAX: Final = 60_000
ROWS_MAX: Final = 60
_ROOM_FOR_THE_END: Final = 4_000
_TEXT_CHARACTERS: Final = 300
_ENTITIES: Final = {ord(sign): f"&#{ord(sign)};" for sign in string.punctuation}


def comparison(report: ComparisonReport) -> str:
    """Verdict, table, the changed cases and how it was decided, the latter two folded."""
    found, result = report.found, report.found.result
    baseline, candidate = (code(name) for name in names(found.baseline.subject, found.candidate.subject))
    kind = result.verdict.kind
    margin = report.settings.margin
    top = [
        f"### {words.SIGN[kind]} {words.WORD[kind]}: {candidate} against {baseline} on {code(report.baseline.suite)}",
        "",
        f"**{words.headline(kind, baseline, candidate, margin)}**",
        f"{words.measured(result, report.level)} {words.meaning(result)}",
        "",
        *_table(report),
        "",
    ]
    speeds = [party.performance for party in (found.baseline, found.candidate)]
    times = " → ".join(words.seconds(one.latency_p50_s) for one in speeds)
    busy = " → ".join(words.seconds(one.busy_s_per_1k) for one in speeds)
    top += [f"Median time of an answer {times}; busy time of 1,000 requests {busy}.", ""]
    end = [
        *_folded("How it was decided", [f"- {prose(sentence)}" for sentence in facts.how(report)]),
        *_folded("Where it comes from", _facts(facts.provenance(report), report.command)),
    ]
    flips = report.flips
    lost = sum(1 for one in flips if one.change == "lost")
    title = f"{words.count(len(flips), 'case')} changed: {lost:,} lost, {len(flips) - lost:,} gained"
    return _within_limit(top, title, flips, _flip, end)


def run(report: RunReport) -> str:
    """The scores of one run, and the cases without the full score, folded."""
    info = report.info
    top = [
        f"### {code(info.subject.ref)} on {code(info.suite)}",
        "",
        "| group | n | mean | interval |",
        "|---|--:|--:|--:|",
    ]
    groups = sorted(report.groups, key=lambda one: one.kind != "overall")
    for group in groups[:ROWS_MAX]:
        interval = group.score.interval
        name = f"**{group.name}**" if group.kind == "overall" else f"{code(group.name)} ({group.kind})"
        between = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
        top.append(f"| {name} | {group.n:,} | {100 * group.score.mean:.1f} | {between} |")
    if len(groups) > ROWS_MAX:
        top += ["", f"and {words.count(len(groups) - ROWS_MAX, 'more group')}"]
    speed = report.speed
    first, whole = words.seconds(speed.ttft_p50_s), words.seconds(speed.latency_p50_s)
    top += [
        "",
        f"Median time to first token {first}, of an answer {whole}; {len(report.failed):,} without an answer.",
        "",
    ]
    end = _folded("Where it comes from", _facts(facts.run_provenance(report), report.command))
    lowest = report.lowest
    return _within_limit(top, f"{words.count(len(lowest), 'case')} without the full score", lowest, _case, end)


def code(text: str) -> str:
    """A user's text on one line, as code."""
    return f"<code>{words.line(text, 120).translate(_ENTITIES)}</code>"


def prose(text: str) -> str:
    """A sentence that may hold a user's text: no markup, no mention."""
    return re.sub(r"(?<!\w)&#64;", "&#64;\u200b", words.line(text, 500).translate(_ENTITIES))


def _table(report: ComparisonReport) -> list[str]:
    level = words.level(report.level)
    lines = [
        f"| group | n | baseline | candidate | difference [{level}] | lost / gained | A/A noise | p | verdict |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    lines += [_row(row) for row in report.rows[:ROWS_MAX]]
    if len(report.rows) > ROWS_MAX:
        lines += ["", f"and {words.count(len(report.rows) - ROWS_MAX, 'more group')} (in the HTML report)"]
    return lines


def _row(row: Row) -> str:
    group = row.group
    low, high = words.signed(group.interval.low), words.signed(group.interval.high)
    name = f"**{group.name}**" if row.kind == "overall" else f"{code(group.name)} ({row.kind})"
    cells = (
        name,
        f"{group.n:,}",
        f"{100 * group.baseline.mean:.1f}",
        f"{100 * group.candidate.mean:.1f}",
        f"{words.signed(group.difference)} [{low}, {high}]",
        f"{group.losses} / {group.gains}",
        "–" if row.noise is None else words.percent(row.noise),
        words.p_value(group.p if row.p_adjusted is None else row.p_adjusted),
        f"**{row.verdict.kind}**" if row.verdict else "",
    )
    return f"| {' | '.join(cells)} |"


def _flip(pair: Paired) -> list[str]:
    assert pair.baseline is not None
    assert pair.candidate is not None
    sign = "▼ lost" if pair.change == "lost" else "▲ gained"
    return [
        f"**{sign}** {code(pair.case)} {code(facts.about(pair.any)) if facts.about(pair.any) else ''}".rstrip(),
        *_texts(
            ("prompt", pair.any.prompt),
            ("target", facts.target(pair.any.target)),
            (f"baseline ({facts.score(pair.baseline.score)})", facts.answer(pair.baseline)),
            (f"candidate ({facts.score(pair.candidate.score)})", facts.answer(pair.candidate)),
        ),
    ]


def _case(sample: Sample) -> list[str]:
    return [
        f"{code(sample.case)} {code(facts.about(sample)) if facts.about(sample) else ''}".rstrip(),
        *_texts(
            ("prompt", sample.prompt),
            ("target", facts.target(sample.target)),
            (f"answer ({facts.score(sample.score)})", facts.answer(sample)),
        ),
    ]


def _texts(*texts: tuple[str, str]) -> list[str]:
    width = max(len(name) for name, _ in texts)
    lines = [f"{name:<{width}}  {words.line(text, _TEXT_CHARACTERS).translate(_ENTITIES)}" for name, text in texts]
    return ["<pre>", *lines, "</pre>", ""]


def _facts(lines: Iterable[tuple[str, str]], command: str) -> list[str]:
    return [*(f"- {name}: {code(value)}" for name, value in lines), f"- again: {code(command)}"]


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    """What one may want to open. Empty lines, so that Markdown within is read as such."""
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>", ""]


def _within_limit(
    top: Sequence[str], title: str, items: Sequence[Item], write: Callable[[Item], list[str]], end: Sequence[str]
) -> str:
    """The document with as many of the items as fit."""
    room = BYTES_MAX - _bytes(top) - _bytes(end) - _ROOM_FOR_THE_END
    kept: list[str] = []
    shown = 0
    for item in items:
        lines = write(item)
        room -= _bytes(lines)
        if room < 0:
            break
        kept += lines
        shown += 1
    if shown < len(items):
        kept.append(f"and {len(items) - shown:,} more (in the HTML report)")
    return "\n".join([*top, *(_folded(title, kept) if items else [f"{title}.", ""]), *end]).rstrip() + "\n"


def _bytes(lines: Iterable[str]) -> int:
    return sum(len(text.encode()) + 1 for text in lines)
