"""`modelyard cost` against a running yard with two weeks of books: every figure that is printed is the bill's."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import cost_past
import httpx
import pytest
from cost_past import DAY_S, HOUR_S, Traffic
from engines.fixtures import start_fake_engine
from stack import Stack, external, stack, until

from registry.ledger import Ledger
from registry.store import Registry
from serving.commands import cost_outlook_tables, cost_tables

pytestmark = pytest.mark.system
PERIOD = "week" if datetime.now(UTC).weekday() or datetime.now(UTC).hour >= 2 else "month"
"""One in which hours are over already."""
BUDGETS = [
    {"name": "everything", "amount": 1e6},
    {"name": "team", "amount": 0.0001, "period": PERIOD, "key": "key_team", "alert_at": [0.5, 1.0]},
]
MAP = {
    "small-1": {
        "litellm_provider": "acme",
        "mode": "chat",
        "input_cost_per_token": 1.5e-07,
        "output_cost_per_token": 6e-07,
        "cache_read_input_token_cost": 7.5e-08,
    }
}


def starved(now: float) -> cost_past.Rows:
    """Sixteen days; in the last seven hours a tenth of the usual requests."""

    def traffic(at: int, rng: Random) -> Traffic:
        hour = Traffic(requests=400 * rng.lognormvariate(0, 0.04))
        return replace(hour, requests=hour.requests / 10) if at >= now - 7 * HOUR_S else hour

    return cost_past.rows(now - 16 * DAY_S - 2 * HOUR_S, now, traffic=traffic)


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    engines = [start_fake_engine("--events", "4") for _ in range(2)]
    folder = tmp_path_factory.mktemp("cost")
    config = external({"v1": engines[0].url, "v2": engines[1].url}, {"v1": 9000, "v2": 1000})
    prices = "prices: {cpu_hour: 0.12, compare: [acme/small-1, assistant], price_map: prices.json}"
    config = config.replace("prices: {cpu_hour: 0.12}", f"{prices}\nbudgets: {json.dumps(BUDGETS)}")
    (folder / "prices.json").write_text(json.dumps(MAP))
    with stack(folder, config) as made:
        made.state.mkdir(mode=0o700)
        registry = Registry.open(made.state / "registry.db")
        cost_past.write(Ledger(registry.engine), starved(time.time()))
        registry.close()
        yield made.up(timeout_s=180)
    for engine in engines:
        engine.kill()
        assert engine.process.stdout is not None
        engine.process.stdout.close()


def ask(yard: Stack, path: str = "", **query: str) -> Any:
    """What the admin API says of cost."""
    answer = httpx.get(f"{yard.admin_url}/admin/v1/cost{path}", params=query, trust_env=False, timeout=120)
    answer.raise_for_status()
    return answer.json()


@pytest.fixture(scope="module")
def since() -> str:
    """Three days ago, the same moment however often it is asked: another hour may begin meanwhile."""
    return str(int((time.time() - 3 * DAY_S) // HOUR_S * HOUR_S))


def test_lines_sum_whatever_they_are_told_apart_by(yard: Stack, since: str) -> None:
    window = {"since": since, "method": "inflight"}
    totals = {one["basis"]: one["total_nano"] for one in ask(yard, **window, by="version")["bills"]}
    assert set(totals) >= {"allocated", "busy"}
    for by in ("outcome", "key,version", "model,hour"):
        found = ask(yard, **window, by=by)
        assert found["by"] == by.split(",")
        for bill in found["bills"]:
            assert sum(line["nano"] for line in bill["lines"]) == bill["total_nano"] == totals[bill["basis"]]
    assert yard.json("cost", "--since", since, "--by", "key", "--basis", "busy")["bills"][0]["basis"] == "busy"


def test_a_window_is_a_part_of_the_whole(yard: Stack) -> None:
    hour = (time.time() - 4 * DAY_S) // HOUR_S * HOUR_S
    wanted = {"basis": "busy", "method": "inflight", "by": "version"}
    whole, early, late = (
        ask(yard, **wanted, **window)["bills"][0]["total_nano"]
        for window in ({}, {"until": str(hour)}, {"since": str(hour)})
    )
    assert early + late == whole
    wrong = yard.cli("cost", "--since", "1h", "--until", "2h", check=2)
    assert "ends before it begins" in wrong.stderr


def test_csv_has_one_row_per_line_and_says_which_bill_it_is_of(yard: Stack, since: str) -> None:
    text = yard.cli("cost", "--since", since, "--by", "version,outcome,key,hour", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    sums: defaultdict[tuple[str, ...], Decimal] = defaultdict(Decimal)
    for row in rows:
        sums[row["device"], row["basis"], row["method"]] += Decimal(row["amount"])
        assert row["currency"] == "USD"
        assert row["start"] < row["stop"]
        assert row["start"].endswith("Z")
    assert {one[2] for one in sums} == {"inflight"}
    for bill in ask(yard, since=since)["bills"]:
        if bill["method"] == "inflight":
            assert sums[bill["device"], bill["basis"], "inflight"] == Decimal(bill["total_nano"]) / 10**9
    assert {row["key"] for row in rows} == {"", "key_team", "key_batch"}
    assert yard.cli("cost", "--csv", "--json", check=2).stderr.count("\n") == 1


def test_the_month_is_forecast(yard: Stack) -> None:
    found = ask(yard, "/forecast")
    assert found["profile"] == "hour_of_week"
    assert found["days"] == 16
    assert found["spent"] <= found["expected"]
    assert found["low"] <= found["expected"] <= found["high"]
    text = yard.cli("cost", "forecast").stdout
    assert "it rests on the last 16 days, by hour of the week" in text
    assert "four times in five between" in text


def test_an_exceeded_budget_is_exit_code_1(yard: Stack) -> None:
    result = yard.cli("cost", "budgets", check=1)
    assert "team" in result.stdout
    assert "over" in result.stdout
    found = ask(yard, "/budgets")
    states = {one["name"]: one for one in found["budgets"]}
    assert (states["everything"]["state"], states["everything"]["outlook"]) == ("ok", "within")
    assert states["team"]["of"] == "key key_team"
    assert states["team"]["reached"] == 1.0


def test_dearer_requests_are_named_with_their_cause(yard: Stack) -> None:
    found = {one["version"]: one for one in ask(yard, "/anomalies")["findings"]}
    first = found["assistant@v1"]
    assert (first["verdict"], first["cause"]) == ("anomaly", "more_idle")
    assert first["ratio"] > first["ratio_alarm"]
    text = yard.cli("cost", "anomalies").stdout
    assert "more idle time" in text
    assert "requests in flight while busy" in text


def test_metrics_say_the_same(yard: Stack) -> None:
    def exposed() -> str:
        text = httpx.get(f"{yard.admin_url}/metrics", trust_env=False, timeout=60).text
        return text if "modelyard_cost_forecast_month{" in text else ""

    text = until(exposed, 120, "the outlook's metrics")
    assert 'modelyard_cost_anomaly{model="assistant",version="v1"} 1.0' in text
    assert 'modelyard_cost_anomaly_cause{cause="more_idle",model="assistant",version="v1"} 1.0' in text
    assert 'modelyard_cost_budget_amount{budget="team",currency="USD"} 0.0001' in text
    assert 'modelyard_cost_budget_state{budget="team",state="over"} 1.0' in text


def test_hosted_prices_are_beside_it_and_unknown_models_are_said_to_be(yard: Stack) -> None:
    hosted = ask(yard)["hosted"]
    (cost,) = hosted["costs"]
    (usage,) = ask(yard, by="model")["usage"]
    tokens = usage["prompt_tokens"] - usage["cached_tokens"], usage["cached_tokens"], usage["completion_tokens"]
    assert cost["nano"] == tokens[0] * 150 + tokens[1] * 75 + tokens[2] * 600
    assert [one["name"] for one in hosted["unknown"]] == ["assistant"]
    text = yard.cli("cost", "--hosted", "acme/smal-1").stdout
    assert "acme/smal-1: unknown, the price map does not have it; near it: small-1" in text


def test_without_a_price_map_the_remedy_is_named(yard: Stack) -> None:
    there = yard.folder / "prices.json"
    away = there.rename(yard.folder / "away.json")
    try:
        result = yard.cli("cost", "--hosted", "acme/small-1", check=4)
        assert "make hosted" in result.stderr
        assert "what it would have cost hosted: there is no price map" in yard.cli("cost").stdout
    finally:
        away.rename(there)


def test_the_report_of_a_week_is_written_in_three_forms(yard: Stack, tmp_path: Path) -> None:
    text = yard.cli("cost", "report").stdout
    assert text.startswith("# What week ")
    assert "Requests became dearer" in text
    assert "most of it is more idle time" in text
    assert "## Budgets" in text
    page = tmp_path / "week.html"
    yard.cli("cost", "report", "--out", str(page))
    assert "<!DOCTYPE html>" in page.read_text()
    assert "http" not in page.read_text().replace("http-equiv", "")
    figures = ask(yard, "/report", format="json")
    assert figures["total"]["nano"] == sum(row["busy_nano"] + row["idle_nano"] for row in figures["hours"])
    assert figures["week"]["name"] in text
    for week, said in (("2026-W99", "is no week"), ("2199-W01", "has not begun"), ("9999-W52", "is no week")):
        answer = httpx.get(f"{yard.admin_url}/admin/v1/cost/report?week={week}", trust_env=False, timeout=120)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
    assert "--format is 'pdf'" in yard.cli("cost", "report", "--format", "pdf", check=2).stderr


def test_tables_fit_80_columns(yard: Stack) -> None:
    from rich.console import Console

    console = Console(width=80, file=io.StringIO())
    drawn = [
        *cost_tables.statement(ask(yard, by="version,outcome")),
        *cost_tables.statement(ask(yard, by="model,key", basis="allocated")),
        *cost_outlook_tables.forecast(ask(yard, "/forecast")),
        *cost_outlook_tables.anomalies(ask(yard, "/anomalies")),
        *cost_outlook_tables.budgets(ask(yard, "/budgets")),
    ]
    for part in drawn:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    assert max(len(line.rstrip()) for line in console.file.getvalue().splitlines()) <= 80
