"""When a version's requests became dearer: cost per 1k requests against earlier days, and what the rise is made of.

Owns: the test, its false-alarm rate, and the factors that a change of cost is made of. Never: I/O, clocks, prices.

    cost     price   busy + idle   seconds in flight   seconds in flight    work     requests
    ------ =        x ----------- x 1 / ----------------- x ----------------- x -------- x ---------
    success            busy             busy                 work            requests  successes

Each factor's change of logarithm is its part of the rise; they sum to it exactly. `work` is tokens weighted by what
one of each kind takes; its change is divided between prompts and outputs by the logarithmic mean (LMDI-I: Ang 2005,
"The LMDI approach to decomposition analysis"), which leaves no remainder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
WINDOWS_H: Final = (6, 24)
"""How many hours are looked at: the shorter where it has enough requests."""
REQUESTS_MIN: Final = 50
"""Successful requests that the window must have; fewer say little about cost per request."""
DAY_REQUESTS_MIN: Final = 20
"""The same for each earlier day that it is compared with."""
DAYS_MIN: Final = 5
DAYS_MAX: Final = 28
BEGINNINGS: Final = 4
"""A rise is looked for as of today, and as begun up to three days ago: it stays an anomaly for about so many days."""
RATIO_MIN: Final = 1.2
"""A smaller rise is no anomaly, however surely it is one."""
ALPHA: Final = 0.001
"""How often at most a look says `anomaly` where nothing changed (days independent, alike, about log-normal)."""
QUANTILES: Final = (
    *(1273.239, 44.705, 16.326, 10.306, 7.976, 6.788, 6.082, 5.617, 5.291, 5.049, 4.863, 4.716, 4.597, 4.499, 4.417),
    *(4.346, 4.286, 4.233, 4.187, 4.146, 4.110, 4.077, 4.047, 4.021, 3.996, 3.974, 3.954),
)
"""Student's t at 1 - ALPHA / BEGINNINGS, by degrees of freedom from 1."""
LARGE_SHARE: Final = 1 / 3
"""The part of what drove cost up that a factor must have to be called the cause."""

Cause = Literal[
    "larger_outputs",
    "larger_prompts",
    "slower_engine",
    "lower_occupancy",
    "more_idle",
    "more_failures",
    "price_change",
    "unknown",
]
CAUSES: Final[tuple[Cause, ...]] = (
    "larger_outputs",
    "larger_prompts",
    "slower_engine",
    "lower_occupancy",
    "more_idle",
    "more_failures",
    "price_change",
    "unknown",
)
Verdict = Literal["anomaly", "usual", "too_little"]


@dataclass(frozen=True, slots=True)
class Use:
    """What a version did and what it cost, of an hour or several. Shadow copies are in none of it."""

    cost: float = 0.0
    """On the basis `allocated`, its part of idle time included, at the prices of then."""
    busy_s: float = 0.0
    """Its share of the devices' busy seconds, failed work included."""
    idle_s: float = 0.0
    """Its part of their idle seconds."""
    inflight_s: float = 0.0
    """Request-seconds at engines."""
    requests: float = 0.0
    """All that took device time, whatever became of them."""
    successes: float = 0.0
    prompt_tokens: float = 0.0
    """Those that were computed, not taken from a cache."""
    output_tokens: float = 0.0

    def __add__(self, other: Use) -> Use:
        return Use(
            self.cost + other.cost,
            self.busy_s + other.busy_s,
            self.idle_s + other.idle_s,
            self.inflight_s + other.inflight_s,
            self.requests + other.requests,
            self.successes + other.successes,
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
        )

    @property
    def per_1k(self) -> float:
        """Cost per 1k successful requests."""
        return 1000 * self.cost / self.successes if self.successes else math.nan


@dataclass(frozen=True, slots=True)
class Factor:
    """One part of a change of cost per request."""

    cause: Cause
    """What it is called where it drives cost up."""
    before: float
    after: float
    """The figure itself, in the unit that `FACTOR_UNITS` names; its rise may lower cost (`lower_occupancy`)."""
    log_change: float
    """Its part of log(cost per request after / before): above 0 it made requests dearer."""

    @property
    def ratio(self) -> float:
        """By what it multiplied the cost of a request."""
        return math.exp(self.log_change)


FACTOR_UNITS: Final[Mapping[Cause, str]] = {
    "larger_outputs": "output tokens per request",
    "larger_prompts": "computed prompt tokens per request",
    "slower_engine": "seconds in flight per unit of work",
    "lower_occupancy": "requests in flight while busy",
    "more_idle": "seconds held per busy second",
    "more_failures": "requests per success",
    "price_change": "price per device-hour",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at one version found."""

    version: str
    verdict: Verdict
    reason: str
    """In words, why there is no test; empty where there is one."""
    start: float = 0.0
    """The window that was looked at, Unix seconds, whole hours."""
    stop: float = 0.0
    days: int = 0
    """How many earlier days it was compared with, each at the same hours."""
    requests: int = 0
    """Successful ones in the window."""
    per_1k: float = 0.0
    usual_per_1k: float = 0.0
    """The geometric mean of the earlier days."""
    ratio_alarm: float = 0.0
    """From this ratio on it would have been an anomaly."""
    cause: Cause = "unknown"
    """The largest of what drove cost up; `unknown` where nothing has a third of it."""
    factors: tuple[Factor, ...] = ()
    """The largest first; their parts sum to the change between the window and the earlier days together."""

    @property
    def ratio(self) -> float:
        """`per_1k` over `usual_per_1k`."""
        return self.per_1k / self.usual_per_1k if self.usual_per_1k else math.nan


def look(version: str, by_hour: Mapping[int, Use], now: float, *, weights: tuple[float, float] = (1.0, 4.0)) -> Finding:
    """Whether the version's requests cost significantly more of late than at the same hours of the days before.

    `weights` is what a computed prompt token and an output token take, relative to each other.

    The window's log cost per request is compared with those of n earlier days by a prediction interval: anomaly where
    (x - mean) / (sd x sqrt(1 + 1/n)) exceeds Student's t and the ratio RATIO_MIN. It is asked BEGINNINGS times, with
    the last 0 to 3 days left out of the comparison, each at ALPHA / BEGINNINGS, so together at ALPHA (Bonferroni).
    """
    last = int(now // HOUR_S) * HOUR_S
    found = Finding(version, "too_little", "no hour is over yet")
    for hours in WINDOWS_H:
        recent = _sum(by_hour, last - hours * HOUR_S, last)
        if recent.successes < REQUESTS_MIN or recent.cost <= 0:
            reason = f"{round(recent.successes)} successful requests in {hours} h, {REQUESTS_MIN} are needed"
            found = Finding(version, "too_little", reason)
            continue
        days = [_sum(by_hour, *_days_ago(last, hours, day)) for day in range(1, DAYS_MAX + 1)]
        found = _compare(version, recent, days, hours, last, weights)
        if found.verdict != "too_little":
            break
    return found


def factors(before: Use, after: Use, weights: tuple[float, float] = (1.0, 4.0)) -> tuple[Factor, ...]:
    """What the change of cost per successful request is made of, the largest first.

    The parts sum to log(after / before) exactly. Where either side has no tokens or no time in flight, a request is
    taken as the unit of work. Both need a cost, busy seconds, requests and successes above 0.
    """
    parts = [
        _factor("price_change", _rate(before), _rate(after)),
        _factor("more_idle", _held(before), _held(after)),
        _factor("more_failures", before.requests / before.successes, after.requests / after.successes),
    ]
    work_before, work_after = _work(before, weights), _work(after, weights)
    has_work = min(sum(work_before), sum(work_after)) > 0
    if has_work:
        parts += _work_factors(work_before, work_after, before, after)
    total_before = sum(work_before) * before.requests if has_work else before.requests
    total_after = sum(work_after) * after.requests if has_work else after.requests
    if min(before.inflight_s, after.inflight_s) > 0:
        parts.append(_factor("slower_engine", before.inflight_s / total_before, after.inflight_s / total_after))
        occupancy = _factor("lower_occupancy", before.inflight_s / before.busy_s, after.inflight_s / after.busy_s)
        parts.append(Factor(occupancy.cause, occupancy.before, occupancy.after, -occupancy.log_change))
    else:
        parts.append(_factor("slower_engine", before.busy_s / total_before, after.busy_s / total_after))
    return tuple(sorted(parts, key=lambda part: -part.log_change))


def cause_of(parts: Sequence[Factor]) -> Cause:
    """The factor that drove cost up most; `unknown` where none has a third of all that did."""
    rises = [part for part in parts if part.log_change > 0]
    if not rises:
        return "unknown"
    largest = max(rises, key=lambda part: part.log_change)
    return largest.cause if largest.log_change >= LARGE_SHARE * sum(part.log_change for part in rises) else "unknown"


def _compare(
    version: str, recent: Use, days: Sequence[Use], hours: int, last: int, weights: tuple[float, float]
) -> Finding:
    """The window against the days before, as begun today and up to BEGINNINGS - 1 days ago."""
    value = math.log(recent.cost / recent.successes)
    best: tuple[float, list[Use], float, float] | None = None
    for skipped in range(BEGINNINGS):
        usable = [day for day in days[skipped:] if day.successes >= DAY_REQUESTS_MIN and day.cost > 0]
        if len(usable) < DAYS_MIN:
            continue
        logs = [math.log(day.cost / day.successes) for day in usable]
        n = len(logs)
        mean = sum(logs) / n
        spread = math.sqrt(sum((one - mean) ** 2 for one in logs) / (n - 1) * (1 + 1 / n))
        alarm = max(math.log(RATIO_MIN), QUANTILES[n - 2] * spread)
        if best is None or value - mean - alarm > best[0]:
            best = (value - mean - alarm, usable, mean, alarm)
    if best is None:
        enough = sum(day.successes >= DAY_REQUESTS_MIN and day.cost > 0 for day in days)
        reason = f"{enough} earlier days have {DAY_REQUESTS_MIN} requests at these hours, {DAYS_MIN} are needed"
        return Finding(version, "too_little", reason, requests=round(recent.successes), per_1k=recent.per_1k)
    above, usable, mean, alarm = best
    comparable = recent.busy_s > 0 and all(day.busy_s > 0 for day in usable)
    parts = factors(sum(usable, Use()), recent, weights) if comparable else ()
    return Finding(
        version=version,
        verdict="anomaly" if above > 0 else "usual",
        reason="",
        start=float(last - hours * HOUR_S),
        stop=float(last),
        days=len(usable),
        requests=round(recent.successes),
        per_1k=recent.per_1k,
        usual_per_1k=1000 * math.exp(mean),
        ratio_alarm=math.exp(alarm),
        cause=cause_of(parts),
        factors=parts,
    )


def _days_ago(last: int, hours: int, days: int) -> tuple[int, int]:
    stop = last - days * DAY_S
    return stop - hours * HOUR_S, stop


def _sum(by_hour: Mapping[int, Use], start: int, stop: int) -> Use:
    return sum((by_hour[at] for at in range(start, stop, HOUR_S) if at in by_hour), Use())


def _rate(use: Use) -> float:
    return use.cost / (use.busy_s + use.idle_s) * HOUR_S


def _held(use: Use) -> float:
    return (use.busy_s + use.idle_s) / use.busy_s


def _work(use: Use, weights: tuple[float, float]) -> tuple[float, float]:
    """What prompts and outputs took, per request."""
    return weights[0] * use.prompt_tokens / use.requests, weights[1] * use.output_tokens / use.requests


def _work_factors(
    work_before: tuple[float, float], work_after: tuple[float, float], before: Use, after: Use
) -> list[Factor]:
    """Prompts' and outputs' parts of the change of work per request (LMDI-I)."""
    whole = _log_mean(sum(work_before), sum(work_after))
    prompts, outputs = (
        (new - old) / whole for old, new in zip(work_before, work_after, strict=True)
    )  # L(a, b) x log(b / a) is b - a: no logarithm of 0 where one side has none of a kind
    return [
        Factor("larger_prompts", before.prompt_tokens / before.requests, after.prompt_tokens / after.requests, prompts),
        Factor("larger_outputs", before.output_tokens / before.requests, after.output_tokens / after.requests, outputs),
    ]


def _log_mean(before: float, after: float) -> float:
    """The logarithmic mean of two numbers above 0."""
    if math.isclose(before, after, rel_tol=1e-9):
        return (before + after) / 2
    return (after - before) / math.log(after / before)


def _factor(cause: Cause, before: float, after: float) -> Factor:
    return Factor(cause, before, after, math.log(after / before))
