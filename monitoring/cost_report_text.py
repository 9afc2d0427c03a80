"""The weekly report in words: sections of sentences and tables, the same for Markdown and for HTML.

Owns: what is said, in which order and how amounts are written. Never: markup, arithmetic of money (`cost_report`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from monitoring.anomaly import FACTOR_UNITS, Cause, Finding
from monitoring.budgets import BudgetState
from monitoring.cost_report import Amount, Hosted, Report, VersionRow
from monitoring.forecast import Forecast
from monitoring.hosted_prices import CURRENCY, HostedCost

NANO: Final = 1_000_000_000
NONE: Final = "–"
BASIS_WORDS: Final = {
    "allocated": "the devices while they were held, busy or not: what the bill says",
    "busy": "the time with a request in flight: what the work itself took",
    "energy": "metered energy × tariff × PUE",
}
PURPOSE_WORDS: Final = {
    "answered": "requests that were answered",
    "unanswered": "requests without an answer (failed, cancelled, cut, refused by the engine)",
    "shadow": "copies of requests for shadow versions",
    "none": "engines' work that no request caused (loading, probes)",
    "idle": "idle: held, nothing in flight",
    "unsettled": "not divided yet",
}
CAUSE_WORDS: Final[dict[Cause, str]] = {
    "larger_outputs": "larger outputs",
    "larger_prompts": "larger prompts",
    "slower_engine": "a slower engine",
    "lower_occupancy": "lower batch occupancy",
    "more_idle": "more idle time",
    "more_failures": "more requests without an answer",
    "price_change": "a changed price",
    "unknown": "nothing that stands out",
}
OUTLOOK_WORDS: Final = {
    "within": "will not be exceeded",
    "possible": "may be exceeded",
    "likely": "is expected to be exceeded",
    "certain": "will be exceeded",
    "unknown": "no forecast yet",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. A heading that begins with `>` is over figures."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One question and its answer."""

    title: str
    sentences: tuple[str, ...] = ()
    table: Table | None = None
    notes: tuple[str, ...] = ()
    has_chart: bool = False
    is_alert: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report."""

    title: str
    subtitle: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


def document(report: Report) -> Document:
    """The report in words."""
    until = "" if report.is_over else f", so far (until {moment(report.at)})"
    return Document(
        title=f"What week {report.week.name} cost",
        subtitle=f"{day(report.week.start)} to {day(report.week.stop - 1)}, UTC{until}",
        lead=_lead(report),
        sections=tuple(
            section
            for section in (
                _anomalies(report),
                _bases(report),
                _hours(report),
                _versions(report),
                _units(report),
                _keys(report),
                _purposes(report),
                _forecast(report),
                _budgets(report),
                _hosted(report),
                _reading(report),
            )
            if section is not None
        ),
    )


def money(value: float | None, currency: str = "") -> str:
    """An amount: cents from 1 on, four significant digits below."""
    if value is None or math.isnan(value):
        return NONE
    text = (
        f"{value:,.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}"
    )
    return f"{text} {currency}".rstrip()


def change(now: float | None, before: float | None) -> str:
    """How much more or less than before: `+12%`; `new` where there was nothing."""
    if now is None or before is None:
        return NONE
    if not before:
        return "new" if now else NONE
    ratio = now / before
    if ratio >= 3:
        return f"×{ratio:.1f}"
    text = f"{ratio - 1:+.0%}".replace("-", "−")
    return "0%" if text in ("+0%", "−0%") else text


def share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else NONE


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%a %-d %B %Y")


def _amount(amount: Amount, currency: str) -> str:
    return money(amount.nano / NANO, currency)


def _lead(report: Report) -> tuple[str, ...]:
    """The answer in two or three sentences."""
    total, currency = report.total, report.currency
    if not total.nano:
        return ("Nothing was billed in this week.",)
    compared = change(total.nano, total.before)
    other = "the week before" if report.is_over else "the same time of the week before"
    than = {NONE: "", "new": "", "0%": f", as much as {other}"}.get(compared, f", {compared} on {other}")
    sentences = [f"It cost {_amount(total, currency)}{than}, idle time included."]
    idle = report.purposes.get("idle")
    if idle is not None:
        sentences.append(f"{share(idle.nano, total.nano)} of that was idle time.")
    if report.requests:
        cost = total.nano - (report.purposes["shadow"].nano if "shadow" in report.purposes else 0)
        sentences.append(
            f"{report.requests:,} requests were answered, at {money(cost / 1e6 / report.requests, currency)} per 1,000."
        )
    month = report.outlook.month
    if month.expected is not None:
        sentences.append(f"The month is expected to end at {money(month.expected, currency)}{_interval(month)}.")
    return tuple(sentences)


def _interval(found: Forecast) -> str:
    if found.low is None or found.high is None:
        return ""
    return f" (four times in five between {money(found.low)} and {money(found.high)})"


def _bases(report: Report) -> Section:
    rows = tuple(
        (
            basis,
            BASIS_WORDS[basis],
            _amount(amount, ""),
            NONE if amount.before is None else money(amount.before / NANO),
            change(amount.nano, amount.before),
        )
        for basis, amount in report.bases.items()
    )
    notes = ["Each is one way of looking at the same devices: never add two of them up."]
    if report.storage_nano is not None:
        notes.append(f"Artifacts on disk cost {money(report.storage_nano / NANO, report.currency)} besides.")
    headings = ("basis", "the price of", f">{report.currency}", ">week before", ">change")
    return Section(f"What it cost ({', '.join(report.devices)})", table=Table(headings, rows), notes=tuple(notes))


def _hours(report: Report) -> Section | None:
    if len(report.hours) < 2:
        return None
    return Section(
        "When", (f"{report.currency} per hour, basis allocated: work below, idle time above it.",), has_chart=True
    )


def _versions(report: Report) -> Section | None:
    if not report.versions:
        return None
    rows = tuple(
        (
            row.version,
            f"{row.requests:,}",
            *(money(row.purposes.get(name, 0) / NANO) for name in ("answered", "unanswered", "shadow", "idle")),
            money(row.nano / NANO),
            share(row.nano, report.total.nano),
        )
        for row in report.versions
    )
    headings = ("version", ">answered", ">their cost", ">without answer", ">copies", ">idle", ">all", ">share")
    notes = (
        f"In {report.currency}, basis allocated. Idle time is divided by the memory that each version's engines held: "
        "a version that was only kept warm pays for that.",
    )
    return Section("Which version", table=Table(headings, rows), notes=notes)


def _units(report: Report) -> Section | None:
    rows = [row for row in report.versions if row.requests]
    if not rows:
        return None
    has_good = any(row.per_1k_good is not None for row in rows)
    headings = [
        "version",
        ">per 1k requests",
        ">change",
        *([">per 1k within SLO"] if has_good else []),
        ">per 1M input tokens",
        ">per 1M cached",
        ">per 1M output",
    ]
    return Section(
        "Per unit of work",
        table=Table(tuple(headings), tuple(_unit_row(row, has_good=has_good) for row in rows)),
        notes=(
            f"In {report.currency}, basis allocated: everything that a version cost, failed work and its part of idle "
            "time included, over what it did. Copies are left out.",
        ),
    )


def _unit_row(row: VersionRow, *, has_good: bool) -> tuple[str, ...]:
    return (
        row.version,
        money(row.per_1k),
        change(row.per_1k, row.per_1k_before),
        *([money(row.per_1k_good)] if has_good else []),
        money(row.per_1m_input),
        money(row.per_1m_cached),
        money(row.per_1m_output),
    )


def _keys(report: Report) -> Section | None:
    if not any(row.key for row in report.keys):
        return None
    asked = sum(row.nano for row in report.keys)
    rows = tuple(
        (
            f"{row.name} ({row.key})" if row.name else row.key or "(without a key)",
            f"{row.requests:,}",
            money(row.nano / NANO),
            share(row.nano, asked),
            money(row.nano / 1e6 / row.requests) if row.requests else NONE,
        )
        for row in report.keys
    )
    headings = ("key", ">answered", f">{report.currency}", ">share", ">per 1k requests")
    notes = ("What each key asked for, answered or not. Idle time and copies are in no key's amount.",)
    return Section("Whose requests", table=Table(headings, rows), notes=notes)


def _purposes(report: Report) -> Section | None:
    if not report.purposes:
        return None
    rows = tuple(
        (
            PURPOSE_WORDS[name],
            _amount(amount, ""),
            share(amount.nano, report.total.nano),
            change(amount.nano, amount.before),
        )
        for name, amount in report.purposes.items()
    )
    total = ("total", _amount(report.total, ""), "100%", change(report.total.nano, report.total.before))
    headings = ("what time went to", f">{report.currency}", ">share", ">change")
    return Section("What for", table=Table(headings, (*rows, total)))


def _forecast(report: Report) -> Section:
    month = report.outlook.month
    name = datetime.fromtimestamp(month.start, UTC).strftime("%B %Y")
    if month.expected is None:
        return Section(f"{name}, to its end", (f"There is no forecast: {month.basis}.",))
    return Section(
        f"{name}, to its end",
        (
            f"Spent until {moment(report.at)}: {money(month.spent, report.currency)}. Expected at its end: "
            f"{money(month.expected, report.currency)}{_interval(month)}.",
            f"It rests on {month.basis}.",
        ),
    )


def _budgets(report: Report) -> Section | None:
    states = report.outlook.budgets
    if not states:
        return None
    rows = tuple(_budget_row(one) for one in states)
    headings = ("budget", "of", f">{report.currency}", ">spent", ">used", ">forecast", "state")
    over = any(one.state == "over" for one in states)
    return Section("Budgets", table=Table(headings, rows), is_alert=over)


def _budget_row(one: BudgetState) -> tuple[str, ...]:
    return (
        one.budget.name,
        f"{one.budget.scope}, per {one.budget.period}",
        money(one.budget.amount),
        money(one.spent),
        f"{one.used:.0%}",
        money(one.forecast.expected),
        one.state if one.state == "over" else f"{one.state}; {OUTLOOK_WORDS[one.outlook]}",
    )


def _anomalies(report: Report) -> Section | None:
    found = report.outlook.anomalies
    if not found:
        return None
    sentences = [anomaly_sentence(one, report.currency) for one in found]
    worst = max(found, key=lambda one: one.ratio)
    rows = tuple(
        (
            CAUSE_WORDS[part.cause],
            FACTOR_UNITS[part.cause],
            f"{part.before:,.4g}",
            f"{part.after:,.4g}",
            f"×{part.ratio:.2f}",
        )
        for part in worst.factors
    )
    headings = ("factor", "measured as", ">before", ">now", ">cost")
    notes = (f"The factors of {worst.version}: those of the last column, multiplied, are the whole change.",)
    return Section("Requests became dearer", tuple(sentences), Table(headings, rows), notes, is_alert=True)


def anomaly_sentence(one: Finding, currency: str) -> str:
    """What rose, by how much, against what, and why."""
    because = {"unknown": "no single cause stands out"}.get(one.cause, f"most of it is {CAUSE_WORDS[one.cause]}")
    return (
        f"{one.version}: {money(one.per_1k, currency)} per 1,000 requests from {moment(one.start)} to "
        f"{moment(one.stop)}, {one.ratio:.2f} times the usual {money(one.usual_per_1k)} of {one.days} earlier days at "
        f"these hours; {because}."
    )


def _hosted(report: Report) -> Section | None:
    hosted = report.hosted
    if hosted is None:
        return None
    title = "What would it have cost hosted?"
    if hosted.problem:
        return Section(title, (f"There is no answer: {hosted.problem}.",))
    rows = tuple(_hosted_row(one) for one in hosted.costs)
    sentences = (
        f"The same tokens at list prices ({hosted.source}), beside what everything here cost on the basis allocated, "
        "idle time included.",
    )
    headings = ("model", ">input", ">cached", ">output", f">all, {CURRENCY}", ">per 1k requests", ">here / there")
    return Section(title, sentences, Table(headings, rows) if rows else None, notes=tuple(hosted_notes(hosted)))


def _hosted_row(one: HostedCost) -> tuple[str, ...]:
    return (
        one.model,
        money(one.input_nano / NANO),
        money(one.cached_nano / NANO) + ("" if one.is_cached_apart or not one.cached_nano else " *"),
        money(one.output_nano / NANO),
        money(one.nano / NANO),
        money(one.per_1k_requests),
        NONE if one.ratio is None else f"{one.ratio:.3g}",
    )


def hosted_notes(hosted: Hosted) -> list[str]:
    """What the comparison cannot know."""
    notes = [
        f"{one.name}: unknown, {one.why}" + (f"; near it: {', '.join(one.near)}." if one.near else ".")
        for one in hosted.unknown
    ]
    if any(one.cached_nano and not one.is_cached_apart for one in hosted.costs):
        notes.append("* No price for cached tokens is known: they are at the full price of input.")
    tiers = [f"{one.model} (from {one.above[0]})" for one in hosted.costs if one.above]
    if tiers:
        notes.append(f"Long prompts have higher prices there, which are not applied: {', '.join(tiers)}.")
    if any(one.own_nano is None for one in hosted.costs):
        notes.append(f"The price map is in {CURRENCY}, prices here are not: amounts cannot be set against each other.")
    if hosted.costs:
        notes.append(
            "Tokens are counted by the models' own tokenizers here; another model makes more or fewer of a text."
        )
    return notes


def _reading(report: Report) -> Section:
    prices = [
        f"{_prices(one)} from {moment(at)}" if index else _prices(one) for index, (at, one) in enumerate(report.prices)
    ]
    sentences = [
        "Basis allocated: price × time that the devices were held. Time with N requests in flight belongs to each of "
        "them 1/N. Idle, failed and copied work have lines of their own, and all lines sum to the total.",
    ]
    if prices:
        sentences.append(f"Prices: {'; then '.join(prices)}.")
    return Section("How to read it", tuple(sentences))


def _prices(values: Mapping[str, Any]) -> str:
    named: Sequence[tuple[str, str]] = (
        ("gpu_hour", "per GPU-hour"),
        ("cpu_hour", "per core-hour"),
        ("kwh", "per kWh"),
        ("storage_gb_month", "per GB and month"),
    )
    currency = values.get("currency", "")
    told = [f"{money(values[name])} {words}" for name, words in named if values.get(name)]
    return f"{', '.join(told)} ({currency})" if told else "none set"
