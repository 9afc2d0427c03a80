"""Token-level drift as a table for the terminal and as JSON.

Owns: layout and wording. Never: a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.drift_tokens import Estimate, TokenDrift
from eval.reports.document import finite

LISTED_MAX = 5
EXCERPT_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models."""

    ref: str
    digest: str
    library: str
    """Who computed."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a prompt's distributions are furthest apart; texts where the tokens can be shown."""

    prompt: str
    mean_kl: float
    max_kl: float
    before: str = ""
    token: str = ""


@dataclass(frozen=True, slots=True)
class TokenReport:
    """Everything that is shown."""

    baseline: Side
    candidate: Side
    drift: TokenDrift
    top_k: int
    """Tokens compared at each position; 0: all."""
    refused: Sequence[tuple[str, str]]
    """Prompts that were not measured, and why."""
    notes: Sequence[str]
    worst: Sequence[Spot]


def document(report: TokenReport, alpha: float) -> dict[str, Any]:
    """As JSON."""
    value = {"level": "tokens", "alpha": alpha} | asdict(report)
    value["refused"] = [{"prompt": name, "reason": reason} for name, reason in report.refused]
    found: dict[str, Any] = finite(value)
    return found


def show(console: Console, report: TokenReport) -> None:
    """As a table, with what could not be measured and where the two are furthest apart."""
    drift = report.drift
    title = f"{escape(report.candidate.ref)} against {escape(report.baseline.ref)}"
    console.print(f"[bold]{title}[/]: next-token distributions on {drift.n:,} tokens of {drift.prompts} prompts")
    for side, one in (("baseline", report.baseline), ("candidate", report.candidate)):
        console.print(f"[dim]{side:<9} {escape(one.library)}  {escape(one.digest[:19])}[/]")
    bound = "" if drift.bound == "exact" else f" ([bold]lower bound[/], from {report.top_k} tokens a position)"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for name in ("token drift", "value", "interval", ""):
        table.add_column(name)
    for name, estimate, digits in (
        (f"mean KL divergence, nats{bound}", drift.mean_kl, 4),
        (f"p90 of it{' (lower bound)' if bound else ''}", drift.p90_kl, 4),
        (f"p99 of it{' (lower bound)' if bound else ''}", drift.p99_kl, 4),
    ):
        table.add_row(name, *_figures(estimate, digits))
    table.add_row(f"largest{' (lower bound)' if bound else ''}", f"{drift.max_kl:.4f}", "", "")
    table.add_row("same likeliest token", *_figures(drift.top1_agreement, 3))
    table.add_row("RMS Δp of the token that stands there", *_figures(drift.rms_delta_p, 4))
    table.add_row("perplexity ratio", *_figures(drift.perplexity_ratio, 4))
    table.add_row("perplexity, baseline and candidate", "  ".join(f"{one:.3f}" for one in drift.perplexity), "", "")
    console.print(table)
    if len(drift.bands) > 1:
        bands = ", ".join(f"{band.start}-{band.end - 1} {band.mean_kl:.4f}" for band in drift.bands)
        console.print(f"[dim]mean KL by position: {bands}[/]")
    _worst(console, report.worst)
    _refused(console, report.refused)
    for note in report.notes:
        console.print(f"[yellow]{escape(note)}[/]")


def _worst(console: Console, spots: Sequence[Spot]) -> None:
    if not spots:
        return
    console.print("\n[bold]furthest apart[/] (mean KL, largest KL and where)")
    for spot in spots:
        where = f"  [dim]{escape(_tail(spot.before))}[/][bold]{escape(_visible(spot.token))}[/]" if spot.token else ""
        console.print(f"  [bold]{escape(spot.prompt)}[/]  {spot.mean_kl:.4f}  {spot.max_kl:.3f}{where}")


def _refused(console: Console, refused: Sequence[tuple[str, str]]) -> None:
    if not refused:
        return
    listed = "; ".join(f"{name} ({reason})" for name, reason in refused[:LISTED_MAX])
    more = f" and {len(refused) - LISTED_MAX} more" if len(refused) > LISTED_MAX else ""
    console.print(f"[yellow]{len(refused)} prompts were not measured:[/] {escape(listed)}{more}")


def _figures(estimate: Estimate, digits: int) -> tuple[str, str, str]:
    interval = estimate.interval
    return (
        f"{estimate.value:.{digits}f}",
        escape(f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"),
        f"[dim]{escape(interval.method)}[/]",
    )


def _tail(text: str) -> str:
    line = _visible(text)
    return line if len(line) <= EXCERPT_CHARACTERS else "…" + line[1 - EXCERPT_CHARACTERS :]


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥")
