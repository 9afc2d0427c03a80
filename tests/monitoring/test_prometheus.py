"""The real Prometheus scrapes real metrics: every rule has data."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from monitoring_yard import Yard, second
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_fixture import (
    Prometheus,
    Question,
    rule_expressions,
    run_prometheus,
    runbook_queries,
    selectors,
    without_data,
)

from monitoring.metrics import Metrics

pytestmark = pytest.mark.prometheus


@pytest.fixture(scope="module")
def began_at() -> float:
    """Before the first scrape."""
    return time.time()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, began_at: float) -> Iterator[Prometheus]:
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


def test_every_recording_rule_has_data(prometheus: Prometheus) -> None:
    recording = [rule for rule in rule_expressions()[0] if not rule.needs]
    for rule in recording:
        assert prometheus.until(rule.expr), "what it is made of may be recorded an evaluation later"
        assert prometheus.until(rule.where)


def test_every_alert_is_valid_and_reads_series_that_exist(prometheus: Prometheus, began_at: float) -> None:
    _, alerts = rule_expressions()
    for alert in alerts:
        prometheus.query(alert.expr)
        reads = [selector for selector in selectors(alert.expr) if selector != "modelyard"]
        questions = [Question(alert.where, selector) for selector in reads]
        exposed = [one for one in questions if not one.needs]
        assert without_data(prometheus, exposed) == []
        assert reads or "up{" in alert.expr
    # The traffic misses its SLO, which is told from the second minute on: however late this is asked, it is about the
    # first.
    asked = f'ALERTS{{alertstate="firing"}} @ {min(time.time(), began_at + 60):.3f}'
    assert {series["metric"]["alertname"] for series in prometheus.query(asked)} == set()


def test_every_query_of_a_runbook_is_valid(prometheus: Prometheus) -> None:
    questions = runbook_queries()
    assert len(questions) > 60
    for question in questions:
        prometheus.query(question.expr)


def test_an_error_share_is_what_was_counted(prometheus: Prometheus) -> None:
    found = prometheus.query("model_version:modelyard_request_faults:ratio_rate5m")
    shares = {series["metric"]["version"]: float(series["value"][1]) for series in found}
    assert shares["v1"] == pytest.approx(1 / 3, abs=0.02)  # two complete and one fails each second
    assert shares["v2"] == 0
