"""Scrapes of a whole yard: clients cannot add series, and the data plane notices nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
from engines.fixtures import FakeEngine
from prometheus_client.parser import text_string_to_metric_families
from yard_harness import CONFIG, RunningYard, until

Engines = Callable[..., FakeEngine]


def series(yard: RunningYard) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    answer = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30)
    assert answer.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(yard: RunningYard, text: str) -> float:
    answer = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30)
    return next((float(line.rpartition(" ")[2]) for line in answer.text.splitlines() if line.startswith(text)), 0.0)


def rejected(yard: RunningYard) -> float:
    answer = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30)
    lines = [line for line in answer.text.splitlines() if line.startswith("modelyard_rejections_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def settled(yard: RunningYard) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """The series, once two seconds have brought no new one."""
    found = series(yard)
    while True:
        time.sleep(2.0)
        before, found = found, series(yard)
        if found == before:
            return found


def strange(yard: RunningYard, number: int) -> str:
    """One of everything that a client can make up; the version that took the one good request among it."""
    said = {"messages": [{"role": "user", "content": "one"}], "user": f"u{number}"}
    headers = {"authorization": f"Bearer sk-{number}", "x-session-id": f"s{number}", "user-agent": f"scanner/{number}"}
    for model in (f"model-{number}", f"m@v{number + 10}", f"m@alias{number}", ""):
        assert yard.api.post("/v1/chat/completions", json={**said, "model": model}, headers=headers).status_code >= 400
    for path in (f"/wp-admin/{number}.php", f"/v1/models/x{number}", f"/v1/unheard/of/{number}", f"/?q={number}"):
        assert yard.api.get(path, headers=headers).status_code >= 400
    assert yard.api.request(f"SCAN{number}", "/v1/chat/completions").status_code >= 400
    good = yard.api.post("/v1/chat/completions", json={**said, "model": "m"}, headers=headers)
    assert good.status_code == 200
    return good.headers["x-modelyard-version"]


def test_a_flood_of_strangers_adds_no_series(fake_engine: Engines, tmp_path: Path) -> None:
    config = CONFIG.format(workers=1, first=fake_engine("--events", "2").url, second=fake_engine("--events", "2").url)
    with RunningYard(tmp_path, config) as yard:
        answered: list[str] = []
        while len(answered) < 20 or len(set(answered)) < 2:  # both arms, so that all that may have series has them
            answered.append(strange(yard, len(answered)))
        first = len(answered)
        until(lambda: rejected(yard) >= first * 5)
        before = settled(yard)
        for number in range(first, first + 50):
            strange(yard, number)
        until(lambda: rejected(yard) >= (first + 50) * 5)
        assert series(yard) - before == set()
        assert value(yard, "modelyard_metrics_series ") == len(before)
        assert value(yard, "modelyard_metrics_series_dropped_total") == 0


def test_a_scrape_asks_nothing_of_the_data_plane(fake_engine: Engines, tmp_path: Path) -> None:
    """A worker that is stopped (SIGSTOP) holds up no scrape; one that runs is not woken by a hundred of them."""
    config = CONFIG.format(workers=1, first=fake_engine().url, second=fake_engine().url)
    with RunningYard(tmp_path, config) as yard:
        assert yard.chat().status_code == 200
        (worker,) = yard.get("status")["workers"]
        process = psutil.Process(worker["pid"])

        def wakes(seconds: float, scrapes: int) -> int:
            done = threading.Event()
            before, at = process.num_ctx_switches().voluntary, time.monotonic()
            for _ in range(scrapes):
                assert httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).status_code == 200
            done.wait(max(0.0, at + seconds - time.monotonic()))
            spent = time.monotonic() - at
            return round((process.num_ctx_switches().voluntary - before) * seconds / spent)

        idle = wakes(3.0, 0)
        assert wakes(3.0, 100) <= idle + 50, "a scrape that asked the worker would wake it a hundred times"
        os.kill(process.pid, signal.SIGSTOP)
        try:
            for _ in range(10):
                answer = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=10.0)
                assert 'modelyard_requests_total{endpoint="/v1/chat/completions",model="m",outcome="completed"' in (
                    answer.text
                )
        finally:
            os.kill(process.pid, signal.SIGCONT)
