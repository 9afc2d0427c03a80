"""What it cost: a device's time and energy as money per version, idle on its own line, to the last digit.

Owns: prices, bills and unit costs. Never: I/O, clocks, reading devices, settling intervals (`attribution` does).

Three bases, never one figure alone; every bill names its currency, window, method and kind of device:

    allocated   price x hours the device was held; versions, idle and what is not settled yet sum to it
    busy        price x hours with at least one request in flight
    energy      kilowatt-hours x tariff x PUE, where the device has a meter

Two methods of saying whose the time was: `inflight` (a moment with N requests in flight belongs 1/N to each) and, on a
CPU, `cpu_time` (CPU seconds of each version's engine processes).

Money is counted in whole billionths of the currency (`nano`), so that lines sum to their total exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from monitoring.attribution import Key, apportion
from monitoring.observe import SHADOW

NANO: Final = 1_000_000_000
HOUR_S: Final = 3600
JOULES_PER_KWH: Final = 3_600_000
UNATTRIBUTED: Final = "none"
"""The outcome class of engine CPU time that no request caused (loading, probes)."""

DeviceKind = Literal["gpu", "cpu"]
Basis = Literal["allocated", "busy", "energy"]
Method = Literal["inflight", "cpu_time"]
LineKind = Literal["version", "idle", "unsettled"]


@dataclass(frozen=True, slots=True)
class Prices:
    """What the devices cost. The currency is a label: nothing is converted."""

    currency: str = "USD"
    gpu_hour: float = 0.0
    """Per GPU and hour."""
    cpu_hour: float = 0.0
    """Per core and hour, on a machine without a GPU."""
    kwh: float = 0.0
    pue: float = 1.0
    """Power usage effectiveness: the building's energy per unit of the machine's; at least 1."""

    def __post_init__(self) -> None:
        if min(self.gpu_hour, self.cpu_hour, self.kwh) < 0 or self.pue < 1:
            raise ValueError("a price cannot be negative, and pue cannot be below 1")

    def unit_hour(self, kind: DeviceKind) -> Fraction:
        """Price of one GPU-hour or core-hour."""
        return _exact(self.gpu_hour if kind == "gpu" else self.cpu_hour)


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What one device was used for within a window. Seconds; nothing rounded or priced yet."""

    device: str
    kind: DeviceKind
    start: float
    """The window, Unix seconds."""
    stop: float
    held_s: float
    shares: Mapping[Key, float] = field(default_factory=dict)
    """(`model@version`, outcome class) -> its share of the busy seconds."""
    unsettled_s: float = 0.0
    """The part of `held_s` after the last settlement: whether it was busy, and whose it was, is not known yet."""
    cores: float = 1.0
    """Cores held, on a CPU."""
    cpu_s: Mapping[str, float] | None = None
    """`model@version` -> CPU seconds of its engines; None where they were not measured."""
    energy_j: float | None = None
    """None where the device has no meter."""
    reserved_bytes: Mapping[str, float] = field(default_factory=dict)
    """`model@version` -> memory its engines hold on the device; divides the idle time in unit costs."""


@dataclass(frozen=True, slots=True)
class CostLine:
    """One line of a bill."""

    kind: LineKind
    version: str
    """`model@version`; "" on the idle and the unsettled line."""
    outcome: str
    """Outcome class: work without a success has its own line."""
    seconds: float
    """GPU-seconds, or core-seconds."""
    nano: int

    @property
    def amount(self) -> float:
        """In the bill's currency."""
        return self.nano / NANO


@dataclass(frozen=True, slots=True)
class Bill:
    """One device, one basis, one method. `total_nano` is the sum of the lines, exactly."""

    device: str
    device_kind: DeviceKind
    basis: Basis
    method: Method
    currency: str
    start: float
    stop: float
    lines: tuple[CostLine, ...]
    total_nano: int
    residual_s: float
    """Seconds of use beyond those that the device was seen to be held (a gap in sampling): billed as held. Not 0 for
    long means that something is wrong with the sampler or with the watermark."""

    @property
    def total(self) -> float:
        """In `currency`."""
        return self.total_nano / NANO


def bill(use: DeviceUse, prices: Prices, basis: Basis, method: Method = "inflight") -> Bill | None:
    """The bill of one device; None where the basis or the method has no reading (no meter, no CPU time, a GPU).

    Seconds are GPU-seconds, on a CPU core-seconds (x cores held), so that seconds x price per hour / 3600 is the cost.

    - allocated: price x held. A version's seconds are its part of the busy time (`inflight`) or its engines' CPU
      seconds (`cpu_time`), idle = held - unsettled - all versions.
    - busy: price x the versions' seconds; what is not settled yet is left out.
    - energy: joules / 3.6e6 x tariff x PUE, divided as the allocated basis is: an idle second is taken to draw as much
      as a busy one, so the idle line is an upper bound.

    Source: STATISTICS.md, cost; FinOps Foundation, allocation of shared cost (direct and idle lines apart).
    """
    if method == "cpu_time" and (use.kind != "cpu" or use.cpu_s is None):
        return None
    if basis == "energy" and use.energy_j is None:
        return None
    used, unsettled, held = _unit_seconds(use, method)
    settled = sum(used.values(), Fraction(0))
    entries: list[tuple[LineKind, str, str, Fraction]] = [
        ("version", version, outcome, seconds) for (version, outcome), seconds in sorted(used.items())
    ]
    if basis != "busy":
        entries.append(("idle", "", "", max(Fraction(0), held - unsettled - settled)))
        entries.append(("unsettled", "", "", unsettled))
    if basis == "energy":
        amount = _exact(use.energy_j or 0.0) / JOULES_PER_KWH * _exact(prices.kwh) * _exact(prices.pue)
    else:
        amount = prices.unit_hour(use.kind) * sum((seconds for *_, seconds in entries), Fraction(0)) / HOUR_S
    total = round(amount * NANO) if entries else 0
    parts = apportion(total, [seconds for *_, seconds in entries])
    lines = tuple(
        CostLine(kind, version, outcome, float(seconds), nano)
        for (kind, version, outcome, seconds), nano in zip(entries, parts, strict=True)
    )
    residual = float(max(Fraction(0), settled + unsettled - held))
    return Bill(use.device, use.kind, basis, method, prices.currency, use.start, use.stop, lines, total, residual)


def bills(uses: Sequence[DeviceUse], prices: Prices) -> list[Bill]:
    """Every bill that the readings allow, by device, method and basis; `inflight` first."""
    methods: tuple[Method, ...] = ("inflight", "cpu_time")
    bases: tuple[Basis, ...] = ("allocated", "busy", "energy")
    made = (bill(use, prices, basis, method) for use in uses for method in methods for basis in bases)
    return [one for one in made if one is not None and not (one.basis == "energy" and one.method == "cpu_time")]


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """What a hosted API takes for a million tokens."""

    input_per_million: float = 0.0
    output_per_million: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What a version's tokens cost at its provider's price: the basis `tokens`, beside the bills by device, never in
    them."""

    version: str
    prompt_tokens: int
    completion_tokens: int
    price: TokenPrice
    nano: int
    basis: Literal["tokens"] = "tokens"
    currency: str = "USD"
    """Price lists are in USD."""


def token_cost(version: str, prompt_tokens: int, completion_tokens: int, price: TokenPrice) -> TokenCost:
    """Tokens x price, cached prompt tokens at the full price: an upper bound where a provider gives a discount."""
    amount = prompt_tokens * _exact(price.input_per_million) + completion_tokens * _exact(price.output_per_million)
    return TokenCost(version, prompt_tokens, completion_tokens, price, round(amount / 1_000_000 * NANO))


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """What one token of each kind is worth relative to the others, and where that was taken from."""

    uncached: float
    cached: float
    output: float
    source: Literal["phase_seconds", "convention"]

    @classmethod
    def convention(cls) -> TokenWeights:
        """Input 1, cached input 0.1, output 4: the usual proportions of hosted price lists. A stand-in until enough
        streams were measured."""
        return cls(1.0, 0.1, 4.0, "convention")

    @classmethod
    def measured(cls, prefill_s: float, prefill_tokens: float, decode_s: float, decode_tokens: float) -> TokenWeights:
        """Seconds per uncached input token and per output token, of streamed requests: (first token - dispatch) /
        uncached tokens, (last - first token) / (tokens - 1). A cached token costs no prefill and weighs 0. Falls back
        to `convention` where either was not measured."""
        if min(prefill_s, prefill_tokens, decode_s, decode_tokens) <= 0:
            return cls.convention()
        return cls(prefill_s / prefill_tokens, 0.0, decode_s / decode_tokens, "phase_seconds")


@dataclass(frozen=True, slots=True)
class Counts:
    """What a version did within the window."""

    successes: int = 0
    uncached_tokens: int = 0
    """Prompt tokens less the cached ones."""
    cached_tokens: int = 0
    output_tokens: int = 0
    weights: TokenWeights = field(default_factory=TokenWeights.convention)


@dataclass(frozen=True, slots=True)
class UnitCost:
    """Cost per unit of work of one version, in `currency`. None where nothing of the unit was done."""

    version: str
    basis: Basis
    method: Method
    device_kind: DeviceKind
    currency: str
    per_1k_requests: float | None
    per_1m_input_tokens: float | None
    per_1m_cached_tokens: float | None
    per_1m_output_tokens: float | None
    token_weights: str


def unit_cost(version: str, one: Bill, counts: Counts, *, idle_share: float = 0.0) -> UnitCost:
    """Unit costs of `version` on a bill.

    - The numerator is all of the version's lines, failed and cancelled work included, plus `idle_share` of the idle
      line (see `idle_shares`; the busy basis has no such line). Copies that it was sent as a shadow are no client's
      request: their line is left out.
    - per 1k requests = 1000 x cost / successful requests.
    - per 1M tokens: cost x w_kind / (sum of w x n over the kinds) x 1e6, so that tokens x unit cost is the cost again.

    Source: STATISTICS.md, cost.
    """
    nano = Fraction(sum(line.nano for line in one.lines if line.version == version and line.outcome != SHADOW))
    nano += _exact(idle_share) * sum(line.nano for line in one.lines if line.kind == "idle")
    cost = nano / NANO
    w = counts.weights
    worth = (
        _exact(w.uncached) * counts.uncached_tokens
        + _exact(w.cached) * counts.cached_tokens
        + _exact(w.output) * counts.output_tokens
    )

    def per_million(weight: float, tokens: int) -> float | None:
        return float(cost * _exact(weight) / worth * 1_000_000) if worth and tokens else None

    return UnitCost(
        version,
        one.basis,
        one.method,
        one.device_kind,
        one.currency,
        float(1000 * cost / counts.successes) if counts.successes else None,
        per_million(w.uncached, counts.uncached_tokens),
        per_million(w.cached, counts.cached_tokens),
        per_million(w.output, counts.output_tokens),
        w.source,
    )


def idle_shares(use: DeviceUse, versions: Sequence[str]) -> dict[str, float]:
    """Whose the idle time is: by memory reserved on the device, evenly where none is known. Sums to 1 over `versions`
    (empty where there are none)."""
    if not versions:
        return {}
    reserved = [max(0.0, use.reserved_bytes.get(version, 0.0)) for version in versions]
    total = sum(reserved)
    if total <= 0:
        return dict.fromkeys(versions, 1 / len(versions))
    return {version: part / total for version, part in zip(versions, reserved, strict=True)}


def _unit_seconds(use: DeviceUse, method: Method) -> tuple[dict[Key, Fraction], Fraction, Fraction]:
    """GPU-seconds or core-seconds: of each version and outcome, unsettled, held."""
    units = _exact(use.cores) if use.kind == "cpu" else Fraction(1)
    held = _exact(use.held_s) * units
    if method == "cpu_time":
        return _cpu_seconds(use), Fraction(0), held
    return {key: _exact(share) * units for key, share in use.shares.items()}, _exact(use.unsettled_s) * units, held


def _cpu_seconds(use: DeviceUse) -> dict[Key, Fraction]:
    """CPU seconds per version, divided among its outcomes as its in-flight shares are."""
    divided: dict[Key, Fraction] = {}
    for version, seconds in (use.cpu_s or {}).items():
        shares = {key: _exact(share) for key, share in use.shares.items() if key[0] == version}
        total = sum(shares.values(), Fraction(0))
        if total:
            divided.update({key: _exact(seconds) * share / total for key, share in shares.items()})
        else:
            divided[version, UNATTRIBUTED] = _exact(seconds)
    return divided


def _exact(value: float) -> Fraction:
    """The decimal number that a person wrote or would print: 0.1 is 1/10."""
    return Fraction(Decimal(repr(float(value))))
