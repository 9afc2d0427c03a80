"""The outlook and the weekly report on a past of whole weeks: figures agree with the bills they are made of."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime

import cost_past
import pytest
from cost_past import DAY_S, Traffic
from prometheus_client import CollectorRegistry

from monitoring import settle
from monitoring.budgets import Budget, Scope
from monitoring.cost import NANO, Prices
from monitoring.cost_metrics import collect_outlook
from monitoring.cost_report import PURPOSES, Hosted, Report, WeekBooks, report, week_at, week_of
from monitoring.cost_report_files import html, markdown
from monitoring.forecast import HOUR_S
from monitoring.hosted_prices import Tokens, UnknownPrice, compare, look_up
from monitoring.outlook import Books, Outlook, books_of, books_since, outlook
from monitoring.statement import Device, Dimension, Statement, statement
from registry.entries import PriceChange
from registry.ledger import Ledger
from registry.store import Registry

NOW = datetime(2026, 11, 24, 9, 20, tzinfo=UTC).timestamp()
PRICES = Prices("USD", gpu_hour=2.4)
DEVICES = {"GPU-1": Device("gpu")}
BUDGETS = (
    Budget("whole", 1500.0),
    Budget("tight", 10.0, "day"),
    Budget("candidate", 400.0, "week", Scope("assistant", "v2"), (0.1,)),
    Budget("team", 1000.0, scope=Scope(key="key_team")),
)
MAP = {
    "small-1": {
        "litellm_provider": "acme",
        "mode": "chat",
        "input_cost_per_token": 1.5e-07,
        "output_cost_per_token": 6e-07,
        "cache_read_input_token_cost": 7.5e-08,
    }
}


def dearer(at: int, rng: random.Random) -> Traffic:
    """As usual, until outputs are three times as long in the last day."""
    hour = cost_past.usual(at, rng)
    return replace(hour, output_tokens=300.0, requests=hour.requests) if at >= NOW - 7 * HOUR_S else hour


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    registry = Registry.open(tmp_path_factory.mktemp("past") / "registry.db")
    made = Ledger(registry.engine)
    cost_past.write(made, cost_past.rows(NOW - 30 * DAY_S, NOW, device="GPU-1", traffic=dearer))
    yield made
    registry.close()


def state(ledger: Ledger, since: float, until: float, *by: Dimension) -> Statement:
    return statement(settle.view(ledger, since, until), prices=PRICES, devices=DEVICES, stop=until, by=by)


def books(ledger: Ledger, prices: Prices = PRICES, since: float = books_since(NOW)) -> Books:
    return books_of(settle.view(ledger, since), prices, DEVICES, {}, by_key=True)


@pytest.fixture(scope="module")
def found(ledger: Ledger) -> Outlook:
    return outlook(books(ledger), BUDGETS, now=NOW)


@pytest.fixture(scope="module")
def week(ledger: Ledger, found: Outlook) -> Report:
    this = week_at(NOW - 7 * DAY_S)
    made = WeekBooks(
        hourly=state(ledger, this.start, this.stop, "hour", "version", "outcome"),
        keys=state(ledger, this.start, this.stop, "outcome", "key"),
        totals=state(ledger, this.start, this.stop, "version"),
        before=state(ledger, this.before.start, this.before.stop, "version", "outcome"),
    )
    price = look_up(MAP, "small-1")
    assert not isinstance(price, UnknownPrice)
    cost = compare(price, Tokens(10**7, 10**6, 10**7, 10**5), own_nano=400 * NANO)
    hosted = Hosted("LiteLLM 1.2", (cost,), (UnknownPrice("small-9", "the price map does not have it", ("small-1",)),))
    return report(this, made, found, at=NOW, hosted=hosted, key_names={"key_team": "the <team> | 1"})


def test_a_month_that_is_always_held_ends_at_its_hours(found: Outlook) -> None:
    """The device is held around the clock: 720 hours at 2.40."""
    assert found.month.spent == pytest.approx((23 * 24 + 9) * 2.4)
    assert found.month.expected == pytest.approx(720 * 2.4 - 2.4 / 3, abs=0.01)  # this hour's first part has no row
    assert found.month.profile == "hour_of_week"
    assert found.month.low == pytest.approx(found.month.expected)


def test_the_rest_of_the_month_is_at_the_prices_of_now(ledger: Ledger) -> None:
    ledger_view = settle.view(ledger, NOW - 20 * DAY_S)
    for currency, spent in (("USD", 480 * 2.4), ("EUR", 0.0)):
        changed = replace(ledger_view, price_changes=[PriceChange(int(NOW - 40 * DAY_S), asdict(PRICES))])
        dear = outlook(books_of(changed, Prices(currency, gpu_hour=4.8), DEVICES, {}, by_key=False), (), now=NOW)
        assert (dear.currency, dear.month.spent) == (currency, pytest.approx(spent))
        assert dear.month.expected == pytest.approx(spent + (159 - 1 / 3) * 4.8, abs=0.01)


def test_hours_that_are_over_need_not_be_read_again(ledger: Ledger, found: Outlook) -> None:
    cut = int(NOW) // HOUR_S * HOUR_S - 30 * HOUR_S
    kept = books(ledger).between(0, cut)
    assert max(line.hour for line in kept.lines) == cut - HOUR_S
    assert outlook(kept.then(books(ledger, since=cut)), BUDGETS, now=NOW) == found


def test_budgets_are_of_what_they_name(ledger: Ledger, found: Outlook) -> None:
    states = {one.budget.name: one for one in found.budgets}
    assert states["whole"].spent == pytest.approx(found.month.spent)
    assert (states["whole"].state, states["whole"].outlook) == ("warn", "certain")
    assert (states["tight"].state, states["tight"].spent) == ("over", pytest.approx(9 * 2.4))
    month = week_at(NOW).start
    own = [
        line.nano
        for one in state(ledger, month, NOW, "version", "outcome").bills
        if one.basis == "allocated" and one.method == "inflight"
        for line in one.lines
        if line.version == "assistant@v2"
    ]
    assert states["candidate"].spent == pytest.approx(sum(own) / NANO)
    assert states["candidate"].state == "warn" if states["candidate"].used >= 0.1 else "ok"
    assert 0 < states["team"].spent < 0.6 * states["whole"].spent


def test_longer_outputs_are_found_and_named(found: Outlook) -> None:
    findings = {one.version: one for one in found.findings}
    first = findings["assistant@v1"]
    # nights are idle for the most part, so that most of a request's cost is idle time whatever its length
    assert first.verdict in ("usual", "anomaly")
    assert first.factors[0].cause == "larger_outputs"
    assert {one.cause: one for one in first.factors}["larger_outputs"].after == pytest.approx(300, rel=0.01)
    assert {one.cause: one for one in first.factors}["lower_occupancy"].after == pytest.approx(2.0)


def test_the_metrics_have_every_series_from_the_start(found: Outlook) -> None:
    class Collector:
        def __init__(self, outlook: Outlook) -> None:
            self.outlook = outlook

        def collect(self) -> object:
            return collect_outlook(self.outlook, [("assistant", "v1"), ("assistant", "v3")])

    registry = CollectorRegistry()
    registry.register(Collector(found))  # type: ignore[arg-type]

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("modelyard_cost_budget_amount", budget="whole", currency="USD") == 1500
    assert value("modelyard_cost_budget_state", budget="tight", state="over") == 1
    assert value("modelyard_cost_budget_forecast", budget="whole", currency="USD") == pytest.approx(1728, abs=1)
    assert value("modelyard_cost_forecast_month", currency="USD") == pytest.approx(1728, abs=1)
    assert value("modelyard_cost_anomaly", model="assistant", version="v3") == 0
    assert value("modelyard_cost_anomaly_cause", model="assistant", version="v3", cause="more_idle") == 0


def test_weeks_are_of_iso_8601() -> None:
    assert week_of("2026-W47").start == datetime(2026, 11, 16, tzinfo=UTC).timestamp()
    assert week_of("2026-W01").before.name == "2025-W52"
    assert week_at(datetime(2027, 1, 1, tzinfo=UTC).timestamp()).name == "2026-W53"
    for wrong in ("2026-W54", "47", "2026-47", "2026-W00"):
        with pytest.raises(ValueError, match="give one as 2026-W47"):
            week_of(wrong)


def test_every_table_of_the_report_sums_to_the_bill(week: Report) -> None:
    bill = round(168 * 2.4 * NANO)
    assert week.total.nano == week.bases["allocated"].nano == bill
    assert week.total.before == bill
    assert sum(amount.nano for amount in week.purposes.values()) == bill
    assert sum(row.nano for row in week.versions) == bill
    assert sum(row.busy_nano + row.idle_nano for row in week.hours) == bill
    assert sum(row.nano for row in week.keys) == sum(week.purposes[name].nano for name in ("answered", "unanswered"))
    assert {*week.purposes} <= set(PURPOSES)
    assert sum(row.requests for row in week.versions) == sum(row.requests for row in week.keys) == week.requests
    assert len(week.hours) == 168


def test_the_report_reads_the_same_in_markdown_and_html(week: Report) -> None:
    text, page = markdown(week), html(week)
    for words in (
        "What week 2026-W47 cost",
        "It cost 403.20 USD",
        "Which version",
        "Whose requests",
        "Budgets",
        "November 2026, to its end",
        "What would it have cost hosted?",
        "near it: small-1",
    ):
        assert words in text
        assert words in page
    assert "the <team>" not in page.replace("the &lt;team&gt;", "")
    assert "the \\<team\\> \\| 1" in text
    assert len(re.findall(r'<rect class="busy"', page)) == 168
    for address in ("http://", "https://", "<script", "@import", "url("):
        assert address not in page
    table = [line for line in text.splitlines() if line.startswith("| assistant@v1")]
    assert table
    assert "NaN" not in text
    assert week.as_json()["outlook"]["month"]["expected"] == pytest.approx(1728, abs=1)
