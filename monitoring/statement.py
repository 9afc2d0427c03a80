"""The cost statement: the ledger's rows of a window as bills, unit costs, usage and storage.

Owns: what is shown, and by what lines are told apart. Never: I/O, clocks, arithmetic of money (`cost`), the sums
(`tally`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from monitoring.attribution import NS
from monitoring.cost import (
    BASES,
    GB,
    METHODS,
    MONTH_S,
    NANO,
    Bill,
    CostLine,
    Prices,
    TokenCost,
    TokenPrice,
    token_cost,
)
from monitoring.observe import (
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    REQUESTS,
    SHADOW,
    SHADOW_REQUESTS,
)
from monitoring.tally import DIMENSIONS, Account, Cell, Device, Dimension, LedgerView, PriceList, Sums, Tally
from monitoring.unit_costs import Subject, UnitCost, counted, unit_cost, weights_of
from registry.entries import CounterKey, PriceChange, UsageHour

__all__ = [
    "DEFAULT_BY",
    "DIMENSIONS",
    "Device",
    "Dimension",
    "LedgerView",
    "Statement",
    "StorageCost",
    "Usage",
    "conclude",
    "statement",
    "usage_of",
]

DEFAULT_BY: Final[tuple[Dimension, ...]] = ("version", "outcome")
_KINDS: Final = ("version", "idle", "unsettled")


@dataclass(frozen=True, slots=True)
class Usage:
    """What was done, whatever it cost. What usage is not divided by is "" (None for the hour)."""

    version: str
    requests: Mapping[str, int]
    """Outcome class -> requests."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    shadow_requests: int = 0
    """Copies of requests that were answered; they and their tokens are in none of the others."""
    model: str = ""
    key: str = ""
    segment: str = ""
    hour: int | None = None
    judged: int = 0
    """Requests that count for the service level."""
    good: int = 0


@dataclass(frozen=True, slots=True)
class StorageCost:
    """What a version's artifacts cost on disk, in no bill of a device. Files that versions share are divided evenly."""

    version: str
    model: str
    bytes: float
    """Now."""
    gb_months: float
    """Within the window: 10^9 bytes for 730 hours."""
    nano: int
    currency: str

    @property
    def amount(self) -> float:
        """In `currency`."""
        return self.nano / NANO


@dataclass(frozen=True, slots=True)
class Statement:
    """Everything about cost in one window. Bills differ in device, basis, method and currency and must not be added
    up."""

    start: float
    stop: float
    currency: str
    bills: tuple[Bill, ...]
    unit_costs: tuple[UnitCost, ...]
    usage: tuple[Usage, ...]
    tokens: tuple[TokenCost, ...] = ()
    """What hosted versions' tokens cost at today's price."""
    storage: tuple[StorageCost, ...] = ()
    by: tuple[Dimension, ...] = DEFAULT_BY
    prices: tuple[PriceChange, ...] = ()
    """The prices that the window met, each with the Unix second from which it was in force."""
    usage_from: float | None = None
    """Where it is later than `start`, usage before it is not known by hour: there are no unit costs of such a window,
    but of the whole ledger there are."""

    @property
    def residual_s(self) -> float:
        """The largest residual of any bill: 0 where sampler and settlement agree."""
        return max((bill.residual_s for bill in self.bills), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json` and the admin API; amounts in the currency, and in whole billionths (`nano`)."""
        value = asdict(self)
        for made, one in zip(value["bills"], self.bills, strict=True):
            made["total"] = one.total
            for line, own in zip(made["lines"], one.lines, strict=True):
                line["amount"] = own.amount
        for made, stored in zip(value["storage"], self.storage, strict=True):
            made["amount"] = stored.amount
        return value | {"residual_s": self.residual_s}


def statement(
    view: LedgerView,
    *,
    prices: Prices,
    devices: Mapping[str, Device],
    reserved_bytes: Mapping[str, float] | None = None,
    token_prices: Mapping[str, TokenPrice] | None = None,
    stored_bytes: Mapping[str, float] | None = None,
    stop: float,
    by: Sequence[Dimension] = DEFAULT_BY,
    history: bool = True,
) -> Statement:
    """The statement of a window that ends at `stop`, Unix seconds; its lines are told apart `by` these.

    The ledger has whole hours, so a window does too. What was held after the watermark is on the line `unsettled`. Each
    hour has the price that was in force; `prices` are those of a ledger without a history, and of every hour where
    `history` is false. A device that is not in `devices` was a GPU unless it is called `cpu`. `reserved_bytes`
    (`model@version` -> memory now) divides idle time of hours of which no memory is written down. `token_prices` are
    those of hosted versions, `stored_bytes` what artifacts take on disk now (both by `model@version`).
    """
    tally = Tally(by)
    tally.add(view, PriceList(view.price_changes if history else (), prices), devices, reserved_bytes or {})
    return conclude(
        tally,
        view,
        prices=prices,
        token_prices=token_prices or {},
        stored_bytes=stored_bytes or {},
        stop=stop,
        by=tuple(by),
        history=history,
    )


def conclude(
    tally: Tally,
    view: LedgerView,
    *,
    prices: Prices,
    token_prices: Mapping[str, TokenPrice],
    stored_bytes: Mapping[str, float],
    stop: float,
    by: tuple[Dimension, ...] = DEFAULT_BY,
    history: bool = True,
    from_start: bool = False,
) -> Statement:
    """The statement of what was added up, of which `view` was the last window; the sums begin with it, or with the
    ledger where `from_start`."""
    shown = {
        account: sums
        for account, sums in sorted(tally.accounts.items(), key=lambda item: _order(item[0]))
        if sums.measured or account.method == "inflight"
    }
    asked = None if from_start else view.start
    starts = [sums.start for sums in shown.values() if sums.start is not None]
    start = min(starts, default=stop) if asked is None else asked
    known_from = view.usage_from or 0.0
    units = [one for account, sums in shown.items() for one in _unit_costs(account, sums, tally, by)]
    if not (from_start or view.whole or start >= known_from):
        units = []
    met = _met(view.price_changes, start, stop) if history else ()
    return Statement(
        start=start,
        stop=stop,
        currency=prices.currency,
        bills=tuple(_bill(account, sums, by, asked, stop) for account, sums in shown.items()),
        unit_costs=tuple(one for one in units if one.hour is None or one.hour >= known_from),
        usage=_usage(tally.usage, by),
        tokens=_hosted(tally, token_prices),
        storage=_storage(tally, stored_bytes, prices.currency),
        by=by,
        prices=met or (PriceChange(int(start), asdict(prices)),),
        usage_from=view.usage_from,
    )


def usage_of(counters: Mapping[CounterKey, float]) -> tuple[Usage, ...]:
    """Requests and tokens per version from the ledger's counters: of all time."""
    requests: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
    copies: defaultdict[str, int] = defaultdict(int)
    for key, value in counters.items():
        if key.name == REQUESTS:
            requests[_ref(key)][key.labels[3]] += round(value)
        elif key.name == SHADOW_REQUESTS:
            requests.setdefault(_ref(key), defaultdict(int))
            copies[_ref(key)] += round(value) if key.labels[2] == "completed" else 0
        elif key.name in (PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS):
            tokens[_ref(key), key.name] += round(value)
    return tuple(
        Usage(
            ref,
            dict(outcomes),
            tokens[ref, PROMPT_TOKENS],
            tokens[ref, CACHED_TOKENS],
            tokens[ref, COMPLETION_TOKENS],
            copies[ref],
            ref.partition("@")[0],
        )
        for ref, outcomes in sorted(requests.items())
        if ref
    )


def _ref(key: CounterKey) -> str:
    model, version, *_ = key.labels
    return f"{model}@{version}" if model and version else ""


def _subject(cell: Cell, by: Iterable[Dimension]) -> Subject:
    """What the cell belongs to where things are told apart `by` these."""
    model = cell.version.partition("@")[0]
    return Subject(
        version=cell.version if "version" in by else "",
        model=model if "model" in by or "version" in by else "",
        key=cell.key if "key" in by else "",
        segment=cell.segment if "segment" in by else "",
        hour=cell.hour if "hour" in by else None,
    )


def _order(account: Account) -> tuple[str, int, int, str]:
    methods = METHODS[account.device_kind]
    return account.device, methods.index(account.method), BASES.index(account.basis), account.currency


def _bill(account: Account, sums: Sums, by: tuple[Dimension, ...], start: float | None, stop: float) -> Bill:
    """The sums as lines: versions first, then idle time, then what is not settled."""
    found: defaultdict[tuple[int, Subject, str], list[int]] = defaultdict(lambda: [0, 0])
    for cell, (ns, nano) in sums.cells.items():
        outcome = cell.outcome if "outcome" in by else ""
        line = found[_KINDS.index(cell.kind), _subject(cell, by), outcome]
        line[0] += ns
        line[1] += nano
    lines = tuple(
        CostLine(
            kind=_KINDS[kind],
            version=of.version,
            outcome=outcome,
            seconds=ns / NS,
            nano=nano,
            model=of.model,
            key=of.key,
            segment=of.segment,
            hour=of.hour,
        )
        for (kind, of, outcome), (ns, nano) in sorted(found.items(), key=lambda item: _line_order(item[0]))
        if ns or nano or of.hour is None
    )
    return Bill(
        device=account.device,
        device_kind=account.device_kind,
        basis=account.basis,
        method=account.method,
        currency=account.currency,
        start=start if start is not None else sums.start or 0.0,
        stop=stop,
        lines=lines,
        total_nano=sum(line.nano for line in lines),
        residual_s=sums.residual_ns / NS,
        fallback_s=sums.fallback_ns / NS,
    )


def _line_order(line: tuple[int, Subject, str]) -> tuple[Any, ...]:
    kind, of, outcome = line
    return kind, of.hour or 0, of.model, of.version, of.key, of.segment, outcome


def _unit_costs(account: Account, sums: Sums, tally: Tally, by: tuple[Dimension, ...]) -> list[UnitCost]:
    """Unit costs of everything that has both cost on this bill and usage; one that is on several devices has one per
    device."""
    with_idle = "key" not in by and "segment" not in by
    nano: defaultdict[Subject, int] = defaultdict(int)
    for cell, (_, part) in sums.cells.items():
        if (cell.kind == "version" and cell.outcome != SHADOW) or (cell.kind == "idle" and with_idle):
            nano[_subject(cell, by)] += part
    rows: defaultdict[Subject, list[UsageHour]] = defaultdict(list)
    for cell, row in tally.usage.items():
        if cell.outcome != SHADOW:
            rows[_subject(cell, by)].append(row)
    weights = {version: weights_of(tally.phases, version) for version in {row.version for row in tally.usage.values()}}
    return [
        unit_cost(
            subject,
            nano[subject],
            counted((row, weights[row.version]) for row in rows[subject]),
            basis=account.basis,
            method=account.method,
            device_kind=account.device_kind,
            currency=account.currency,
            device=account.device,
            with_idle=with_idle,
        )
        for subject in sorted(nano.keys() & rows.keys(), key=lambda of: _line_order((0, of, "")))
    ]


def _usage(cells: Mapping[Cell, UsageHour], by: tuple[Dimension, ...]) -> tuple[Usage, ...]:
    groups: defaultdict[Subject, list[UsageHour]] = defaultdict(list)
    for cell, row in cells.items():
        groups[_subject(cell, by)].append(row)
    return tuple(
        _usage_of(subject, rows)
        for subject, rows in sorted(groups.items(), key=lambda item: _line_order((0, item[0], "")))
    )


def _usage_of(subject: Subject, rows: Sequence[UsageHour]) -> Usage:
    own = [row for row in rows if row.outcome != SHADOW]
    requests: defaultdict[str, int] = defaultdict(int)
    for row in own:
        requests[row.outcome] += row.requests
    return Usage(
        version=subject.version,
        requests=dict(requests),
        prompt_tokens=sum(row.prompt_tokens for row in own),
        cached_tokens=sum(row.cached_tokens for row in own),
        completion_tokens=sum(row.completion_tokens for row in own),
        shadow_requests=sum(row.requests for row in rows if row.outcome == SHADOW),
        model=subject.model,
        key=subject.key,
        segment=subject.segment,
        hour=subject.hour,
        judged=sum(row.judged for row in own),
        good=sum(row.good for row in own),
    )


def _hosted(tally: Tally, prices: Mapping[str, TokenPrice]) -> tuple[TokenCost, ...]:
    used = _usage(tally.usage, ("version",))
    return tuple(
        token_cost(one.version, one.prompt_tokens, one.completion_tokens, prices[one.version])
        for one in used
        if one.version in prices
    )


def _storage(tally: Tally, stored: Mapping[str, float], currency: str) -> tuple[StorageCost, ...]:
    keys = sorted(tally.storage.keys() | {(version, currency) for version in stored})
    return tuple(
        StorageCost(
            version=version,
            model=version.partition("@")[0],
            bytes=stored.get(version, 0.0),
            gb_months=byte_s / GB / MONTH_S,
            nano=nano,
            currency=of,
        )
        for version, of in keys
        for byte_s, nano in (tally.storage.get((version, of), (0.0, 0)),)
    )


def _met(changes: Sequence[PriceChange], start: float, stop: float) -> tuple[PriceChange, ...]:
    before = [one for one in changes if one.at <= start]
    return (*(before[-1:] or changes[:1]), *(one for one in changes[0 if before else 1 :] if start < one.at < stop))
