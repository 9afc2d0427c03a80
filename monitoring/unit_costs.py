"""Cost per unit of work: per request, per token of each kind, per good request; and what a token is worth.

Owns: token weights and unit costs. Never: I/O, clocks, bills (`cost`), the sums that unit costs are made of
(`statement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from monitoring.cost import NANO, Basis, DeviceKind, Method, exact
from registry.entries import UsageHour

Phases = tuple[float, float, float, float]
"""Prefill seconds and uncached prompt tokens, decode seconds and tokens after the first, of streams."""
Weigh = Literal["phase_seconds", "pooled", "convention"]


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """What one token of each kind is worth relative to the others, and where that was taken from."""

    uncached: float
    cached: float
    output: float
    source: Weigh

    @classmethod
    def convention(cls) -> TokenWeights:
        """Input 1, cached input 0.1, output 4: the usual proportions of hosted price lists. A stand-in until enough
        streams were measured."""
        return cls(1.0, 0.1, 4.0, "convention")

    @classmethod
    def measured(cls, prefill_s: float, prefill_tokens: float, decode_s: float, decode_tokens: float) -> TokenWeights:
        """Seconds per uncached input token and per output token, of streamed requests: (first token - dispatch) /
        uncached tokens, (last - first token) / (tokens - 1). A cached token costs no prefill and weighs 0. Falls back
        to `convention` where either was not measured.

        A ratio of sums is the least-squares fit through the origin of seconds on tokens where the variance grows with
        the tokens (Cochran, Sampling Techniques, 6.7).
        """
        if min(prefill_s, prefill_tokens, decode_s, decode_tokens) <= 0:
            return cls.convention()
        return cls(prefill_s / prefill_tokens, 0.0, decode_s / decode_tokens, "phase_seconds")


def weights_of(phases: Mapping[str, Phases], version: str) -> TokenWeights:
    """The weights of a version: fitted to its own streams, else to those of all versions (`pooled`), else the
    convention. Whichever it is, all versions measured or pooled are in seconds and may be compared."""
    own = TokenWeights.measured(*phases.get(version, (0.0, 0.0, 0.0, 0.0)))
    if own.source != "convention":
        return own
    found = [one for one in phases.values() if min(one) > 0]
    pooled = TokenWeights.measured(*(sum(column) for column in zip(*found, strict=True))) if found else own
    return TokenWeights(pooled.uncached, pooled.cached, pooled.output, "pooled") if found else own


def token_seconds(row: UsageHour, weights: TokenWeights) -> float:
    """What the tokens of a row take: uncached prompt, cached and completion tokens times their weights."""
    fresh = max(0, row.prompt_tokens - row.cached_tokens)
    return fresh * weights.uncached + row.cached_tokens * weights.cached + row.completion_tokens * weights.output


@dataclass(slots=True)
class Counts:
    """What was done within the window, by one version or by several."""

    successes: int = 0
    judged: int = 0
    good: int = 0
    uncached_tokens: int = 0
    """Prompt tokens less the cached ones."""
    cached_tokens: int = 0
    output_tokens: int = 0
    uncached_worth: Fraction = Fraction(0)
    """Tokens x their weight, summed over the versions."""
    cached_worth: Fraction = Fraction(0)
    output_worth: Fraction = Fraction(0)
    sources: tuple[Weigh, ...] = ()

    def add(self, row: UsageHour, weights: TokenWeights) -> None:
        """Count one row of usage."""
        fresh = max(0, row.prompt_tokens - row.cached_tokens)
        self.successes += row.requests if row.outcome == "completed" else 0
        self.judged += row.judged
        self.good += row.good
        self.uncached_tokens += fresh
        self.cached_tokens += row.cached_tokens
        self.output_tokens += row.completion_tokens
        self.uncached_worth += exact(weights.uncached) * fresh
        self.cached_worth += exact(weights.cached) * row.cached_tokens
        self.output_worth += exact(weights.output) * row.completion_tokens
        if weights.source not in self.sources:
            self.sources += (weights.source,)


@dataclass(frozen=True, slots=True)
class UnitCost:
    """Cost per unit of work, in `currency`, on one device. None where nothing of the unit was done."""

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
    """`phase_seconds`, `pooled`, `convention`; several joined by `+`."""
    per_1k_good: float | None = None
    """Per 1000 requests within the service level; None without one."""
    device: str = ""
    model: str = ""
    key: str = ""
    segment: str = ""
    hour: int | None = None
    requests: int = 0
    """Completed ones."""
    judged: int = 0
    good: int = 0
    cost_nano: int = 0
    """What was divided."""
    with_idle: bool = True
    """Whether that holds idle time; of keys and segments it does not, as nobody's request holds memory."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a unit cost is of."""

    version: str = ""
    model: str = ""
    key: str = ""
    segment: str = ""
    hour: int | None = None


def unit_cost(
    subject: Subject,
    nano: int,
    counts: Counts,
    *,
    basis: Basis,
    method: Method,
    device_kind: DeviceKind,
    currency: str,
    device: str = "",
    with_idle: bool = True,
) -> UnitCost:
    """Unit costs of what cost `nano` billionths.

    - The numerator is everything that the subject cost, failed and cancelled work and its part of idle time included,
      copies that it was sent as a shadow left out: they are no client's request.
    - per 1k requests = 1000 x cost / completed requests; per 1k good = 1000 x cost / those within the service level.
    - per 1M tokens: cost x w_kind / (sum of w x n over the kinds) x 1e6, so that tokens x unit cost is the cost again.

    Source: STATISTICS.md, cost.
    """
    cost = Fraction(nano, NANO)
    worth = counts.uncached_worth + counts.cached_worth + counts.output_worth

    def per_million(part: Fraction, tokens: int) -> float | None:
        return float(cost * part / tokens / worth * 1_000_000) if worth and tokens else None

    return UnitCost(
        version=subject.version,
        basis=basis,
        method=method,
        device_kind=device_kind,
        currency=currency,
        per_1k_requests=float(1000 * cost / counts.successes) if counts.successes else None,
        per_1m_input_tokens=per_million(counts.uncached_worth, counts.uncached_tokens),
        per_1m_cached_tokens=per_million(counts.cached_worth, counts.cached_tokens),
        per_1m_output_tokens=per_million(counts.output_worth, counts.output_tokens),
        token_weights="+".join(sorted(counts.sources)) or "convention",
        per_1k_good=float(1000 * cost / counts.good) if counts.good else None,
        device=device,
        model=subject.model,
        key=subject.key,
        segment=subject.segment,
        hour=subject.hour,
        requests=counts.successes,
        judged=counts.judged,
        good=counts.good,
        cost_nano=nano,
        with_idle=with_idle,
    )


def counted(rows: Iterable[tuple[UsageHour, TokenWeights]]) -> Counts:
    """Counts of several rows, each with its version's weights."""
    counts = Counts()
    for row, weights in rows:
        counts.add(row, weights)
    return counts
