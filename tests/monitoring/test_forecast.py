"""The forecast: what was spent is in it, the profile is found, and the interval holds as often as it says."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.budgets import Budget, Scope, judge
from monitoring.forecast import CONFIDENCE, DAY_S, HOUR_S, QUANTILES, forecast, period_of

MONTH = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
NEXT = datetime(2026, 12, 1, tzinfo=UTC).timestamp()


def at(day: int, hour: float = 0.0) -> float:
    """A moment of November 2026."""
    return MONTH + (day - 1) * DAY_S + hour * HOUR_S


def hours(start: float, stop: float, price: object) -> dict[int, float]:
    amount = price if callable(price) else lambda _: price
    return {hour: amount(hour) for hour in range(int(start), int(stop), HOUR_S)}


def test_periods_are_of_utc() -> None:
    moment = datetime(2026, 11, 18, 13, 7, tzinfo=UTC).timestamp()
    assert period_of("month", moment) == (MONTH, NEXT)
    assert period_of("week", moment) == (at(16), at(23))
    assert period_of("day", moment) == (at(18), at(19))
    leap = datetime(2028, 2, 29, 23, 59, tzinfo=UTC).timestamp()
    assert period_of("month", leap) == tuple(datetime(2028, m, 1, tzinfo=UTC).timestamp() for m in (2, 3))


def test_an_even_price_is_met_exactly() -> None:
    found = forecast(hours(at(1), at(11), 2.0), start=MONTH, stop=NEXT, now=at(11))
    assert (found.spent, found.expected, found.low, found.high) == (480.0, 1440.0, 1440.0, 1440.0)
    assert (found.profile, found.days) == ("hour_of_day", 10)
    assert found.basis == "the last 10 days, by hour of the day"


def test_the_hour_that_runs_counts_by_what_is_left_of_it() -> None:
    books = hours(at(1), at(2), 2.0) | {int(at(2)): 0.5}
    found = forecast(books, start=MONTH, stop=NEXT, now=at(2, 0.25))
    assert found.expected == pytest.approx(48 + 0.5 + 2.0 * (0.75 + 23 + 28 * 24))


def test_nights_are_told_from_days_and_weekends_from_working_days() -> None:
    def by_day(hour: int) -> float:
        return 3.0 if 8 <= hour // HOUR_S % 24 < 20 else 0.0

    found = forecast(hours(at(1), at(4, 12), by_day), start=at(4), stop=at(5), now=at(4, 12))
    assert found.expected == pytest.approx(36.0)

    def by_week(hour: int) -> float:
        return 0.0 if datetime.fromtimestamp(hour, UTC).weekday() >= 5 else 1.0

    found = forecast(hours(at(-12), at(18), by_week), start=MONTH, stop=NEXT, now=at(18))
    assert found.profile == "hour_of_week"
    assert found.expected == pytest.approx(24 * sum(datetime(2026, 11, day).weekday() < 5 for day in range(1, 31)))
    assert found.high == pytest.approx(found.expected)


def test_it_says_how_little_it_rests_on() -> None:
    nothing = forecast({}, start=MONTH, stop=NEXT, now=at(3))
    assert (nothing.expected, nothing.low, nothing.profile, nothing.basis) == (
        None,
        None,
        "none",
        "no hour is over yet",
    )
    young = forecast(hours(at(3), at(3, 5), 1.0), start=MONTH, stop=NEXT, now=at(3, 5))
    assert (young.profile, young.low) == ("flat", None)
    assert young.basis == "the last 5 hours, their mean; no interval under 3 days"
    assert young.expected == pytest.approx(5 + 27 * 24 + 19)
    second = forecast(hours(at(1), at(2, 5), 1.0), start=MONTH, stop=NEXT, now=at(2, 5))
    assert (second.low, second.basis) == (None, "the last day, by hour of the day; no interval under 3 days")


def test_hours_without_a_row_cost_nothing_and_the_books_may_begin_earlier() -> None:
    books = {int(at(8, 23)): 24.0}
    assert forecast(books, start=MONTH, stop=NEXT, now=at(9), since=at(1)).expected == pytest.approx(24 + 22 * 3.0)


def test_the_rest_is_at_the_prices_of_today() -> None:
    books = hours(at(1), at(11), 1.0)
    doubled = forecast(
        books, start=MONTH, stop=NEXT, now=at(11), rates={hour: 2 * cost for hour, cost in books.items()}
    )
    assert doubled.expected == pytest.approx(240 + 2 * 480)


def test_a_period_that_is_over_is_what_was_spent() -> None:
    found = forecast(hours(at(1), at(9), 1.0), start=at(2), stop=at(3), now=at(9))
    assert (found.spent, found.expected, found.low, found.high) == (24.0, 24.0, 24.0, 24.0)


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=24 * 32),
    st.floats(0, 30 * 24 - 1),
    st.sampled_from(["day", "week", "month"]),
)
def test_it_never_falls_below_what_was_spent(amounts: list[float], elapsed_h: float, period: str) -> None:
    now = at(1, elapsed_h)
    last = int(now // HOUR_S) * HOUR_S
    books = {last - index * HOUR_S: amount for index, amount in enumerate(amounts)}
    start, stop = period_of(period, now)  # type: ignore[arg-type]
    found = forecast(books, start=start, stop=stop, now=now)
    assert found.spent == pytest.approx(sum(amount for hour, amount in books.items() if start <= hour < stop))
    if found.expected is not None:
        assert found.expected >= found.spent
    if found.low is not None and found.high is not None and found.expected is not None:
        assert found.spent <= found.low <= found.expected + 1e-9 <= found.high + 2e-9


@pytest.mark.parametrize(("seen", "now_day"), [(10, 11), (20, 11), (28, 25)])
def test_the_interval_holds_as_often_as_it_says(seen: int, now_day: int) -> None:
    rng = random.Random(7)
    held = 0
    rounds = 400
    for _ in range(rounds):
        days = {day: rng.lognormvariate(0.0, 0.3) for day in range(now_day - seen, 31)}
        books = {
            int(at(day, hour)): level * (2.0 if 8 <= hour < 20 else 0.5)
            for day, level in days.items()
            for hour in range(24)
        }
        known = {hour: cost for hour, cost in books.items() if hour < at(now_day)}
        found = forecast(known, start=MONTH, stop=NEXT, now=at(now_day))
        end = sum(cost for hour, cost in books.items() if MONTH <= hour < NEXT)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= end <= found.high
    assert held / rounds == pytest.approx(CONFIDENCE, abs=0.07)


def test_quantiles_are_students() -> None:
    from scipy.stats import t

    assert pytest.approx([t.ppf(0.5 + CONFIDENCE / 2, freedom) for freedom in range(1, 29)], abs=1e-3) == list(
        QUANTILES
    )


def test_a_budget_goes_from_ok_over_a_warning_to_over() -> None:
    budget = Budget("team", 100.0, "month", Scope(model="assistant"), (0.5, 0.8))

    def state(per_hour: float) -> tuple[str, float | None, str]:
        judged = judge(budget, forecast(hours(at(1), at(16), per_hour), start=MONTH, stop=NEXT, now=at(16)))
        return judged.state, judged.reached, judged.outlook

    assert state(0.1) == ("ok", None, "within")
    assert state(0.15) == ("warn", 0.5, "certain")  # every day was alike: nothing speaks against 108
    assert state(0.25) == ("warn", 0.8, "certain")
    assert state(0.3) == ("over", 0.8, "certain")
    young = judge(budget, forecast(hours(at(1), at(2), 1.0), start=MONTH, stop=NEXT, now=at(2)))
    assert (young.state, young.outlook, young.used) == ("ok", "likely", 0.24)
    assert judge(budget, forecast({}, start=MONTH, stop=NEXT, now=at(2))).outlook == "unknown"


@given(st.floats(0.01, 1e6), st.floats(0, 1e6), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4))
def test_a_budgets_state_follows_from_what_is_spent(amount: float, spent: float, shares: list[float]) -> None:
    found = forecast({int(at(1)): spent}, start=MONTH, stop=NEXT, now=at(1, 1))
    judged = judge(Budget("b", amount, alert_at=tuple(sorted(shares))), found)
    assert (judged.state == "over") == (spent / amount >= 1)
    assert (judged.state == "ok") == (spent / amount < min(shares))


def test_a_scope_holds_what_it_names() -> None:
    assert Scope().is_whole
    assert Scope().holds("a@v1", "k")
    assert Scope("a", "v1").holds("a@v1", "")
    assert not Scope("a", "v1").holds("a@v2", "")
    assert not Scope("a", key="k").holds("a@v1", "")
    assert [str(one) for one in (Scope(), Scope("a", "v1", "k"))] == ["everything", "a@v1 key k"]
