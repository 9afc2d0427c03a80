"""The cost statement: the ledger's rows of a window as bills, unit costs and totals.

Owns: putting rows together for `modelyard cost` and for the metrics. Never: I/O, clocks, arithmetic of money (`cost`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from monitoring.attribution import Key
from monitoring.cost import (
    Bill,
    Counts,
    DeviceKind,
    DeviceUse,
    Prices,
    TokenCost,
    TokenPrice,
    TokenWeights,
    UnitCost,
    bills,
    idle_shares,
    token_cost,
    unit_cost,
)
from monitoring.observe import (
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    PHASE_SECONDS,
    PHASE_TOKENS,
    PROMPT_TOKENS,
    REQUESTS,
    SHADOW_REQUESTS,
)
from registry.entries import HOUR_S, CostSeconds, CounterKey, CpuSeconds, HeldSeconds


@dataclass(frozen=True, slots=True)
class Device:
    """What the bill must know of a device that no row says."""

    kind: DeviceKind
    cores: float = 1.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a version did, whatever it cost."""

    version: str
    requests: Mapping[str, int]
    """Outcome class -> requests."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    shadow_requests: int = 0
    """Copies of requests that it answered; they are in none of the others."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Everything about cost in one window. Bills differ in device, basis and method and must not be added up."""

    start: float
    stop: float
    currency: str
    bills: tuple[Bill, ...]
    unit_costs: tuple[UnitCost, ...]
    usage: tuple[Usage, ...]
    tokens: tuple[TokenCost, ...] = ()
    """What hosted versions' tokens cost; of the whole ledger only, as usage is."""

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
        return value | {"residual_s": self.residual_s}


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What the ledger holds of a window (see `monitoring.settle.view`)."""

    rows: Sequence[CostSeconds] = ()
    held: Sequence[HeldSeconds] = ()
    cpu: Sequence[CpuSeconds] = ()
    counters: Mapping[CounterKey, float] = field(default_factory=dict)
    """Totals since the ledger began."""
    settled_until: float | None = None
    """The watermark up to which intervals were divided."""
    held_until: float | None = None
    """The time up to which held seconds are written."""
    start: float | None = None
    """Unix time at which the window begins; None: it is the whole ledger."""


def statement(
    view: LedgerView,
    *,
    prices: Prices,
    devices: Mapping[str, Device],
    reserved_bytes: Mapping[str, float] | None = None,
    token_prices: Mapping[str, TokenPrice] | None = None,
    stop: float,
) -> Statement:
    """The statement of a window that ends at `stop`, Unix seconds.

    The ledger has whole hours, so a window does too. What was held after the watermark is on the line `unsettled`.
    Unit costs and usage need the window to be the whole ledger, as counters have no hours. A device that is not in
    `devices` was a GPU unless it is called `cpu`. `reserved_bytes` (`model@version` -> memory on the device) divides
    idle time in unit costs. `token_prices` are those of hosted versions (`model@version`).
    """
    names = sorted({row.device for row in view.rows} | {row.device for row in view.held})
    uses = [
        _use(view, name, devices.get(name) or Device("cpu" if name == "cpu" else "gpu"), reserved_bytes or {}, stop)
        for name in names
    ]
    made = bills(uses, prices)
    whole = view.start is None
    usage = usage_of(view.counters) if whole else ()
    counts = counts_of(view.counters) if whole else {}
    start = min((use.start for use in uses), default=stop) if view.start is None else view.start
    hosted = [(one, price) for one in usage if (price := (token_prices or {}).get(one.version)) is not None]
    tokens = tuple(token_cost(one.version, one.prompt_tokens, one.completion_tokens, price) for one, price in hosted)
    return Statement(start, stop, prices.currency, tuple(made), _unit_costs(uses, made, counts), usage, tokens)


def usage_of(counters: Mapping[CounterKey, float]) -> tuple[Usage, ...]:
    """Requests and tokens per version from the ledger's counters."""
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
        )
        for ref, outcomes in sorted(requests.items())
        if ref
    )


def counts_of(counters: Mapping[CounterKey, float]) -> dict[str, Counts]:
    """`model@version` -> what unit costs divide by."""
    phases: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for key, value in counters.items():
        if key.name in (PHASE_SECONDS, PHASE_TOKENS):
            phases[_ref(key), key.name, key.labels[2]] += value
    return {
        one.version: Counts(
            successes=one.requests.get("completed", 0),
            uncached_tokens=max(0, one.prompt_tokens - one.cached_tokens),
            cached_tokens=one.cached_tokens,
            output_tokens=one.completion_tokens,
            weights=TokenWeights.measured(
                phases[one.version, PHASE_SECONDS, "prefill"],
                phases[one.version, PHASE_TOKENS, "prefill"],
                phases[one.version, PHASE_SECONDS, "decode"],
                phases[one.version, PHASE_TOKENS, "decode"],
            ),
        )
        for one in usage_of(counters)
    }


def _ref(key: CounterKey) -> str:
    model, version, *_ = key.labels
    return f"{model}@{version}" if model and version else ""


def _use(view: LedgerView, name: str, device: Device, reserved: Mapping[str, float], stop: float) -> DeviceUse:
    """One device's part of the window."""
    rows = [row for row in view.rows if row.device == name]
    held = [row for row in view.held if row.device == name]
    shares: defaultdict[Key, float] = defaultdict(float)
    for row in rows:
        shares[row.version, row.outcome] += row.busy_share_s
    cpu_s: defaultdict[str, float] = defaultdict(float)
    for one in view.cpu:
        if one.device == name:
            cpu_s[one.version] += one.cpu_s
    hours = [row.hour for row in rows] + [row.hour for row in held]
    return DeviceUse(
        device=name,
        kind=device.kind,
        start=float(min(hours)) if view.start is None else view.start,
        stop=stop,
        held_s=sum(row.held_s for row in held),
        shares=shares,
        unsettled_s=_unsettled(held, view.settled_until, view.held_until),
        cores=device.cores,
        cpu_s=cpu_s if cpu_s and device.kind == "cpu" else None,
        energy_j=sum(row.energy_j for row in held) if any(row.metered_s for row in held) else None,
        reserved_bytes=reserved,
    )


def _unsettled(held: Sequence[HeldSeconds], settled_until: float | None, held_until: float | None) -> float:
    """Held seconds after the watermark. Within an hour, held time is taken to be its latest part."""
    if held_until is None:
        return 0.0
    after = 0.0
    for row in held:
        stop = min(float(row.hour + HOUR_S), held_until)
        after += min(row.held_s, max(0.0, stop - max(float(row.hour), settled_until or 0.0)))
    return after


def _unit_costs(uses: Sequence[DeviceUse], made: Sequence[Bill], counts: Mapping[str, Counts]) -> tuple[UnitCost, ...]:
    """Unit costs per version and bill; one version on several devices has a unit cost per device.

    A version that reserves memory and was never at work bears its part of the idle time too, on every device, as
    nothing tells which one its memory is on.
    """
    seen = {use.device: {version for version, _ in use.shares} | set(use.cpu_s or ()) for use in uses}
    unasked = {version for use in uses for version in use.reserved_bytes} - set().union(*seen.values())
    found: list[UnitCost] = []
    for use in uses:
        on_device = sorted(seen[use.device] | unasked)
        idle = idle_shares(use, on_device)
        for one in made:
            if one.device == use.device:
                found.extend(
                    unit_cost(version, one, counts[version], idle_share=idle[version])
                    for version in on_device
                    if version in counts
                )
    return tuple(found)
