"""Budgets: how much of each is spent, whether that is worth a warning, and whether the period will end above it.

Owns: what the states mean. Never: I/O, clocks, whose money it is (the caller gives what was spent, and a forecast).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monitoring.forecast import Forecast, Period

State = Literal["ok", "warn", "over"]
Outlook = Literal["within", "possible", "likely", "certain", "unknown"]


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose spending a budget is about; empty parts are everybody's."""

    model: str = ""
    version: str = ""
    """A label of `model`."""
    key: str = ""
    """The id of an API key."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole yard's: only then idle time is in it."""
        return not (self.model or self.version or self.key)

    def __str__(self) -> str:
        named = f"{self.model}@{self.version}" if self.version else self.model
        return " ".join(part for part in (named, f"key {self.key}" if self.key else "") if part) or "everything"

    def holds(self, version: str, key: str) -> bool:
        """Whether a line of `version` (`model@label`) and `key` is in it."""
        model, _, label = version.partition("@")
        return (
            (not self.model or self.model == model)
            and (not self.version or self.version == label)
            and (not self.key or self.key == key)
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount for each period, on the basis `allocated`."""

    name: str
    amount: float
    period: Period = "month"
    scope: Scope = Scope()
    alert_at: tuple[float, ...] = (0.8, 1.0)
    """Shares of `amount` that are worth a warning, rising."""


@dataclass(frozen=True, slots=True)
class BudgetState:
    """One budget as it stands."""

    budget: Budget
    forecast: Forecast
    state: State
    """`over`: it is used up. `warn`: one of `alert_at` is reached. A forecast alone changes neither."""
    reached: float | None
    """The highest of `alert_at` that is reached."""
    outlook: Outlook
    """Whether the period will end above it: `certain` where even the interval's low end does (or it already is),
    `likely` where the expected figure does, `possible` where only the high end does; `unknown` without a forecast."""

    @property
    def spent(self) -> float:
        return self.forecast.spent

    @property
    def used(self) -> float:
        """The share of it that is spent."""
        return self.spent / self.budget.amount


def judge(budget: Budget, forecast: Forecast) -> BudgetState:
    """How the budget stands, with its own period's forecast.

    - over: spent >= amount.
    - warn: spent >= the lowest of `alert_at` x amount.
    """
    used = forecast.spent / budget.amount
    reached = max((share for share in budget.alert_at if used >= share), default=None)
    state: State = "over" if used >= 1 else "ok" if reached is None else "warn"
    return BudgetState(budget, forecast, state, reached, _outlook(budget.amount, forecast))


def _outlook(amount: float, forecast: Forecast) -> Outlook:
    if forecast.spent >= amount:
        return "certain"
    if forecast.expected is None:
        return "unknown"
    if forecast.low is not None and forecast.low > amount:
        return "certain"
    if forecast.expected > amount:
        return "likely"
    return "possible" if forecast.high is not None and forecast.high > amount else "within"
