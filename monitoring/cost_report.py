"""The weekly report's figures: what it cost and whom for, beside the week before.

Owns: adding a week's bills up into the report's rows. Never: I/O, clocks, dividing time or pricing it (`statement`),
words and layout (`cost_report_text`). Amounts are whole billionths of the currency, on the basis `allocated` and
divided by requests in flight unless a row says otherwise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from monitoring.cost import BASES, Basis, CostLine
from monitoring.hosted_prices import HostedCost, UnknownPrice
from monitoring.observe import SHADOW
from monitoring.outlook import BASIS, METHOD, Outlook
from monitoring.statement import Statement

HOUR_S: Final = 3600
WEEK_S: Final = 7 * 24 * HOUR_S
FIRST_YEAR: Final = 1971
LAST_YEAR: Final = 9998
_WEEK: Final = re.compile(r"(\d{4})-?W(\d{2})")
PURPOSES: Final = ("answered", "unanswered", "shadow", "none", "idle", "unsettled")
"""What time went to: answers; requests that failed, were cancelled, cut or refused by the engine; copies of requests;
engines' work without a request; nothing; what is not divided yet."""


@dataclass(frozen=True, slots=True)
class Week:
    """A week from Monday to Monday (ISO 8601), in UTC."""

    name: str
    """`2026-W47`"""
    start: float
    stop: float

    @property
    def before(self) -> Week:
        return week_at(self.start - 1)


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount beside that of the week before (of the same days and hours of it, where this one is not over); None
    where nothing was held then."""

    nano: int
    before: int | None = None


@dataclass(frozen=True, slots=True)
class VersionRow:
    """What one version cost, and what it did for that."""

    version: str
    purposes: Mapping[str, int]
    """One of PURPOSES -> nano."""
    requests: int
    """Answered ones."""
    per_1k: float | None
    """Cost per 1k answered requests: everything of it but copies."""
    per_1k_before: float | None
    per_1k_good: float | None
    """Per 1k answers within the service level; None where it has none."""
    per_1m_input: float | None
    per_1m_cached: float | None
    per_1m_output: float | None
    """None where it ran on several devices, each of which has its own."""

    @property
    def nano(self) -> int:
        return sum(self.purposes.values())


@dataclass(frozen=True, slots=True)
class KeyRow:
    """What one API key asked for. Idle time is in no key's amount."""

    key: str
    """Its id; "" for requests without one."""
    name: str
    nano: int
    requests: int
    """Answered ones."""


@dataclass(frozen=True, slots=True)
class HourRow:
    """One hour of the chart."""

    hour: int
    busy_nano: int
    idle_nano: int
    """With what is not divided yet."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """What the week's tokens would have cost elsewhere."""

    source: str
    """Which price map; "" where there is none, and `problem` says why."""
    costs: tuple[HostedCost, ...] = ()
    unknown: tuple[UnknownPrice, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """One week."""

    week: Week
    at: float
    """When it was made; the week runs until then where it is not over."""
    currency: str
    total: Amount
    bases: Mapping[Basis, Amount]
    """Bases that a device has readings for."""
    purposes: Mapping[str, Amount]
    versions: tuple[VersionRow, ...]
    """The dearest first."""
    keys: tuple[KeyRow, ...]
    hours: tuple[HourRow, ...]
    devices: tuple[str, ...]
    requests: int
    requests_before: int | None
    storage_nano: int | None
    """Artifacts on disk, on no bill; None where they cost nothing."""
    prices: tuple[tuple[float, Mapping[str, Any]], ...]
    """(from when, prices) that the week met."""
    outlook: Outlook
    """As of `at`, whichever week the report is of."""
    hosted: Hosted | None = None
    """None where nothing is compared."""
    key_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.at >= self.week.stop

    def as_json(self) -> dict[str, Any]:
        """Plain values: amounts in billionths (`nano`), unit costs in the currency."""
        value = asdict(replace(self, outlook=None))  # type: ignore[arg-type]
        return value | {"basis": BASIS, "method": METHOD, "outlook": self.outlook.as_json()}


@dataclass(frozen=True, slots=True)
class WeekBooks:
    """The statements that a report is made of."""

    hourly: Statement
    """By hour, version and outcome."""
    keys: Statement
    """By outcome and key."""
    totals: Statement
    """By version."""
    before: Statement
    """Of as much of the week before, by version and outcome."""


def week_at(at: float) -> Week:
    """The week in which a moment lies."""
    moment = datetime.fromtimestamp(at, UTC)
    year, number, weekday = moment.isocalendar()
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    start = (midnight - timedelta(days=weekday - 1)).timestamp()
    return Week(f"{year}-W{number:02}", start, start + WEEK_S)


def week_of(name: str) -> Week:
    """The week called `2026-W47`. Raises ValueError, one sentence."""
    found = _WEEK.fullmatch(name)
    try:
        if found is None or not FIRST_YEAR <= int(found[1]) <= LAST_YEAR:
            raise ValueError
        start = datetime.fromisocalendar(int(found[1]), int(found[2]), 1).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{name!r} is no week: give one as 2026-W47 (ISO 8601)") from None
    return week_at(start.timestamp())


def report(
    week: Week,
    books: WeekBooks,
    outlook: Outlook,
    *,
    at: float,
    hosted: Hosted | None = None,
    key_names: Mapping[str, str] | None = None,
) -> Report:
    """The week's rows."""
    lines, earlier = list(_lines(books.hourly)), list(_lines(books.before))
    purposes, purposes_before = _by_purpose(lines), _by_purpose(earlier)
    has_before = bool(earlier)
    bases, bases_before = _by_basis(books.totals), _by_basis(books.before)
    storage = books.totals.storage
    return Report(
        week=week,
        at=at,
        currency=books.totals.currency,
        total=Amount(sum(purposes.values()), sum(purposes_before.values()) if has_before else None),
        bases={basis: Amount(nano, bases_before.get(basis) if has_before else None) for basis, nano in bases.items()},
        purposes={
            name: Amount(purposes.get(name, 0), purposes_before.get(name, 0) if has_before else None)
            for name in PURPOSES
            if purposes.get(name) or purposes_before.get(name)
        },
        versions=_versions(books),
        keys=_keys(books.keys, key_names or {}),
        hours=_hours(lines),
        devices=tuple(sorted({one.device for one in books.hourly.bills})),
        requests=sum(_answered(books.totals).values()),
        requests_before=sum(_answered(books.before).values()) if has_before else None,
        storage_nano=sum(one.nano for one in storage if one.currency == books.totals.currency) or None,
        prices=tuple((one.at, dict(one.prices)) for one in books.totals.prices),
        outlook=outlook,
        hosted=hosted,
        key_names=dict(key_names or {}),
    )


def purpose_of(line: CostLine) -> str:
    """What a line's time went to, one of PURPOSES."""
    if line.kind != "version":
        return line.kind
    return {"completed": "answered", SHADOW: "shadow", "none": "none"}.get(line.outcome, "unanswered")


def _lines(statement: Statement) -> Iterable[CostLine]:
    wanted = (BASIS, METHOD, statement.currency)
    return (line for one in statement.bills if (one.basis, one.method, one.currency) == wanted for line in one.lines)


def _by_purpose(lines: Sequence[CostLine]) -> dict[str, int]:
    sums: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        sums[purpose_of(line)] += line.nano
    return dict(sums)


def _by_basis(statement: Statement) -> dict[Basis, int]:
    sums: defaultdict[Basis, int] = defaultdict(int)
    for one in statement.bills:
        if one.method == METHOD and one.currency == statement.currency:
            sums[one.basis] += one.total_nano
    return {basis: sums[basis] for basis in BASES if basis in sums}


def _answered(statement: Statement) -> dict[str, int]:
    """`model@version` -> requests that were answered."""
    counts: defaultdict[str, int] = defaultdict(int)
    for one in statement.usage:
        counts[one.version] += one.requests.get("completed", 0)
    return counts


def _versions(books: WeekBooks) -> tuple[VersionRow, ...]:
    sums: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for line in _lines(books.hourly):
        if line.version:
            sums[line.version][purpose_of(line)] += line.nano
    earlier: defaultdict[str, int] = defaultdict(int)
    for line in _lines(books.before):
        earlier[line.version] += line.nano if line.outcome != SHADOW else 0
    answered, answered_before = _answered(books.totals), _answered(books.before)
    good: defaultdict[str, int] = defaultdict(int)
    for used in books.totals.usage:
        good[used.version] += used.good
    wanted = (BASIS, METHOD, books.totals.currency)
    units = [one for one in books.totals.unit_costs if (one.basis, one.method, one.currency) == wanted]
    rows = []
    for version, purposes in sums.items():
        cost = sum(nano for name, nano in purposes.items() if name != "shadow")
        own = [one for one in units if one.version == version]
        unit = own[0] if len(own) == 1 else None
        rows.append(
            VersionRow(
                version=version,
                purposes=dict(purposes),
                requests=answered.get(version, 0),
                per_1k=_per_1k(cost, answered.get(version, 0)),
                per_1k_before=_per_1k(earlier.get(version, 0), answered_before.get(version, 0)),
                per_1k_good=_per_1k(cost, good.get(version, 0)),
                per_1m_input=unit.per_1m_input_tokens if unit else None,
                per_1m_cached=unit.per_1m_cached_tokens if unit else None,
                per_1m_output=unit.per_1m_output_tokens if unit else None,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.nano, row.version)))


def _keys(statement: Statement, names: Mapping[str, str]) -> tuple[KeyRow, ...]:
    nano: defaultdict[str, int] = defaultdict(int)
    requests: defaultdict[str, int] = defaultdict(int)
    for line in _lines(statement):
        if purpose_of(line) in ("answered", "unanswered"):
            nano[line.key] += line.nano
    for used in statement.usage:
        requests[used.key] += used.requests.get("completed", 0)
    rows = [KeyRow(key, names.get(key, ""), nano.get(key, 0), requests.get(key, 0)) for key in {*nano, *requests}]
    return tuple(sorted(rows, key=lambda row: (-row.nano, row.key)))


def _hours(lines: Sequence[CostLine]) -> tuple[HourRow, ...]:
    busy: defaultdict[int, int] = defaultdict(int)
    rest: defaultdict[int, int] = defaultdict(int)
    for line in lines:
        (busy if line.kind == "version" else rest)[(line.hour or 0) // HOUR_S * HOUR_S] += line.nano
    return tuple(HourRow(hour, busy[hour], rest[hour]) for hour in sorted({*busy, *rest}))


def _per_1k(nano: int, requests: int) -> float | None:
    return nano / 1e6 / requests if requests and nano else None
