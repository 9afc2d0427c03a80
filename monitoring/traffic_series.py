"""The last hour's traffic per version in equal steps: what charts over time are drawn from.

Owns: counting finished requests into steps, quantiles of the first token per step. Never: I/O, clocks (`now` is an
argument), drawing.

A step keeps counts and a histogram, not records: its size does not grow with the traffic. The histogram's bounds grow
by 5%: a quantile is right to within that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from monitoring.recent import FAULTS
from registry.usage import RequestRecord

STEP_S: Final = 10
KEPT_S: Final = 3600
LATE_S: Final = 3.0
"""Records are counted this long after their request ended, as a rule: a step is shown once that has passed."""
GROWTH: Final = 1.05
VERSIONS_MAX: Final = 64
"""Versions in one step; further ones are left out, so that nothing grows without a bound."""


@dataclass(slots=True)
class _Cell:
    """One version in one step."""

    requests: int = 0
    failures: int = 0
    tokens: int = 0
    first_tokens: Counter[int] = field(default_factory=Counter)
    """Exponent of GROWTH -> streams whose first token came within GROWTH ** exponent seconds."""


@dataclass(frozen=True, slots=True)
class VersionSeries:
    """One version; every tuple has a value per step, in order of time."""

    requests: tuple[int, ...]
    failures: tuple[int, ...]
    """Failed and truncated requests: the service's fault."""
    tokens: tuple[int, ...]
    """Completion tokens of the requests that ended in the step."""
    ttft_p50_s: tuple[float | None, ...]
    ttft_p95_s: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """All versions over the same steps."""

    step_s: int
    at: tuple[int, ...]
    """Unix seconds at which each step ends."""
    versions: dict[str, VersionSeries]
    """`model@label` -> its figures; only versions that had a request."""


class TrafficSeries:
    """Counts of the last KEPT_S seconds. Copies of requests (shadow arms) are no traffic. Not thread-safe."""

    def __init__(self) -> None:
        self._steps: dict[int, dict[str, _Cell]] = {}

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Take in finished requests, in any order."""
        for record in records:
            if record.shadow_of or not record.version:
                continue
            number = int(record.ended_at // STEP_S)
            cells = self._steps.setdefault(number, {})
            name = f"{record.model}@{record.version}"
            if name not in cells and len(cells) >= VERSIONS_MAX:
                continue
            cell = cells.setdefault(name, _Cell())
            cell.requests += 1
            cell.failures += record.outcome in FAULTS
            cell.tokens += record.completion_tokens
            if record.streamed and record.first_token_s > 0:
                cell.first_tokens[math.ceil(math.log(record.first_token_s, GROWTH))] += 1
        self._forget()

    def read(self, now: float, minutes: float) -> Series:
        """The steps of the last minutes that are whole."""
        last = int((now - LATE_S) // STEP_S)
        first = last - max(1, round(min(minutes * 60, KEPT_S) / STEP_S))
        cells = [self._steps.get(number, {}) for number in range(first, last)]
        names = sorted({name for one in cells for name in one})
        return Series(
            STEP_S,
            tuple((number + 1) * STEP_S for number in range(first, last)),
            {name: _series([one.get(name, _NOTHING) for one in cells]) for name in names},
        )

    def _forget(self) -> None:
        if self._steps:
            oldest = max(self._steps) - KEPT_S // STEP_S
            for number in [one for one in self._steps if one < oldest]:
                del self._steps[number]


_NOTHING: Final = _Cell()


def _series(cells: list[_Cell]) -> VersionSeries:
    return VersionSeries(
        requests=tuple(one.requests for one in cells),
        failures=tuple(one.failures for one in cells),
        tokens=tuple(one.tokens for one in cells),
        ttft_p50_s=tuple(_quantile(one.first_tokens, 0.5) for one in cells),
        ttft_p95_s=tuple(_quantile(one.first_tokens, 0.95) for one in cells),
    )


def _quantile(counts: Counter[int], q: float) -> float | None:
    """The bound within which at least a share `q` lies; None without values."""
    wanted = math.ceil(q * counts.total())
    run = 0
    for exponent in sorted(counts):
        run += counts[exponent]
        if run >= wanted:
            return float(GROWTH**exponent)
    return None
