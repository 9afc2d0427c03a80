"""Writes what was observed into the ledger, and reads a window back: each step within the caller's transaction.

Owns: the order of the steps and the names of the ledger's cursors. Never: segments, transactions of its own, prices.

A transaction of ingestion is: `count` the new records, move the segment's offset, `settle` up to the watermark, `add`
the sampler's sums; all or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from monitoring.attribution import Settlement, advance, cost_rows
from monitoring.observe import intervals, observe
from monitoring.sampler import Sums
from monitoring.statement import LedgerView
from registry.ledger import HOUR_S, Ledger, LedgerTx
from registry.usage import RequestRecord

SETTLED: Final = "settled"
"""The ledger's cursor: intervals are divided up to this time."""
HELD: Final = "held"
"""The ledger's cursor: held seconds are written up to this time; where a sampler resumes."""


def count(tx: LedgerTx, records: Sequence[RequestRecord], device_of: Callable[[str], str | None]) -> None:
    """Add what `records` count as, and their intervals; `device_of` names a replica's device (None: not ours)."""
    counters, histograms = observe(records)
    tx.add_counters(counters)
    tx.add_histograms(histograms)
    tx.add_intervals(intervals(records, device_of))


def settle(tx: LedgerTx, watermark: float) -> Settlement:
    """Divide time up to `watermark`: no record that began earlier is still to come.

    The watermark is the least over workers of `Stats.oldest_started_at` (once their segments are read up to
    `flushed_bytes`). One that lies before the last settles nothing.
    """
    cursor = tx.cursor(SETTLED)
    pending = tx.intervals()
    if cursor is None:
        cursor = min((interval.start for interval in pending), default=watermark)
    settlement = advance(pending, cursor, watermark)
    if watermark > cursor or tx.cursor(SETTLED) is None:
        tx.add_cost_seconds(cost_rows(settlement.shares))
        tx.replace_intervals(settlement.remaining)
        tx.set_cursor(SETTLED, max(cursor, watermark))
    return settlement


def add(tx: LedgerTx, sums: Sums) -> None:
    """Write the sampler's sums; tell the sampler (`settled`) once the transaction is through."""
    tx.add_held_seconds(sums.held)
    tx.add_cpu_seconds(sums.cpu)
    if sums.until is not None:
        tx.set_cursor(HELD, sums.until)


def view(ledger: Ledger, since: float | None = None, until: float | None = None) -> LedgerView:
    """A window of the ledger, from the start of the hour in which `since` lies; without `since`, all of it.

    All of one state: rows and watermark of two states would show what was settled in between as idle.
    """
    with ledger.snapshot() as state:
        return LedgerView(
            rows=state.cost_seconds(since, until),
            held=state.held_seconds(since, until),
            cpu=state.cpu_seconds(since, until),
            counters=state.counters(),
            settled_until=state.cursor(SETTLED),
            held_until=state.cursor(HELD),
            start=None if since is None else since // HOUR_S * HOUR_S,
        )
