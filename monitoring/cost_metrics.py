"""Metrics of budgets, of the forecast and of cost that rose.

Owns: their names, labels and help texts. Never: judging (`outlook`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.anomaly import CAUSES
from monitoring.outlook import Outlook

STATES = ("ok", "warn", "over")


def collect_outlook(outlook: Outlook, versions: Sequence[tuple[str, str]]) -> Iterator[Metric]:
    """Every series exists from the start: a forecast that cannot be made yet has none, an anomaly that is none is 0."""
    currency = outlook.currency
    names = ("budget", "currency")
    amount = GaugeMetricFamily("modelyard_cost_budget_amount", "What the budget allows in its period.", labels=names)
    spent = GaugeMetricFamily("modelyard_cost_budget_spent", "What is spent of it in this period.", labels=names)
    expected = GaugeMetricFamily(
        "modelyard_cost_budget_forecast", "What will be spent at the period's end, as days go on.", labels=names
    )
    state = GaugeMetricFamily(
        "modelyard_cost_budget_state", "1 for the state that the budget is in.", labels=["budget", "state"]
    )
    for one in outlook.budgets:
        labels = [one.budget.name, currency]
        amount.add_metric(labels, one.budget.amount)
        spent.add_metric(labels, one.spent)
        if one.forecast.expected is not None:
            expected.add_metric(labels, one.forecast.expected)
        for name in STATES:
            state.add_metric([one.budget.name, name], float(one.state == name))
    yield from (amount, spent, expected, state)
    yield from _month(outlook)
    yield from _anomalies(outlook, versions)


def _month(outlook: Outlook) -> Iterator[Metric]:
    month = GaugeMetricFamily(
        "modelyard_cost_forecast_month", "What the month will have cost at its end, idle included.", labels=["currency"]
    )
    bounds = GaugeMetricFamily(
        "modelyard_cost_forecast_month_bound",
        "Ends of the interval that holds it four times in five.",
        labels=["bound", "currency"],
    )
    if outlook.month.expected is not None:
        month.add_metric([outlook.currency], outlook.month.expected)
    for bound, value in (("low", outlook.month.low), ("high", outlook.month.high)):
        if value is not None:
            bounds.add_metric([bound, outlook.currency], value)
    yield from (month, bounds)


def _anomalies(outlook: Outlook, versions: Sequence[tuple[str, str]]) -> Iterator[Metric]:
    anomaly = GaugeMetricFamily(
        "modelyard_cost_anomaly",
        "1 where requests cost significantly more than at the same hours of the days before.",
        labels=["model", "version"],
    )
    ratio = GaugeMetricFamily(
        "modelyard_cost_anomaly_ratio", "Cost per request of late over the usual one.", labels=["model", "version"]
    )
    causes = GaugeMetricFamily(
        "modelyard_cost_anomaly_cause", "1 for what drove it up most.", labels=["model", "version", "cause"]
    )
    found = {one.version: one for one in outlook.findings}
    for model, version in versions:
        one = found.get(f"{model}@{version}")
        is_anomaly = one is not None and one.verdict == "anomaly"
        anomaly.add_metric([model, version], float(is_anomaly))
        if one is not None and one.verdict != "too_little":
            ratio.add_metric([model, version], one.ratio)
        for cause in CAUSES:
            named = is_anomaly and one is not None and one.cause == cause
            causes.add_metric([model, version, cause], float(named))
    yield from (anomaly, ratio, causes)
