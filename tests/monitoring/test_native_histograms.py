"""The real Prometheus takes what it asks for: exemplars over OpenMetrics, native histograms over protobuf."""

from __future__ import annotations

import math
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from monitoring_records import record
from prometheus_client import CollectorRegistry
from prometheus_fixture import Prometheus, free_port

from monitoring.exemplars import Exemplars
from monitoring.exposition import render
from monitoring.metrics import Metrics, Snapshot
from monitoring.observe import observe

pytestmark = pytest.mark.prometheus
WIDTH = 2 ** (1 / 8)
"""A bucket's upper bound over its lower one."""


class Target(ThreadingHTTPServer):
    """Answers scrapes as the admin port does, and notes which forms it gave."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.registry = registry
        self.forms: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    server: Target

    def do_GET(self) -> None:
        body, content_type = render(self.server.registry, self.headers.get("accept", ""))
        self.server.forms.add(content_type.partition(";")[0])
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def prometheus(folder: Path, program: str, target: str, features: str) -> Iterator[Prometheus]:
    folder.mkdir()
    jobs = [{"job_name": "modelyard", "static_configs": [{"targets": [target]}]}]
    config = {"global": {"scrape_interval": "2s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    argv = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", f"--enable-feature={features}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        running, limit = Prometheus(f"http://127.0.0.1:{port}"), time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{running.url}/-/ready", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < limit, (folder / "log").read_text()
            time.sleep(0.1)
        yield running
        complaints = [line for line in (folder / "log").read_text().splitlines() if "level=info" not in line]
        assert complaints == []
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def traffic() -> tuple[list[Any], list[Any]]:
    """Records of two batches: lengths over three decades, one in ten traced."""
    rng = random.Random(5)

    def batch(count: int, at: float) -> list[Any]:
        found = []
        for number in range(count):
            first_s = rng.lognormvariate(-2.0, 1.0)
            last_s = first_s + rng.lognormvariate(0.0, 1.0)
            found.append(
                record(
                    started_at=at + number / 1000 - last_s,
                    first_token_s=first_s,
                    last_token_s=last_s,
                    duration_s=last_s,
                    overhead_s=rng.lognormvariate(-10.0, 0.3),
                    queued_s=0.0 if number % 3 else rng.random(),
                    priority="interactive",
                    trace_id=f"{rng.getrandbits(128):032x}" if number % 10 == 0 else "",
                )
            )
        return found

    now = time.time()
    return batch(700, now - 2), batch(900, now - 1)


@pytest.fixture(scope="module")
def target(traffic: tuple[list[Any], list[Any]]) -> Iterator[Target]:
    """All of it is counted before the first scrape."""
    registry, exemplars = CollectorRegistry(), Exemplars()
    many = [*traffic[0], *traffic[1]]
    exemplars.add(many)
    Metrics(registry, version="1").publish(Snapshot(histograms=observe(many)[1], exemplars=exemplars.latest()))
    server = Target(registry)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def exact(values: list[float], quantile: float) -> tuple[float, float]:
    """The two observations between which a quantile of so many lies."""
    ordered = sorted(values)
    rank = quantile * len(ordered)
    return ordered[max(0, math.floor(rank) - 1)], ordered[min(len(ordered) - 1, math.ceil(rank))]


def exemplars_of(running: Prometheus, query: str) -> dict[str, float]:
    """Trace -> value, of what Prometheus stored."""
    about: dict[str, Any] = {"query": query, "start": time.time() - 3600, "end": time.time() + 60}
    answer = httpx.get(f"{running.url}/api/v1/query_exemplars", params=about, timeout=30).json()
    assert answer["status"] == "success"
    return {one["labels"]["trace_id"]: float(one["value"]) for found in answer["data"] for one in found["exemplars"]}


def test_native_quantiles_are_exact_to_a_buckets_width(
    target: Target, traffic: tuple[list[Any], list[Any]], program: Callable[[str], str], tmp_path: Path
) -> None:
    many = [*traffic[0], *traffic[1]]
    where = f"127.0.0.1:{target.server_port}"
    features = "native-histograms,exemplar-storage"
    with prometheus(tmp_path / "native", program("prometheus"), where, features) as running:
        running.until("histogram_count(modelyard_request_duration_seconds)")
        assert "application/vnd.google.protobuf" in target.forms
        measured = {
            "modelyard_request_duration_seconds": [one.duration_s for one in many],
            "modelyard_time_to_first_token_seconds": [one.first_token_s for one in many],
            "modelyard_router_overhead_seconds": [one.overhead_s for one in many],
            "modelyard_queue_seconds": [one.queued_s for one in many],
        }
        for name, values in measured.items():
            (count,) = running.query(f"histogram_count({name})")
            (total,) = running.query(f"histogram_sum({name})")
            assert int(count["value"][1]) == len(values) == 1600
            assert float(total["value"][1]) == pytest.approx(math.fsum(values))
            for quantile in (0.1, 0.5, 0.9, 0.99):
                (found,) = running.query(f"histogram_quantile({quantile}, {name})")
                lower, upper = exact(values, quantile)
                assert lower / WIDTH - 1e-6 <= float(found["value"][1]) <= upper * WIDTH + 1e-6, (name, quantile)
        newest = max((one for one in many if one.trace_id), key=lambda one: one.ended_at)
        stored = exemplars_of(running, "modelyard_request_duration_seconds")
        assert stored == {newest.trace_id: pytest.approx(newest.duration_s)}


def test_exemplars_lead_from_a_bucket_to_a_trace(
    target: Target, traffic: tuple[list[Any], list[Any]], program: Callable[[str], str], tmp_path: Path
) -> None:
    traced = {one.trace_id: one.duration_s for one in [*traffic[0], *traffic[1]] if one.trace_id}
    where = f"127.0.0.1:{target.server_port}"
    with prometheus(tmp_path / "classic", program("prometheus"), where, "exemplar-storage") as running:
        running.until("modelyard_request_duration_seconds_bucket")
        assert "application/openmetrics-text" in target.forms
        stored = exemplars_of(running, "modelyard_request_duration_seconds_bucket")
        assert len(stored) > 5, "one of each bucket that has any"
        assert stored == {trace: pytest.approx(traced[trace]) for trace in stored}
