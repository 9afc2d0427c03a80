"""Weeks of a yard's past as rows of the ledger: quiet nights, busy days, two versions, two keys. For tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from monitoring import settle
from registry.entries import HOUR_S, CostSeconds, HeldSeconds, MemorySeconds, UsageHour
from registry.ledger import Ledger

DAY_S = 24 * HOUR_S
VERSIONS = {"assistant@v1": 0.9, "assistant@v2": 0.1}
KEYS = {"key_team": 0.6, "key_batch": 0.3, "": 0.1}
MEMORY = {"assistant@v1": 3e8, "assistant@v2": 1e8}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What an hour is like."""

    requests: float = 400.0
    output_tokens: float = 100.0
    occupancy: float = 2.0
    """Requests in flight while any is."""
    failed: float = 0.02
    token_s: float = 0.02
    """In flight, per output token."""


Rows = tuple[list[HeldSeconds], list[CostSeconds], list[MemorySeconds], list[UsageHour]]


def usual(at: int, rng: random.Random) -> Traffic:
    """Days have ten times the traffic of nights, and differ by some percent."""
    return Traffic(requests=(400 if 8 <= at // HOUR_S % 24 < 20 else 40) * rng.lognormvariate(0, 0.04))


def hours(start: float, stop: float) -> Iterator[int]:
    first = ceil(start / HOUR_S) * HOUR_S
    yield from range(first, int(stop) // HOUR_S * HOUR_S, HOUR_S)


def rows(
    start: float,
    stop: float,
    *,
    device: str = "cpu",
    traffic: Callable[[int, random.Random], Traffic] = usual,
    seed: int = 1,
) -> Rows:
    """The rows of whole hours within [start, stop)."""
    rng = random.Random(seed)
    held: list[HeldSeconds] = []
    cost: list[CostSeconds] = []
    memory: list[MemorySeconds] = []
    usage: list[UsageHour] = []
    for at in hours(start, stop):
        hour = traffic(at, rng)
        held.append(HeldSeconds(at, device, HOUR_S, 300.0 * HOUR_S, HOUR_S))
        memory += [MemorySeconds(at, device, version, size * HOUR_S) for version, size in MEMORY.items()]
        for version, part in VERSIONS.items():
            for key, own in KEYS.items():
                count = round(hour.requests * part * own)
                for outcome, made in (("completed", count), ("failed", round(count * hour.failed))):
                    inflight = made * hour.output_tokens * hour.token_s
                    cost.append(CostSeconds(at, device, version, outcome, inflight / hour.occupancy, inflight, key, ""))
                    tokens = round(made * hour.output_tokens)
                    usage.append(
                        UsageHour(
                            at,
                            device,
                            version,
                            outcome,
                            key,
                            "",
                            requests=made,
                            prompt_tokens=made * 60,
                            cached_tokens=made * 20,
                            completion_tokens=tokens,
                            prefill_s=made * 0.1,
                            prefill_tokens=made * 40,
                            decode_s=tokens * hour.token_s,
                            decode_tokens=max(0, tokens - made),
                        )
                    )
        cost.append(CostSeconds(at, device, "assistant@v2", "shadow", 30.0, 60.0, "", ""))
    return held, cost, memory, usage


def write(ledger: Ledger, made: Rows) -> None:
    """Add the rows to a ledger, as settled up to their end."""
    held, cost, memory, usage = made
    with ledger.transaction() as tx:
        tx.add_held_seconds(held)
        tx.add_cost_seconds(cost)
        tx.add_memory_seconds(memory)
        tx.add_usage(usage)
        end = held[-1].hour + HOUR_S
        tx.set_cursor(settle.SETTLED, end)
        tx.set_cursor(settle.HELD, end)
