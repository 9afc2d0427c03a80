"""Writes what was observed into the ledger, and reads a window back: each step within the caller's transaction.

Owns: the order of the steps and the names of the ledger's cursors. Never: segments, transactions of its own, prices.

A transaction of ingestion is: `count` the new records, move the segment's offset, `settle` up to the watermark, `add`
the sampler's sums; all or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from typing import Final

from monitoring.attribution import Settlement, advance, cost_rows
from monitoring.cost import Prices
from monitoring.observe import intervals, observe
from monitoring.sampler import Sums
from monitoring.tally import LedgerView
from monitoring.usage import Labels, Slo, usage
from registry.entries import StorageSeconds, periods
from registry.ledger import HOUR_S, Ledger, LedgerSnapshot, LedgerTx, PriceChange
from registry.usage import RequestRecord

SETTLED: Final = "settled"
"""The ledger's cursor: intervals are divided up to this time."""
HELD: Final = "held"
"""The ledger's cursor: held seconds are written up to this time; where a sampler resumes."""
STORED: Final = "stored"
"""The ledger's cursor: storage is written up to this time."""
USAGE_FROM: Final = "usage_from"
"""The ledger's cursor: from when on usage is known by hour; set by the migration of an older ledger."""
AHEAD_S: Final = 1.0
"""How far in the future a changed price begins, so that no reading was split already that it cuts."""


def count(
    tx: LedgerTx,
    records: Sequence[RequestRecord],
    device_of: Callable[[str], str | None],
    *,
    slos: Mapping[str, Slo] | None = None,
    labels: Labels | None = None,
) -> None:
    """Add what `records` count as, and their intervals.

    `device_of` names a replica's device (None: not ours), `slos` the service levels by model; `labels` is kept between
    calls, so that the keys of an hour are read from the ledger once.
    """
    counters, histograms = observe(records)
    own = (labels or Labels()).of(records, tx)
    rows, judged = usage(records, own, device_of, slos or {})
    tx.add_counters(counters | judged)
    tx.add_histograms(histograms)
    tx.add_usage(rows)
    tx.add_intervals(intervals(records, device_of, own))


def settle(tx: LedgerTx, watermark: float) -> Settlement:
    """Divide time up to `watermark`: no record that began earlier is still to come.

    The watermark is the least over workers of `Stats.oldest_started_at` (once their segments are read up to
    `flushed_bytes`). One that lies before the last settles nothing.
    """
    cursor = tx.cursor(SETTLED)
    pending = tx.intervals()
    if cursor is None:
        cursor = min((interval.start for interval in pending), default=watermark)
    settlement = advance(pending, cursor, watermark, [one.at for one in tx.price_changes()])
    if watermark > cursor or tx.cursor(SETTLED) is None:
        tx.add_cost_seconds(cost_rows(settlement.shares))
        tx.replace_intervals(settlement.remaining)
        tx.set_cursor(SETTLED, max(cursor, watermark))
    return settlement


def add(tx: LedgerTx, sums: Sums) -> None:
    """Write the sampler's sums; tell the sampler (`settled`) once the transaction is through."""
    tx.add_held_seconds(sums.held)
    tx.add_cpu_seconds(sums.cpu)
    tx.add_sm_seconds(sums.sm)
    tx.add_memory_seconds(sums.memory)
    if sums.until is not None:
        tx.set_cursor(HELD, sums.until)


def store(tx: LedgerTx, bytes_by_version: Mapping[str, float], now: float) -> None:
    """Write down what artifacts took since the last call; a yard that stood still paid for them too. The first call
    begins."""
    since = tx.cursor(STORED)
    if since is not None and since < now:
        cuts = [one.at for one in tx.price_changes()]
        tx.add_storage_seconds(
            StorageSeconds(period, version, size * seconds)
            for period, seconds in periods(since, now, cuts)
            for version, size in bytes_by_version.items()
        )
    if since is None or since < now:
        tx.set_cursor(STORED, now)


def record_prices(ledger: Ledger, prices: Prices, now: float) -> tuple[int, ...]:
    """Write down the prices that the yard has from now on, where they are others than before; returns every moment at
    which prices changed, which is where hours are cut (`Sampler.cuts`).

    A change begins a second ahead, on a whole second: what was used until then keeps its price to the last nanosecond.
    The first prices count for all of the time before them too.
    """
    with ledger.transaction() as tx:
        known = tx.price_changes()
        asked = asdict(prices)
        if not known or asdict(Prices(**known[-1].prices)) != asked:
            at = ceil(now + AHEAD_S) if known else int(now)
            if known:
                at = max(at, known[-1].at)
            tx.record_prices(PriceChange(at, asked))
        return tuple(one.at for one in tx.price_changes())


def view(ledger: Ledger, since: float | None = None, until: float | None = None) -> LedgerView:
    """A window of the ledger, from the start of the hour in which `since` lies; without `since`, all of it.

    All of one state: rows and watermark of two states would show what was settled in between as idle.
    """
    with ledger.snapshot() as state:
        return view_of(state, since, until)


def view_of(state: LedgerSnapshot, since: float | None = None, until: float | None = None) -> LedgerView:
    """As `view`, of a state that is being read."""
    start = None if since is None else since // HOUR_S * HOUR_S
    first = state.first_hour()
    return LedgerView(
        rows=state.cost_seconds(since, until),
        held=state.held_seconds(since, until),
        cpu=state.cpu_seconds(since, until),
        sm=state.sm_seconds(since, until),
        memory=state.memory_seconds(since, until),
        storage=state.storage_seconds(since, until),
        usage=state.usage_hours(since, until),
        price_changes=state.price_changes(),
        phases={} if start is None else state.phases_before(int(start)),
        settled_until=state.cursor(SETTLED),
        held_until=state.cursor(HELD),
        start=start,
        usage_from=state.cursor(USAGE_FROM),
        whole=start is None or first is None or start <= first,
    )
