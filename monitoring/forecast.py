"""What will have been spent by the end of a period: what was spent, and what the rest of it is expected to cost.

Owns: the profile by hour of recent days and the interval around the forecast. Never: I/O, clocks, prices, whose money
it is (`cost`). Times are Unix seconds, periods are in UTC.
"""

from __future__ import annotations

import calendar
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
DAYS_MAX: Final = 28
"""Older days say little about the next ones."""
WEEKLY_DAYS_MIN: Final = 14
"""From so many days on, every hour of the week was seen twice."""
INTERVAL_DAYS_MIN: Final = 3
"""From so many days on, their differences say something about how far the forecast may be off."""
CONFIDENCE: Final = 0.8
"""How often the interval holds what was spent in the end, while days go on to differ as they did."""
QUANTILES: Final = (
    *(3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372, 1.363, 1.356, 1.350, 1.345, 1.341),
    *(1.337, 1.333, 1.330, 1.328, 1.325, 1.323, 1.321, 1.319, 1.318, 1.316, 1.315, 1.314, 1.313),
)
"""Student's t at .9, by degrees of freedom from 1: the half width of an interval of 80%, in standard errors."""

Period = Literal["month", "week", "day"]
Profile = Literal["hour_of_week", "hour_of_day", "flat", "none"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Amounts in one currency."""

    start: float
    """The period, Unix seconds."""
    stop: float
    spent: float
    """From its start until now."""
    expected: float | None
    """At its end; None where nothing is known of earlier hours."""
    low: float | None
    high: float | None
    """The interval of CONFIDENCE around `expected`; None where there are too few days."""
    days: float
    """How many days the forecast rests on."""
    profile: Profile
    """How hours are told apart: by the hour of the week or of the day, or not at all."""

    @property
    def basis(self) -> str:
        """In words, how the rest of the period was estimated."""
        if self.profile == "none":
            return "no hour is over yet"
        unit, count = ("hour", round(self.days * 24)) if self.days < 1 else ("day", math.floor(self.days))
        seen = f"the last {unit}" if count == 1 else f"the last {count} {unit}s"
        told = {"hour_of_week": "by hour of the week", "hour_of_day": "by hour of the day", "flat": "their mean"}
        interval = "" if self.low is not None else f"; no interval under {INTERVAL_DAYS_MIN} days"
        return f"{seen}, {told[self.profile]}{interval}"


def period_of(period: Period, at: float) -> tuple[float, float]:
    """Start and end of the day, the week from Monday (ISO 8601) or the month in which `at` lies, in UTC."""
    moment = datetime.fromtimestamp(at, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        start, length = midnight, timedelta(days=1)
    elif period == "week":
        start, length = midnight - timedelta(days=midnight.weekday()), timedelta(days=7)
    else:
        start = midnight.replace(day=1)
        length = timedelta(days=calendar.monthrange(start.year, start.month)[1])
    return start.timestamp(), (start + length).timestamp()


def forecast(
    by_hour: Mapping[int, float],
    *,
    start: float,
    stop: float,
    now: float,
    since: float | None = None,
    rates: Mapping[int, float] | None = None,
) -> Forecast:
    """What will have been spent from `start` to `stop`, as of `now`.

    `by_hour` holds what each hour cost (by its start); one that is missing cost nothing. `since` is when the books
    begin (the first of those hours by default). `rates` is what the same hours would cost at the prices of today,
    where prices were changed.

    The rest of the period costs what its hours of the week did on average in the last 28 days; with fewer than 14
    days, its hours of the day; within the first day, the mean hour. The interval takes days as independent of each
    other: for D days to come and n days seen, standard error = sd of a day's difference from the profile x
    sqrt(D + sum over weekdays of D_w^2 / n_w), with Student's t (the prediction interval of a sum). It never falls
    below what was spent already.
    """
    spent = sum(amount for hour, amount in by_hour.items() if start <= hour < stop and hour <= now)
    usual = by_hour if rates is None else rates
    last = int(now // HOUR_S) * HOUR_S  # the hour that runs is not seen to its end
    first = min((*by_hour, last)) if since is None else int(-(-since // HOUR_S)) * HOUR_S
    hours = min((last - first) // HOUR_S, DAYS_MAX * 24)
    if now >= stop:
        return Forecast(start, stop, spent, spent, spent, spent, max(0, hours) / 24, "none" if hours < 1 else "flat")
    if hours < 1:
        return Forecast(start, stop, spent, None, None, None, 0.0, "none")
    days = hours // 24
    hours = days * 24 or hours  # whole days weigh every hour of the day alike
    seen = {at: usual.get(at, 0.0) for at in range(last - hours * HOUR_S, last, HOUR_S)}
    profile: Profile = "hour_of_week" if days >= WEEKLY_DAYS_MIN else "hour_of_day" if days else "flat"
    means = _means(seen, profile)
    rest = sum(
        part * means[_slot(at, profile)] for at, part in _parts(max(now, start), stop)
    )  # the running hour counts by what is left of it
    expected = spent + rest
    low = high = None
    error = _error(seen, means, profile, last, stop - max(now, start))
    if error is not None:
        low, high = max(spent, expected - error), expected + error
    return Forecast(start, stop, spent, expected, low, high, hours / 24, profile)


def _slot(at: int, profile: Profile) -> int:
    """Which hours are taken to be alike."""
    if profile == "flat":
        return 0
    return at // HOUR_S % (168 if profile == "hour_of_week" else 24)


def _means(seen: Mapping[int, float], profile: Profile) -> dict[int, float]:
    sums: defaultdict[int, list[float]] = defaultdict(list)
    for at, amount in seen.items():
        sums[_slot(at, profile)].append(amount)
    return {slot: sum(amounts) / len(amounts) for slot, amounts in sums.items()}


def _parts(start: float, stop: float) -> Sequence[tuple[int, float]]:
    """The hours between two moments, with how much of each lies between them."""
    first = int(start // HOUR_S) * HOUR_S
    return [
        (at, (min(stop, at + HOUR_S) - max(start, at)) / HOUR_S)
        for at in range(first, math.ceil(stop / HOUR_S) * HOUR_S, HOUR_S)
    ]


def _error(
    seen: Mapping[int, float], means: Mapping[int, float], profile: Profile, last: int, left_s: float
) -> float | None:
    """Half the width of the interval; None under INTERVAL_DAYS_MIN days."""
    differences: list[float] = []
    for end in range(last, last - len(seen) * HOUR_S, -DAY_S):
        hours = range(end - DAY_S, end, HOUR_S)
        differences.append(sum(seen[at] - means[_slot(at, profile)] for at in hours if at in seen))
    n = len(differences)
    if n < INTERVAL_DAYS_MIN:
        return None
    kinds = 7 if profile == "hour_of_week" else 1
    freedom = n - kinds
    variance = sum(difference**2 for difference in differences) / freedom
    days_left = left_s / DAY_S
    known = [len(differences[kind::kinds]) for kind in range(kinds)]
    to_come = [min(1.0, max(0.0, days_left - day)) for day in range(math.ceil(days_left))]
    estimated = sum(sum(to_come[kind::kinds]) ** 2 / known[-1 - kind] for kind in range(kinds))
    return QUANTILES[min(freedom, len(QUANTILES)) - 1] * math.sqrt(variance * (days_left + estimated))
