"""Sums of bills and usage over periods and devices, told apart by what was asked for.

Owns: which rows of the ledger make up the use of a device in a period, the price that was in force then, and sums that
may be gone on with. Never: I/O, clocks, arithmetic of money (`cost`), what is shown (`statement`).
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, Literal, NamedTuple

from monitoring.attribution import Key
from monitoring.cost import (
    BASES,
    METHODS,
    Basis,
    DeviceKind,
    DeviceUse,
    LineKind,
    Method,
    Prices,
    divide,
    entries_of,
    price,
)
from monitoring.unit_costs import Phases, token_seconds, weights_of
from registry.entries import (
    HOUR_S,
    CostSeconds,
    CpuSeconds,
    HeldSeconds,
    MemorySeconds,
    PriceChange,
    SmSeconds,
    StorageSeconds,
    UsageHour,
    period_end,
)

Dimension = Literal["version", "model", "key", "segment", "hour", "outcome"]
DIMENSIONS: Final[tuple[Dimension, ...]] = ("version", "model", "key", "segment", "hour", "outcome")
NOTHING: Final[Phases] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Device:
    """What the bill must know of a device that no row says."""

    kind: DeviceKind
    cores: float = 1.0


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What the ledger holds of a window (see `monitoring.settle.view`)."""

    rows: Sequence[CostSeconds] = ()
    held: Sequence[HeldSeconds] = ()
    cpu: Sequence[CpuSeconds] = ()
    sm: Sequence[SmSeconds] = ()
    memory: Sequence[MemorySeconds] = ()
    storage: Sequence[StorageSeconds] = ()
    usage: Sequence[UsageHour] = ()
    price_changes: Sequence[PriceChange] = ()
    """All of them, whatever the window."""
    phases: Mapping[str, Phases] = field(default_factory=dict)
    """`model@version` -> what its streams took before the window."""
    settled_until: float | None = None
    """The watermark up to which intervals were divided."""
    held_until: float | None = None
    """The time up to which held seconds are written."""
    start: float | None = None
    """Unix time at which the window begins; None: with the ledger."""
    usage_from: float | None = None
    """From when on usage is known by hour; what lies before is in the ledger's first hour. None: all of it is."""
    whole: bool = True
    """Whether nothing of the ledger lies before the window."""


class Cell(NamedTuple):
    """What one sum is of; "" and None where it is of all."""

    kind: LineKind
    version: str
    outcome: str
    key: str = ""
    segment: str = ""
    hour: int | None = None


class Account(NamedTuple):
    """What bills are told apart by: never added up."""

    device: str
    device_kind: DeviceKind
    basis: Basis
    method: Method
    currency: str


@dataclass(slots=True)
class Sums:
    """One bill as it adds up: cell -> nanoseconds and billionths."""

    cells: dict[Cell, tuple[int, int]] = field(default_factory=dict)
    start: float | None = None
    measured: bool = False
    """Whether the method had a reading at all."""
    residual_ns: int = 0
    fallback_ns: int = 0


class PriceList:
    """Which prices were in force when. Time before the first change has the first prices; without any, `now` is all."""

    def __init__(self, changes: Sequence[PriceChange], now: Prices) -> None:
        self._now = now
        known = {one.name for one in fields(Prices)}
        self._starts = [one.at for one in changes]
        self._prices = [Prices(**{k: v for k, v in one.prices.items() if k in known}) for one in changes]

    def at(self, start: float) -> Prices:
        """The prices of the period that begins at `start`."""
        return self._prices[max(0, bisect_right(self._starts, start) - 1)] if self._prices else self._now


class Tally:
    """Adds up windows that follow each other; versions and outcomes are always told apart, the rest where `by` says."""

    def __init__(self, by: Iterable[Dimension]) -> None:
        self.by = frozenset(by)
        self.accounts: dict[Account, Sums] = {}
        self.usage: dict[Cell, UsageHour] = {}
        self.storage: dict[tuple[str, str], tuple[float, int]] = {}
        """(version, currency) -> bytes x seconds, and billionths."""
        self.phases: dict[str, Phases] = {}

    def copy(self) -> Tally:
        """One that may be gone on with while this one stays."""
        twin = Tally(self.by)
        twin.accounts = {account: copy.copy(sums) for account, sums in self.accounts.items()}
        for sums in twin.accounts.values():
            sums.cells = dict(sums.cells)
        twin.usage, twin.storage, twin.phases = dict(self.usage), dict(self.storage), dict(self.phases)
        return twin

    def add(
        self, view: LedgerView, prices: PriceList, devices: Mapping[str, Device], reserved: Mapping[str, float]
    ) -> None:
        """Add a window that begins where the last one ended. `reserved` (`model@version` -> memory now) divides idle
        time of periods of which no memory is written down."""
        self.phases = self.phases or dict(view.phases)
        for use in self._uses(view, devices, reserved):
            self._bill(use, prices.at(use.start))
        for one in view.storage:
            asked = prices.at(one.hour)
            byte_s, nano = self.storage.get((one.version, asked.currency), (0.0, 0))
            self.storage[one.version, asked.currency] = (byte_s + one.byte_s, nano + asked.storage_nano(one.byte_s))

    def _bill(self, use: DeviceUse, prices: Prices) -> None:
        """Add one device's period by every basis and method. The same cells whatever the method had to go by."""
        hour = int(use.start // HOUR_S) * HOUR_S if "hour" in self.by else None
        for method in METHODS[use.kind]:
            division = divide(use, method)
            entries = entries_of(division)
            cells = [
                Cell(kind, key.version, key.outcome, self._key(key.key_id), self._segment(key.segment), hour)
                for kind, key, _ in entries
            ]
            measured = use.measured(method)
            for basis in BASES:
                if basis == "energy" and use.energy_j is None:
                    continue
                account = Account(use.device, use.kind, basis, method, prices.currency)
                sums = self.accounts.get(account)
                if sums is None:
                    sums = self.accounts[account] = Sums(start=use.start)
                sums.measured |= measured
                sums.residual_ns += division.residual_ns
                sums.fallback_ns += division.fallback_ns
                own = entries[: len(division.used)] if basis == "busy" else entries
                for cell, (*_, ns), nano in zip(cells, own, price(use, prices, basis, own), strict=False):
                    before = sums.cells.get(cell, (0, 0))
                    sums.cells[cell] = (before[0] + ns, before[1] + nano)

    def _key(self, key: str) -> str:
        return key if "key" in self.by else ""

    def _segment(self, segment: str) -> str:
        return segment if "segment" in self.by else ""

    def _uses(
        self, view: LedgerView, devices: Mapping[str, Device], reserved: Mapping[str, float]
    ) -> Iterator[DeviceUse]:
        """What each device was used for in each period, hour by hour: a token's weight is what was measured until then,
        so that an hour that is over keeps its figures."""
        rows = _Rows(view)
        cuts = [one.at for one in view.price_changes]
        for hour in rows.hours:
            self._count(rows.usage.get(hour, ()))
            token_s = self._token_seconds(rows.usage.get(hour, ()))
            for place in rows.places.get(hour, ()):
                yield rows.use(place, view, cuts, devices, reserved, token_s.get(place[1]))

    def _count(self, usage: Iterable[UsageHour]) -> None:
        """Add an hour's usage, and what its streams took."""
        for row in usage:
            hour = row.hour if "hour" in self.by else None
            cell = Cell("version", row.version, row.outcome, self._key(row.key_id), self._segment(row.segment), hour)
            self.usage[cell] = _sum(self.usage.get(cell), row)
            before = self.phases.get(row.version, NOTHING)
            now = (row.prefill_s, row.prefill_tokens, row.decode_s, row.decode_tokens)
            self.phases[row.version] = (before[0] + now[0], before[1] + now[1], before[2] + now[2], before[3] + now[3])

    def _token_seconds(self, usage: Iterable[UsageHour]) -> dict[str, dict[Key, float]]:
        """Device -> what each one's tokens of the hour take."""
        found: defaultdict[str, dict[Key, float]] = defaultdict(dict)
        for row in usage:
            if row.device:
                key = Key(row.version, row.outcome, row.key_id, row.segment)
                taken = token_seconds(row, weights_of(self.phases, row.version))
                found[row.device][key] = found[row.device].get(key, 0.0) + taken
        return found


Place = tuple[int, str]
"""(start of the period, device)"""


class _Rows:
    """A view's rows by period and device."""

    def __init__(self, view: LedgerView) -> None:
        self.shares: defaultdict[Place, dict[Key, float]] = defaultdict(dict)
        for row in view.rows:
            key = Key(row.version, row.outcome, row.key_id, row.segment)
            own = self.shares[row.hour, row.device]
            own[key] = own.get(key, 0.0) + row.busy_share_s
        self.held = {(row.hour, row.device): row for row in view.held}
        self.cpu = _by_version((row.hour, row.device, row.version, row.cpu_s) for row in view.cpu)
        self.sm = _by_version((row.hour, row.device, row.version, row.sm_s) for row in view.sm)
        self.memory = _by_version((row.hour, row.device, row.version, row.byte_s) for row in view.memory)
        self.usage: defaultdict[int, list[UsageHour]] = defaultdict(list)
        for one in view.usage:
            self.usage[one.hour // HOUR_S * HOUR_S].append(one)
        self.places: defaultdict[int, list[Place]] = defaultdict(list)
        billed = {device for _, device in self.shares.keys() | self.held.keys()}
        cpu = {place for place in self.cpu if place[1] in billed}  # on a machine with GPUs its CPU is not sold
        for place in sorted(self.shares.keys() | self.held.keys() | cpu):
            self.places[place[0] // HOUR_S * HOUR_S].append(place)
        self.hours = sorted(self.usage.keys() | self.places.keys())

    def use(
        self,
        place: Place,
        view: LedgerView,
        cuts: Sequence[int],
        devices: Mapping[str, Device],
        reserved: Mapping[str, float],
        token_s: Mapping[Key, float] | None,
    ) -> DeviceUse:
        start, name = place
        device = devices.get(name) or Device("cpu" if name == "cpu" else "gpu")
        stop = period_end(start, cuts)
        held = self.held.get(place, HeldSeconds(start, name, 0.0))
        unsettled_s = 0.0
        if view.held_until is not None:  # within a period, held time is taken to be its latest part
            after = min(float(stop), view.held_until) - max(float(start), view.settled_until or 0.0)
            unsettled_s = min(held.held_s, max(0.0, after))
        return DeviceUse(
            device=name,
            kind=device.kind,
            start=start,
            stop=stop,
            held_s=held.held_s,
            shares=self.shares.get(place, {}),
            unsettled_s=unsettled_s,
            cores=device.cores,
            cpu_s=self.cpu.get(place) if device.kind == "cpu" else None,
            sm_s=self.sm.get(place),
            token_s=token_s,
            energy_j=held.energy_j if held.metered_s else None,
            reserved=self.memory.get(place, reserved),
        )


def _by_version(rows: Iterable[tuple[int, str, str, float]]) -> dict[Place, dict[str, float]]:
    found: defaultdict[Place, dict[str, float]] = defaultdict(dict)
    for hour, device, version, value in rows:
        own = found[hour, device]
        own[version] = own.get(version, 0.0) + value
    return dict(found)


_COUNTED: Final = tuple(one.name for one in fields(UsageHour))[6:]


def _sum(before: UsageHour | None, row: UsageHour) -> UsageHour:
    if before is None:
        return row
    sums = {name: getattr(before, name) + getattr(row, name) for name in _COUNTED}
    return UsageHour(row.hour, row.device, row.version, row.outcome, row.key_id, row.segment, **sums)
