"""The real Prometheus scrapes real metrics: every query of the dashboard and every rule has data."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from monitoring_yard import Yard, second
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_fixture import (
    CONFIG,
    RULES,
    Prometheus,
    Question,
    dashboard_queries,
    rule_expressions,
    run_prometheus,
    selectors,
    without_data,
)

from monitoring.metrics import Metrics

pytestmark = pytest.mark.prometheus


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus beside a yard whose traffic goes on, scraped once a second."""
    folder = tmp_path_factory.mktemp("prometheus")
    registry = CollectorRegistry()
    metrics = Metrics(registry, version="0.1.0")
    stopped = threading.Event()

    def live() -> None:
        with Yard(folder) as yard:
            while not stopped.is_set():
                at = time.time() - 1.0
                records, sums = second(at)
                yard.ingest(records, watermark=at + 0.9, sums=sums)
                metrics.publish(yard.snapshot(time.time()))
                stopped.wait(1.0)

    server, serving = start_http_server(0, addr="127.0.0.1", registry=registry)
    traffic = threading.Thread(target=live)
    traffic.start()
    try:
        with run_prometheus(folder / "prometheus", f"127.0.0.1:{server.server_port}") as running:
            running.until("count_over_time(modelyard_requests_total[1m]) >= 4")
            running.until("model_version:modelyard_time_to_first_token_seconds:p95_rate5m > 0")
            yield running
    finally:
        stopped.set()
        traffic.join()
        server.shutdown()
        server.server_close()
        serving.join()


def test_every_panel_has_data(prometheus: Prometheus) -> None:
    questions = dashboard_queries()
    assert len(questions) > 25
    assert without_data(prometheus, questions) == []


def test_every_recording_rule_has_data(prometheus: Prometheus) -> None:
    recording, _ = rule_expressions()
    assert without_data(prometheus, recording) == []
    prometheus.until(recording[-1].where)
    assert without_data(prometheus, [Question(rule.where, rule.where) for rule in recording]) == []


def test_every_alert_is_valid_and_reads_series_that_exist(prometheus: Prometheus) -> None:
    _, alerts = rule_expressions()
    for alert in alerts:
        prometheus.query(alert.expr)
        reads = [selector for selector in selectors(alert.expr) if selector != "modelyard"]
        assert without_data(prometheus, [Question(alert.where, selector) for selector in reads]) == []
        assert reads or "up{" in alert.expr
    firing = {series["metric"]["alertname"] for series in prometheus.query('ALERTS{alertstate="firing"}')}
    assert firing == set()


def test_an_error_share_is_what_was_counted(prometheus: Prometheus) -> None:
    found = prometheus.query("model_version:modelyard_request_faults:ratio_rate5m")
    shares = {series["metric"]["version"]: float(series["value"][1]) for series in found}
    assert shares["v1"] == pytest.approx(1 / 3, abs=0.02)  # two complete and one fails each second
    assert shares["v2"] == 0


def test_promtool_accepts_configuration_rules_and_their_tests(program: Callable[[str], str]) -> None:
    promtool = program("promtool")
    tests = sorted((CONFIG.parent / "tests").glob("*.yml"))
    assert tests
    for command in (["check", "config", CONFIG], ["check", "rules", RULES], ["test", "rules", *tests]):
        done = subprocess.run([promtool, *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    import yaml

    cases = yaml.safe_load((CONFIG.parent / "tests" / "modelyard.yml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    fires = {check["alertname"] for check in checks if check.get("exp_alerts")}
    silent = {check["alertname"] for check in checks if not check.get("exp_alerts")}
    _, alerts = rule_expressions()
    assert {alert.where for alert in alerts} == fires == silent


def test_the_configuration_scrapes_the_default_admin_port() -> None:
    import yaml

    (job,) = yaml.safe_load(Path(CONFIG).read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8001"]}]
