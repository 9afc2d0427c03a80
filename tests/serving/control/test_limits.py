"""Limits over the whole yard: from the configuration and the admin API to what clients, metrics and a restart say."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from engines.fixtures import FakeEngine
from prometheus_client.parser import text_string_to_metric_families
from yard_harness import RunningYard, until

Engines = Callable[..., FakeEngine]
CONFIG = """
server: {{port: 0, admin_port: 0, workers: 2, drain_s: 5}}
models:
  m:
    admission: {{inflight_max: 1, queue_max: 1, queue_timeout_s: 20}}
    versions:
      v1: {{engine: external, url: "{url}"}}
"""


def metrics(yard: RunningYard) -> dict[tuple[str, ...], float]:
    """(name, *label values) -> value, of what a scrape shows."""
    text = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_queue_of_the_configuration_holds_over_all_workers_and_shows_in_the_metrics(
    fake_engine: Engines, tmp_path: Path
) -> None:
    engine = fake_engine()
    with RunningYard(tmp_path, CONFIG.format(url=engine.url)) as yard, ThreadPoolExecutor(8) as pool:
        until(lambda: yard.api.get("/health/ready").status_code == 200)
        engine.behave(first_byte_delay_s=10.0)  # only now: probing it should not take so long
        futures = [pool.submit(yard.chat) for _ in range(8)]
        waits = ("modelyard_queue_length", "m", "interactive")
        until(lambda: sum(future.done() for future in futures) == 6 and metrics(yard)[waits] == 1)
        engine.behave(first_byte_delay_s=0.0)
        statuses = sorted(future.result().status_code for future in futures)
        assert statuses == [200, 200, *[429] * 6]
        refused = ("modelyard_rejections_total", "m", "queue_full")
        until(lambda: metrics(yard)[refused] == 6)
        waited = ("modelyard_queue_seconds_count", "m", "interactive")
        shown = until(lambda: (now := metrics(yard)).get(waited) == 2 and now)
        assert shown["modelyard_queue_seconds_sum", "m", "interactive"] > 1.0
        until(lambda: metrics(yard)[waits] == 0)


def test_a_keys_limits_hold_over_all_workers_and_its_budget_over_a_restart(
    fake_engine: Engines, tmp_path: Path
) -> None:
    text = CONFIG.format(url=fake_engine().url)
    with RunningYard(tmp_path, text) as yard:
        until(lambda: yard.api.get("/health/ready").status_code == 200)
        made = yard.admin.post("/keys", json={"budget_tokens": 60, "budget_period": "total"}).json()
        key = {"authorization": f"Bearer {made['secret']}"}
        until(lambda: yard.chat().status_code == 401)
        answers = []
        while (answer := ask(yard, key)).status_code == 200:
            answers.append(answer.json()["usage"]["total_tokens"])
        assert answer.json()["error"]["code"] == "insufficient_quota"
        assert answers
        assert sum(answers) <= 60
    with RunningYard(tmp_path, text) as yard:
        until(lambda: yard.api.get("/health/ready").status_code == 200)
        assert {ask(yard, key).status_code for _ in range(4)} == {429}


def ask(yard: RunningYard, headers: dict[str, str]) -> httpx.Response:
    """One request on a connection of its own, so that any worker may get it."""
    body = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
    return httpx.post(f"{yard.info.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=30)
