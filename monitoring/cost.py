"""What it cost: a device's time and energy as money per version, idle on its own lines, to the last digit.

Owns: prices and the bill of one device in one period. Never: I/O, clocks, reading devices, settling intervals
(`attribution`), sums over periods and devices, unit costs (`statement`, `unit_costs`).

Three bases, never one figure alone; every bill names its currency, window, method and kind of device:

    allocated   price x hours the device was held; versions, idle and what is not settled yet sum to it
    busy        price x hours with at least one request in flight
    energy      kilowatt-hours x tariff x PUE, where the device has a meter

Four methods of saying whose the busy time was, shares summing to one:

    inflight    a moment with N requests in flight belongs 1/N to each
    sm          on a GPU: in proportion to the seconds of its multiprocessors that each version's processes had
    tokens      in proportion to tokens x what a token takes: see `token_seconds`
    cpu_time    on a CPU: the CPU seconds of each version's processes themselves (they sum to what was used of the
                cores, not to the time with a request in flight)

Time is counted in whole nanoseconds and money in whole billionths of the currency (`nano`), per device and period (an
hour, or a part of it that a changed price begins). So lines sum to their total exactly, whatever they are summed by,
and a month's bill is the sum of its hours' bills. Rounding gives the last billionth to the largest remainder: the same
time may cost one billionth less on one basis than on another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Final, Literal, TypeVar

from monitoring.attribution import NS, Key, apportion

NANO: Final = 1_000_000_000
HOUR_S: Final = 3600
JOULES_PER_KWH: Final = 3_600_000
GB: Final = 1_000_000_000
MONTH_S: Final = 730 * HOUR_S
"""A month of storage: a twelfth of 8760 hours."""
UNATTRIBUTED: Final = "none"
"""The outcome class of engine time that no request caused (loading, probes)."""

DeviceKind = Literal["gpu", "cpu"]
Basis = Literal["allocated", "busy", "energy"]
Method = Literal["inflight", "sm", "tokens", "cpu_time"]
LineKind = Literal["version", "idle", "unsettled"]
_Who = TypeVar("_Who", str, Key)
BASES: Final[tuple[Basis, ...]] = ("allocated", "busy", "energy")
METHODS: Final[Mapping[DeviceKind, tuple[Method, ...]]] = {
    "gpu": ("inflight", "sm", "tokens"),
    "cpu": ("inflight", "cpu_time", "tokens"),
}
"""By kind of device, the default first."""


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
    storage_gb_month: float = 0.0
    """Per 10^9 bytes of artifacts and month of 730 hours."""

    def __post_init__(self) -> None:
        if min(self.gpu_hour, self.cpu_hour, self.kwh, self.storage_gb_month) < 0 or self.pue < 1:
            raise ValueError("a price cannot be negative, and pue cannot be below 1")

    def unit_hour(self, kind: DeviceKind) -> Fraction:
        """Price of one GPU-hour or core-hour."""
        return exact(self.gpu_hour if kind == "gpu" else self.cpu_hour)

    def storage_nano(self, byte_s: float) -> int:
        """Billionths for so many bytes x seconds."""
        return round(exact(byte_s) / GB / MONTH_S * exact(self.storage_gb_month) * NANO)


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What one device was used for within one period. Seconds; nothing rounded or priced yet."""

    device: str
    kind: DeviceKind
    start: float
    """The period, Unix seconds."""
    stop: float
    held_s: float
    shares: Mapping[Key, float] = field(default_factory=dict)
    """Whose busy seconds they were by requests in flight."""
    unsettled_s: float = 0.0
    """The part of `held_s` after the last settlement: whether it was busy, and whose it was, is not known yet."""
    cores: float = 1.0
    """Cores held, on a CPU."""
    cpu_s: Mapping[str, float] | None = None
    """`model@version` -> CPU seconds of its engines; None where they were not measured."""
    sm_s: Mapping[str, float] | None = None
    """`model@version` -> seconds of multiprocessors of its engines; None where the driver lists none (MIG)."""
    token_s: Mapping[Key, float] | None = None
    """Seconds that the tokens of each one's requests take (`token_seconds`); None where none were counted."""
    energy_j: float | None = None
    """None where the device has no meter."""
    reserved: Mapping[str, float] = field(default_factory=dict)
    """`model@version` -> memory x time that its engines held on the device; idle time is divided by it."""

    def measured(self, method: Method) -> bool:
        """Whether there is what the method divides by."""
        reading = {"inflight": self.shares, "sm": self.sm_s, "tokens": self.token_s, "cpu_time": self.cpu_s}[method]
        if method == "cpu_time":
            return self.kind == "cpu" and reading is not None
        return method == "inflight" or any(round(weight * NS) > 0 for weight in (reading or {}).values())


@dataclass(frozen=True, slots=True)
class CostLine:
    """One line of a bill. What the bill is not divided by is "" (None for the hour)."""

    kind: LineKind
    version: str
    """`model@version`; on an idle line the one that held the memory, "" where nothing tells."""
    outcome: str
    """Outcome class: work without a success has its own line."""
    seconds: float
    """GPU-seconds, or core-seconds."""
    nano: int
    model: str = ""
    key: str = ""
    """The id of the API key; "" also for requests without one."""
    segment: str = ""
    """"" also for the route's own arms."""
    hour: int | None = None
    """Unix second at which it began."""

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
    fallback_s: float = 0.0
    """Busy seconds of periods in which the method had no reading: they are divided by requests in flight."""

    @property
    def total(self) -> float:
        """In `currency`."""
        return self.total_nano / NANO


@dataclass(frozen=True, slots=True)
class Division:
    """Whose the time of one device and period was by one method, in nanoseconds of GPUs or cores."""

    used: tuple[tuple[Key, int], ...]
    idle: tuple[tuple[str, int], ...]
    """By `model@version`."""
    unsettled_ns: int
    residual_ns: int
    fallback_ns: int


def divide(use: DeviceUse, method: Method) -> Division:
    """Divide a device's time; where the method has no reading, as `inflight` does (and `fallback_ns` says so).

    1. inflight: each one's share of the busy time, as settled.
    2. sm: the busy time in proportion to `sm_s` of the versions, a version's part among its outcomes, keys and segments
       as its in-flight shares are; a version without a request has the outcome `none`.
    3. tokens: the busy time in proportion to `token_s`.
    4. cpu_time: `cpu_s` itself, divided within a version as in 2.

    On a CPU all but 4 are x cores held. Idle = held - unsettled - used, divided by `idle_weights`.
    """
    fallback = not use.measured(method)
    if fallback:
        method = "inflight"
    units = exact(use.cores) if use.kind == "cpu" else Fraction(1)
    shares = {key: round(round(share * NS) * units) for key, share in sorted(use.shares.items())}
    busy = sum(shares.values())
    if method == "sm":
        used = _within_versions(_parts(busy, use.sm_s or {}), shares)
    elif method == "tokens":
        used = _parts(busy, use.token_s or {})
    elif method == "cpu_time":
        used = _within_versions({version: round(s * NS) for version, s in sorted((use.cpu_s or {}).items())}, shares)
    else:
        used = shares
    held, unsettled = round(use.held_s * NS * units), round(use.unsettled_s * NS * units)
    if method == "cpu_time":
        unsettled = 0
    rest = held - unsettled - sum(used.values())
    weights = idle_weights(use)
    idle = apportion(max(0, rest), list(weights.values()))
    return Division(
        tuple((key, ns) for key, ns in used.items() if ns),
        tuple(zip(weights, idle, strict=True)),
        unsettled,
        max(0, -rest),
        busy if fallback else 0,
    )


def idle_weights(use: DeviceUse) -> dict[str, int]:
    """Whose the idle time is: by memory reserved on the device; evenly among the versions that were at work on it where
    none is known; "" where nobody was there."""
    reserved = {version: round(weight) for version, weight in sorted(use.reserved.items()) if round(weight) > 0}
    return reserved or dict.fromkeys(sorted({key.version for key in use.shares} | set(use.cpu_s or ())) or [""], 1)


def bill(use: DeviceUse, prices: Prices, basis: Basis, method: Method = "inflight") -> Bill | None:
    """The bill of one device and period; None where the basis or the method has no reading (no meter, no CPU time)."""
    if not use.measured(method) or (basis == "energy" and use.energy_j is None):
        return None
    division = divide(use, method)
    entries = [entry for entry in entries_of(division) if basis != "busy" or entry[0] == "version"]
    nanos = price(use, prices, basis, entries)
    lines = tuple(
        CostLine(kind, key.version, key.outcome, ns / NS, nano, "", key.key_id, key.segment)
        for (kind, key, ns), nano in zip(entries, nanos, strict=True)
    )
    return Bill(
        use.device,
        use.kind,
        basis,
        method,
        prices.currency,
        use.start,
        use.stop,
        lines,
        sum(nanos),
        division.residual_ns / NS,
        division.fallback_ns / NS,
    )


Entry = tuple[LineKind, Key, int]
"""A line before it is priced: its kind, whose it is, nanoseconds."""


def entries_of(division: Division) -> list[Entry]:
    """The lines of a division, those of versions first."""
    entries: list[Entry] = [("version", key, ns) for key, ns in division.used]
    entries += [("idle", Key(version, ""), ns) for version, ns in division.idle]
    entries.append(("unsettled", Key("", ""), division.unsettled_ns))
    return entries


def price(use: DeviceUse, prices: Prices, basis: Basis, entries: Sequence[Entry]) -> list[int]:
    """What the lines of one division cost, in billionths; of `entries_of` a division, on the basis `busy` its versions
    alone. The use must have a meter on the basis `energy`.

    Seconds are GPU-seconds, on a CPU core-seconds (x cores held), so that seconds x price per hour / 3600 is the cost.

    - allocated: price x held (with what was used beyond that: the residual).
    - busy: price x the versions' seconds; what is not settled yet is left out.
    - energy: joules / 3.6e6 x tariff x PUE, divided as the allocated basis is: an idle second is taken to draw as much
      as a busy one, so idle lines are an upper bound.

    Source: STATISTICS.md, cost; FinOps Foundation, allocation of shared cost (direct and idle lines apart).
    """
    nanoseconds = [ns for *_, ns in entries]
    if not nanoseconds:
        return []
    if basis == "energy":
        amount = exact(use.energy_j or 0.0) / JOULES_PER_KWH * exact(prices.kwh) * exact(prices.pue)
    else:
        amount = prices.unit_hour(use.kind) * sum(nanoseconds) / (NS * HOUR_S)
    return apportion(round(amount * NANO), nanoseconds)


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
    amount = prompt_tokens * exact(price.input_per_million) + completion_tokens * exact(price.output_per_million)
    return TokenCost(version, prompt_tokens, completion_tokens, price, round(amount / 1_000_000 * NANO))


@lru_cache(maxsize=256)
def exact(value: float) -> Fraction:
    """The decimal number that a person wrote or would print: 0.1 is 1/10."""
    return Fraction(Decimal(repr(float(value))))


def _parts(total: int, weights: Mapping[_Who, float]) -> dict[_Who, int]:
    """`total` divided in proportion to `weights`, whole nanoseconds of which count."""
    owners = sorted(owner for owner, weight in weights.items() if round(weight * NS) > 0)
    return dict(zip(owners, apportion(total, [round(weights[owner] * NS) for owner in owners]), strict=True))


def _within_versions(versions: Mapping[str, int], shares: Mapping[Key, int]) -> dict[Key, int]:
    """Each version's time divided among its outcomes, keys and segments as its in-flight shares are."""
    own: defaultdict[str, list[Key]] = defaultdict(list)
    for key, share in shares.items():
        if share > 0:
            own[key.version].append(key)
    divided: dict[Key, int] = {}
    for version, ns in versions.items():
        keys = own.get(version) or [Key(version, UNATTRIBUTED)]
        divided.update(zip(keys, apportion(ns, [shares.get(key, 1) for key in keys]), strict=True))
    return divided
