"""What will it have cost by the month's end, which budgets does that break, and did requests become dearer?

Owns: turning the ledger's hours into what `forecast`, `budgets` and `anomaly` ask for. Never: I/O, clocks, dividing
time or pricing it (`tally`). Everything here is on the basis `allocated`, divided by requests in flight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from monitoring.anomaly import FACTOR_UNITS, Finding, Use, look
from monitoring.attribution import NS
from monitoring.budgets import Budget, BudgetState, Scope, judge
from monitoring.cost import NANO, LineKind, Prices
from monitoring.forecast import CONFIDENCE, DAY_S, DAYS_MAX, HOUR_S, Forecast, Period, forecast, period_of
from monitoring.observe import SHADOW
from monitoring.tally import Device, Dimension, LedgerView, PriceList, Tally
from monitoring.unit_costs import Phases, weights_of
from registry.entries import CostSeconds, UsageHour

BASIS: Final = "allocated"
METHOD: Final = "inflight"
EVERYTHING: Final = Scope()


class Line(NamedTuple):
    """What a device was used for within one hour: a line of its bill."""

    device: str
    kind: LineKind
    version: str
    """`model@version`; of idle time the one that held the memory."""
    outcome: str
    key: str
    """"" where no budget asks for keys."""
    hour: int
    seconds: float
    """GPU-seconds, or core-seconds."""
    nano: int


@dataclass(frozen=True, slots=True)
class Books:
    """The hours that an outlook rests on."""

    currency: str
    """Of now; what was billed in another one (before the prices were changed) is left out: nothing is converted."""
    lines: Sequence[Line] = ()
    """Each hour at the prices that it had."""
    repriced: Sequence[Line] = ()
    """The same hours at the prices of now."""
    rows: Sequence[CostSeconds] = ()
    usage: Sequence[UsageHour] = ()
    cores: Mapping[str, float] = field(default_factory=dict)
    """Device -> cores held; 1 where it is not named."""
    settled_until: float | None = None

    def between(self, start: float, stop: float) -> Books:
        """The hours that begin within [start, stop)."""
        return Books(
            self.currency,
            [one for one in self.lines if start <= one.hour < stop],
            [one for one in self.repriced if start <= one.hour < stop],
            [one for one in self.rows if start <= one.hour < stop],
            [one for one in self.usage if start <= one.hour < stop],
            self.cores,
            self.settled_until,
        )

    def then(self, later: Books) -> Books:
        """These hours, followed by later ones."""
        return Books(
            later.currency,
            [*self.lines, *later.lines],
            [*self.repriced, *later.repriced],
            [*self.rows, *later.rows],
            [*self.usage, *later.usage],
            later.cores,
            later.settled_until,
        )


def books_of(
    view: LedgerView, prices: Prices, devices: Mapping[str, Device], reserved: Mapping[str, float], *, by_key: bool
) -> Books:
    """A window of the ledger as an outlook needs it; `by_key` where keys are told apart."""
    by: tuple[Dimension, ...] = ("hour", "key") if by_key else ("hour",)
    actual, repriced = Tally(by), Tally(by)
    actual.add(view, PriceList(view.price_changes, prices), devices, reserved)
    repriced.add(view, PriceList((), prices), devices, reserved)
    return Books(
        prices.currency,
        _lines(actual, prices.currency),
        _lines(repriced, prices.currency),
        view.rows,
        view.usage,
        {name: device.cores for name, device in devices.items() if device.kind == "cpu"},
        view.settled_until,
    )


def _lines(tally: Tally, currency: str) -> list[Line]:
    return [
        Line(account.device, cell.kind, cell.version, cell.outcome, cell.key, cell.hour or 0, ns / NS, nano)
        for account, sums in tally.accounts.items()
        if (account.basis, account.method, account.currency) == (BASIS, METHOD, currency)
        for cell, (ns, nano) in sums.cells.items()
    ]


@dataclass(frozen=True, slots=True)
class Outlook:
    """As of one moment; amounts in `currency`."""

    at: float
    currency: str
    month: Forecast
    """Of the whole yard."""
    budgets: tuple[BudgetState, ...]
    findings: tuple[Finding, ...]
    """One per version that was asked anything in the last 24 hours."""

    @property
    def anomalies(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.verdict == "anomaly")

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json` and the admin API."""
        return {
            "at": self.at,
            "currency": self.currency,
            "basis": BASIS,
            "method": METHOD,
            "month": forecast_json(self.month),
            "budgets": [budget_json(one) for one in self.budgets],
            "findings": [finding_json(one) for one in self.findings],
        }


def books_since(now: float) -> float:
    """From when on an outlook needs the books: the month's and the week's start, or as far as a profile looks back."""
    return min(period_of("month", now)[0], period_of("week", now)[0], now - (DAYS_MAX + 1) * DAY_S)


def outlook(books: Books, budgets: Sequence[Budget], *, now: float) -> Outlook:
    """The month's forecast, every budget with its own period's, and every version that has enough to be judged."""
    whole = by_hour(books.lines, EVERYTHING)
    first = min(by_hour(books.repriced, EVERYTHING), default=None)

    def foresee(scope: Scope, period: Period) -> Forecast:
        start, stop = period_of(period, now)
        spent = whole if scope.is_whole else by_hour(books.lines, scope)
        return forecast(spent, start=start, stop=stop, now=now, since=first, rates=by_hour(books.repriced, scope))

    until = now if books.settled_until is None else min(now, books.settled_until)
    weights = token_weights(books.usage)
    uses = uses_by_hour(books)
    findings = (
        look(version, hours, until, weights=weights.get(version, (1.0, 4.0)))
        for version, hours in sorted(uses.items())
        if any(hour >= until - DAY_S - HOUR_S and use.requests for hour, use in hours.items())
    )
    return Outlook(
        at=now,
        currency=books.currency,
        month=foresee(EVERYTHING, "month"),
        budgets=tuple(judge(budget, foresee(budget.scope, budget.period)) for budget in budgets),
        findings=tuple(findings),
    )


def by_hour(lines: Sequence[Line], scope: Scope) -> dict[int, float]:
    """Hour -> what was spent within a scope.

    Everything is on the bills of the whole yard. A model or a version has its lines and its part of idle time; a key
    only what it asked for.
    """
    nano: defaultdict[int, int] = defaultdict(int)
    for line in lines:
        if scope.is_whole or (
            line.kind != "unsettled" and scope.holds(line.version, line.key) and not (scope.key and line.kind == "idle")
        ):
            nano[_hour(line)] += line.nano
    return {hour: amount / NANO for hour, amount in nano.items()}


def uses_by_hour(books: Books) -> dict[str, dict[int, Use]]:
    """`model@version` -> hour -> what it did and cost. Shadow copies are in none of it."""
    found: defaultdict[tuple[str, int], Use] = defaultdict(Use)
    for line in books.lines:
        if line.version and line.outcome != SHADOW:
            idle = line.seconds / (books.cores.get(line.device) or 1.0) if line.kind == "idle" else 0.0
            found[line.version, _hour(line)] += Use(cost=line.nano / NANO, idle_s=idle)
    for row in books.rows:
        if row.outcome != SHADOW:
            place = (row.version, row.hour // HOUR_S * HOUR_S)
            found[place] += Use(busy_s=row.busy_share_s, inflight_s=row.inflight_s)
    for used in books.usage:
        if used.device and used.outcome != SHADOW:
            found[used.version, used.hour // HOUR_S * HOUR_S] += Use(
                requests=used.requests,
                successes=used.requests if used.outcome == "completed" else 0,
                prompt_tokens=max(0, used.prompt_tokens - used.cached_tokens),
                output_tokens=used.completion_tokens,
            )
    versions: defaultdict[str, dict[int, Use]] = defaultdict(dict)
    for (version, hour), use in found.items():
        versions[version][hour] = use
    return dict(versions)


def token_weights(usage: Iterable[UsageHour]) -> dict[str, tuple[float, float]]:
    """`model@version` -> what a computed prompt token and an output token take, relative to each other."""
    sums: defaultdict[str, Phases] = defaultdict(lambda: (0.0, 0.0, 0.0, 0.0))
    for row in usage:
        if row.outcome != SHADOW:
            a, b, c, d = sums[row.version]
            sums[row.version] = (
                a + row.prefill_s,
                b + row.prefill_tokens,
                c + row.decode_s,
                d + row.decode_tokens,
            )
    weights = {version: weights_of(sums, version) for version in sums}
    return {version: (one.uncached, one.output) for version, one in weights.items()}


def forecast_json(one: Forecast) -> dict[str, Any]:
    return asdict(one) | {"confidence": CONFIDENCE, "rests_on": one.basis}


def budget_json(one: BudgetState) -> dict[str, Any]:
    budget = one.budget
    return {
        "name": budget.name,
        "amount": budget.amount,
        "period": budget.period,
        "scope": asdict(budget.scope),
        "of": str(budget.scope),
        "alert_at": list(budget.alert_at),
        "spent": one.spent,
        "used": one.used,
        "state": one.state,
        "reached": one.reached,
        "outlook": one.outlook,
        "forecast": forecast_json(one.forecast),
    }


def finding_json(one: Finding) -> dict[str, Any]:
    value = asdict(one)
    for made, factor in zip(value["factors"], one.factors, strict=True):
        made["ratio"] = factor.ratio
        made["unit"] = FACTOR_UNITS[factor.cause]
    has_test = one.verdict != "too_little"
    return value | {"ratio": one.ratio if has_test else None, "cause": one.cause if has_test else None}


def _hour(line: Line) -> int:
    """The hour of a line, also where a changed price cut that hour in two."""
    return line.hour // HOUR_S * HOUR_S
