"""The figures of a page: each plot with what it says in words and the table of what it shows.

Owns: which data go into which plot, the alternative texts, the tables. Never: drawing (plots.py), statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from eval.assessment import Party
from eval.reports import plots, words
from eval.reports.gather import ComparisonReport, RunReport
from eval.reports.plots import Bar, Point
from eval.reports.svg import Drawing
from eval.results import Sample

_TOLD = 6
_PERCENTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot, a sentence below it, and its data."""

    id: str
    title: str
    caption: str
    drawing: Drawing
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def forest(report: ComparisonReport) -> Figure:
    """Differences by group."""
    bars = [
        Bar(
            row.kind,
            words.clean(row.group.name),
            row.group.n,
            row.group.difference,
            row.group.interval.low,
            row.group.interval.high,
        )
        for row in report.rows
    ]
    margin = report.settings.margin
    level = words.level(report.level)
    told = "; ".join(_told(bar) for bar in bars[:_TOLD])
    alt = f"Forest plot of candidate minus baseline in points with {level} intervals: {told}{_more(bars)}"
    hidden = len(bars) - plots.ROWS_MAX
    caption = (
        f"Each line is a {level} interval. Right of 0 the candidate scored higher. The shaded band reaches to the "
        f"margin of {words.points(margin)}: a version whose interval stays right of the band's left edge is "
        "good enough. An arrow says that the interval goes on."
    )
    if hidden > 0:
        caption += f" {words.count(hidden, 'more group')} only in the table."
    return Figure("differences", "Differences", caption, plots.forest(bars, margin, alt), (), ())


def scores(sides: Sequence[tuple[str, Sequence[float]]]) -> Figure:
    """How the scores are distributed, of one version or of two."""
    edges = plots.score_edges([values for _, values in sides])
    counts = [np.histogram(values, edges)[0] for _, values in sides]
    if len(edges) == 3:
        labels = ["0 (wrong)", "1 (right)"]
    else:
        labels = [f"{low:.1f} to {high:.1f}" for low, high in pairwise(edges)]
    rows = tuple((label, *(f"{side[index]:,}" for side in counts)) for index, label in enumerate(labels))
    names = [name for name, _ in sides]
    told = "; ".join(
        f"{name}: full marks for {sum(1 for value in values if value >= 1):,} of {len(values):,} samples, none for "
        f"{sum(1 for value in values if value <= 0):,}"
        for name, values in sides
    )
    drawing = plots.scores(sides, f"Bar chart of scores. {told}")
    caption = f"{words.count(len(sides[0][1]), 'sample')}{' that both versions answered' if len(sides) > 1 else ''}."
    return Figure("scores", "Scores", caption, drawing, ("score", *names), rows)


def latency(sides: Sequence[tuple[str, Sequence[Sample]]]) -> Figure | None:
    """The times of the answered samples, of one version or of two; None where there is none."""
    timed = [(name, [one for one in side if not one.error and not one.cached]) for name, side in sides]
    first = [(name, [one.ttft_s for one in side if one.ttft_s is not None]) for name, side in timed]
    total = [(name, [one.latency_s for one in side]) for name, side in timed]
    panels = [
        (title, series)
        for title, series in (("Time to first token", first), ("Whole answer", total))
        if any(values for _, values in series)
    ]
    if not panels:
        return None
    rows = [
        (f"{title}, p{100 * share:g}", *(_quantile(values, share) for _, values in series))
        for title, series in panels
        for share in _PERCENTILES
    ]
    names = [name for name, _ in sides]
    medians = (
        f"{title}: " + ", ".join(f"{name} {_quantile(values, 0.5)}" for name, values in series)
        for title, series in panels
    )
    alt = f"Cumulative distribution of response times; medians: {'; '.join(medians)}"
    rows.append(("requests timed", *(f"{len(values):,}" for _, values in total)))
    caption = "The share of requests that were done after so many seconds, as the client saw it. Left is faster."
    drawing = plots.latencies(panels, alt)
    return Figure("latency", "Speed", caption, drawing, ("percentile", *names), tuple(rows))


def _quantile(values: Sequence[float], share: float) -> str:
    return words.seconds(float(np.quantile(values, share))) if values else "–"


def quality(report: ComparisonReport) -> Figure | None:
    """Mean score over what a thousand requests cost, by the first basis that both have; else over busy time."""
    found = report.found
    parties = (found.baseline, found.candidate)
    label, values = _cost_axis(parties)
    if any(value is None for value in values):
        return None
    overall = found.result.overall
    sides = (overall.baseline, overall.candidate)
    points = [
        Point(name, value or 0.0, side.mean, side.interval.low, side.interval.high)
        for name, value, side in zip(("baseline", "candidate"), values, sides, strict=True)
    ]
    rows = tuple(
        (
            point.name,
            f"{100 * point.score:.1f} [{100 * point.low:.1f}, {100 * point.high:.1f}]",
            f"{point.x:,.4g}",
        )
        for point in points
    )
    told = "; ".join(f"{name}: score {score} at {cost}" for name, score, cost in rows)
    drawing = plots.quality(points, label, f"Mean score over {label}. {told}")
    caption = f"Up is better, left is cheaper. Across: {label}."
    return Figure("quality", "Quality and cost", caption, drawing, ("version", "mean score", label), rows)


def _cost_axis(parties: Sequence[Party]) -> tuple[str, list[float | None]]:
    """What to put across: the cost of the runs, else that of all traffic, on a basis that both have; else time."""
    for name, costs in (
        ("this run", [party.spent for party in parties]),
        ("all traffic", [party.costs for party in parties]),
    ):
        for mine in costs[0]:
            for other in costs[1]:
                same = (mine.basis, mine.method, mine.currency) == (other.basis, other.method, other.currency)
                if same and mine.per_1k_requests is not None and other.per_1k_requests is not None:
                    label = f"{mine.currency} per 1,000 requests ({mine.basis}, {name})"
                    return label, [mine.per_1k_requests, other.per_1k_requests]
    return "busy seconds per 1,000 requests", [party.performance.busy_s_per_1k for party in parties]


def positions(report: ComparisonReport) -> Figure | None:
    """Token drift by position, where it was measured."""
    drift = report.token_drift
    if drift is None or not drift.bands:
        return None
    label = f"mean KL divergence, nats{' (lower bound)' if drift.lower_bound else ''}"
    highest = max(drift.bands, key=lambda band: band.mean_kl)
    alt = (
        f"{label} by position in the text; highest at positions {highest.start} to {highest.end - 1} with "
        f"{highest.mean_kl:.3g}, of {len(drift.bands)} bands of positions"
    )
    drawing = plots.positions([(band.start, band.end, band.mean_kl) for band in drift.bands], label, alt)
    rows = tuple((f"{band.start} to {band.end - 1}", f"{band.n:,}", f"{band.mean_kl:.4g}") for band in drift.bands)
    caption = "How far the versions' next-token distributions lie apart, by position in the text."
    if drift.lower_bound:
        caption += " Only the most likely tokens were known, so the true divergence is at least this."
    columns = ("positions", "n", "mean KL, nats")
    return Figure("positions", "Token drift by position", caption, drawing, columns, rows)


def means(report: RunReport) -> Figure:
    """The mean scores of one run."""
    order = ("overall", "scorer", "slice")
    groups = sorted(report.groups, key=lambda one: order.index(one.kind))
    bars = [
        Bar(
            "overall" if group.kind == "overall" else "scorer" if group.kind == "scorer" else "slice",
            words.clean(group.name),
            group.n,
            group.score.mean,
            group.score.interval.low,
            group.score.interval.high,
        )
        for group in groups
    ]
    level = words.level(1 - report.alpha)
    told = "; ".join(f"{bar.name} {100 * bar.difference:.1f} (n = {bar.n})" for bar in bars[:_TOLD])
    alt = f"Mean scores of 100 with {level} intervals: {told}{_more(bars)}"
    rows = tuple(
        (
            bar.name,
            group.kind,
            f"{bar.n:,}",
            f"{100 * bar.difference:.1f}",
            f"{100 * bar.low:.1f} to {100 * bar.high:.1f}",
        )
        for bar, group in zip(bars, groups, strict=True)
    )
    caption = f"Mean scores of 100; each line is a {level} interval."
    return Figure("means", "Scores", caption, plots.means(bars, alt), ("group", "kind", "n", "mean", "interval"), rows)


def _told(bar: Bar) -> str:
    low, high = words.signed(bar.low), words.signed(bar.high)
    return f"{bar.name} {words.signed(bar.difference)} [{low}, {high}] (n = {bar.n})"


def _more(bars: Sequence[Bar]) -> str:
    return f"; and {len(bars) - _TOLD} more, in the table" if len(bars) > _TOLD else ""
