"""Asking real HTTP servers for their metrics: what is kept, what is counted, what is given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from test_engine_metrics import LLAMA, VLLM

from monitoring.engine_scrape import STALE_S, EngineScraper, Target
from monitoring.metrics import Metrics, Snapshot


class Engine(ThreadingHTTPServer):
    """Answers with `text`, after `delay_s`, and once `together` requests are there at a time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.text = VLLM
        self.status = 200
        self.delay_s = 0.0
        self.together = threading.Barrier(1)
        self.ends = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/metrics"


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        self.server.ends.wait(self.server.delay_s)
        self.server.together.wait(30)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.text.encode())

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def engine() -> Iterator[Engine]:
    server = Engine()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.ends.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


def target(url: str, **changes: Any) -> Target:
    return replace(Target("assistant", "v1", "assistant@v1/0", url, 10), **changes)


def rounds(scraper: EngineScraper, count: int = 1) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            for _ in range(count):
                await scraper.round(client)

    asyncio.run(ask())


def shown(scraper: EngineScraper) -> dict[tuple[str, str], float]:
    """(name, what its last label says) -> value, of the engines' own series."""
    registry = CollectorRegistry()
    Metrics(registry, version="1").publish(Snapshot(engine_metrics=scraper.latest()))
    return {
        (sample.name.removeprefix("modelyard_engine_"), list(sample.labels.values())[-1]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if "replica" in sample.labels
    }


def test_readings_become_series_under_our_names(engine: Engine) -> None:
    wanted = [target(engine.url), target("", version="v2", replica="assistant@v2/0")]
    scraper = EngineScraper(lambda: wanted)
    rounds(scraper)
    found = shown(scraper)
    assert found["requests_waiting", "assistant@v1/0"] == 2
    assert found["kv_cache_usage_ratio", "assistant@v1/0"] == 0.75
    assert found["completion_tokens_total", "assistant@v1/0"] == 61
    assert found["scrapes_total", "completed"] == 0, "of the one without metrics, which is not asked"
    assert found["reading_absent", "preemptions"] == 1
    assert ("preemptions_total", "assistant@v2/0") not in found
    engine.text = LLAMA
    rounds(scraper)
    assert ("preemptions_total", "assistant@v1/0") not in shown(scraper)


def test_failures_are_counted_and_the_last_reading_stands_for_a_while(engine: Engine) -> None:
    now = [100.0]
    scraper = EngineScraper(lambda: [target(engine.url)], timeout_s=3.0, bytes_max=10 * len(VLLM), clock=lambda: now[0])
    rounds(scraper)
    engine.delay_s = 6.0
    rounds(scraper)
    engine.delay_s, engine.text = 0.0, VLLM * 11
    rounds(scraper)
    engine.text = "nothing of the kind"
    rounds(scraper)
    engine.status = 500
    rounds(scraper)
    found = shown(scraper)
    counts = {key[1]: value for key, value in found.items() if key[0] == "scrapes_total"}
    assert counts == {"completed": 1, "timeout": 1, "too_large": 1, "failed": 2}
    assert found["requests_running", "assistant@v1/0"] == 4
    now[0] += STALE_S + 1
    assert ("requests_running", "assistant@v1/0") not in shown(scraper)


def test_a_replica_that_goes_takes_its_series_with_it(engine: Engine) -> None:
    wanted = [target(engine.url)]
    scraper = EngineScraper(lambda: wanted)
    rounds(scraper)
    assert shown(scraper)
    wanted.clear()
    assert shown(scraper) == {}, "at once, not with the next round"
    rounds(scraper)
    assert shown(scraper) == {}


def test_an_engine_that_began_anew_is_another_one(engine: Engine) -> None:
    wanted = [target(engine.url)]
    scraper = EngineScraper(lambda: wanted)
    rounds(scraper)
    wanted[0] = target("http://127.0.0.1:9/metrics", pid=11)
    rounds(scraper)
    found = shown(scraper)
    assert ("completion_tokens_total", "assistant@v1/0") not in found
    assert (found["scrapes_total", "completed"], found["scrapes_total", "failed"]) == (1, 1)


def test_engines_are_asked_side_by_side(engine: Engine) -> None:
    engine.together = threading.Barrier(8)  # none is answered before all are asked
    targets = [target(engine.url, replica=f"assistant@v1/{n}") for n in range(8)]
    scraper = EngineScraper(lambda: targets, timeout_s=40.0)
    rounds(scraper)
    assert len([key for key in shown(scraper) if key[0] == "requests_running"]) == 8
