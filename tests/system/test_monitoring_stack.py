"""The whole of monitoring on the real thing: real engines, Prometheus and Alertmanager as shipped, faults, and figures.

One story, told once (`played`): a healthy yard; then an engine that fails, one that is killed, one that is slow, a GPU
that is hot and one that is lost, a control plane that is killed; then all is well again. Every time in rules and routes
is divided by DIVISOR, everything else is as shipped. The GPUs are scripted, read through the real NVML bindings.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine, start_fake_engine
from figures import LAST_READING, allocated, metrics, sample
from monitored_yard import GPU_HOUR, GPUS, Engines, Gpus, GpuStack, Pager, Traffic, configuration, pager
from nvml_library import build_nvml
from prometheus_fixture import (
    Prometheus,
    Question,
    dashboard_queries,
    rule_expressions,
    run_alertmanager,
    run_prometheus,
)
from stack import Stack, until

pytestmark = [pytest.mark.system, pytest.mark.engine, pytest.mark.prometheus, pytest.mark.timeout(900)]

DIVISOR = 60.0
"""`for: 5m` becomes 5 s, `[1h]` a minute."""
PATIENCE_S = 240.0
"""How long a step may take on a busy machine; it takes a few seconds on an idle one."""
FAULTS = {
    ("pager", "ModelyardErrorRateHigh", "v1"),
    ("pager", "ModelyardSloBurnFast", "remote"),
    ("pager", "ModelyardVersionUnserved", "v2"),
    ("mail", "ModelyardEngineDown", "remote@spare/0"),
    ("mail", "ModelyardFirstTokenSlow", "v1"),
    ("mail", "ModelyardQueueGrowing", "slow"),
    ("mail", "ModelyardGpuMemoryHigh", GPUS[0]),
    ("mail", "ModelyardGpuThrottled", GPUS[0]),
    ("mail", "ModelyardNvmlStale", GPUS[1]),
}
DEAD = ("pager", "ModelyardControlPlaneDown", "")
WITHOUT_DATA = {
    "modelyard_engine_kv_cache_usage_ratio": "llama.cpp does not give it",
    "modelyard_engine_preemptions_total": "llama.cpp does not give it",
    "modelyard_cost_forecast_month": "a forecast needs days",
    "modelyard_cost_budget_forecast": "a forecast needs days",
    "modelyard_cost_anomaly_cause": "nothing is dearer than it was",
    'method="cpu_time"': "processors are not billed where there are GPUs",
}
"""What panels cannot show here, and why: every other one has data."""


@dataclass
class Played:
    """What the story left behind."""

    stack: Stack
    prometheus: Prometheus
    pager: Pager
    healthy: set[str] = field(default_factory=set)
    """Alerts that fired while all was well."""
    bills: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    silenced: list[dict[str, Any]] = field(default_factory=list)
    """What the Alertmanager kept back while the faults lasted."""
    empty: list[Question] = field(default_factory=list)
    """Panels without data."""
    traffic: Traffic | None = None
    own_before: float = 0.0


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, with_models: Callable[[Stack], Stack]) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("monitored")
    engines = Engines(*(start_fake_engine("--events", "4", "--gap-s", "0.05") for _ in range(3)))
    engines.slow.behave(first_token_delay_s=5.6)
    gpus = Gpus(folder)
    stack = GpuStack(folder, configuration(engines))
    stack.driver, stack.scenario = build_nvml(folder), gpus.scenario
    try:
        with (
            pager(folder) as receiver,
            gpus.running(),
            run_alertmanager(folder / "am", receiver.url, divisor=DIVISOR) as am,
        ):
            with_models(stack).up(timeout_s=PATIENCE_S)
            target = f"127.0.0.1:{stack.admin_port}"
            with run_prometheus(folder / "prometheus", target, divisor=DIVISOR, alertmanager=am) as prometheus:
                story = Played(stack, prometheus, receiver)
                play(story, engines, gpus, am)
                yield story
    finally:
        stack.clean_up()
        for engine in (engines.steady, engines.other, engines.slow):
            end(engine)


def play(story: Played, engines: Engines, gpus: Gpus, alertmanager: str) -> None:
    stack, prometheus, told = story.stack, story.prometheus, story.pager.told
    gpus.engines = [engine_of(stack, "assistant@v1/0")["pid"], engine_of(stack, "assistant@v2/0")["pid"]]
    story.own_before = own_tokens(stack)
    with Traffic(stack.url) as traffic:
        story.traffic = traffic
        wanted = ("assistant@v1", "assistant@v2", "remote@v1", "remote@v2")
        until(lambda: all(traffic.completed.get(one, 0) >= 20 for one in wanted), PATIENCE_S, "traffic")
        story.bills.append(allocated(stack))
        until(lambda: pinned(stack), PATIENCE_S, "a pin")
        prometheus.until("count_over_time(modelyard_requests_total[30s]) > 12")
        began = story.bills[0][0]
        story.bills.append(until(lambda: (one := allocated(stack))[0] > began + 5 and one, PATIENCE_S, "a later bill"))
        # Drift is left out: it is checked every few seconds here, on some twenty samples, and may be wrong by chance.
        firing = prometheus.query('ALERTS{alertstate="firing",model!="slow",alertname!="ModelyardDrift"}')
        story.healthy = {one["metric"]["alertname"] for one in firing}

        engines.steady.behave(status=500)
        end(engines.other)
        os.kill(engine_of(stack, "assistant@v2/0")["pid"], signal.SIGKILL)
        gpus.hot = gpus.lost = True
        until(lambda: told("firing") >= FAULTS, PATIENCE_S, "every alert")
        alerts = httpx.get(f"http://{alertmanager}/api/v2/alerts", params={"inhibited": True}, trust_env=False).json()
        story.silenced = [one for one in alerts if one["status"]["inhibitedBy"]]

        engines.steady.behave(status=200)
        engines.other = start_fake_engine("--events", "4", "--gap-s", "0.05", port=engines.other.port)
        engines.slow.behave(first_token_delay_s=0.0)
        gpus.hot = gpus.lost = False
        stack.kill_control()
        until(lambda: DEAD in told("firing"), PATIENCE_S, "the alert on the control plane")
        stack.up(timeout_s=PATIENCE_S)
        gpus.engines[1] = engine_of(stack, "assistant@v2/0")["pid"]
        until(lambda: told("resolved") >= FAULTS | {DEAD}, PATIENCE_S, "the end of every alert")
        story.empty = without_data(prometheus, dashboard_queries())
    ended = time.time()
    prometheus.until(f"{LAST_READING} > {ended + 6}")  # the last engine scrape is in


def without_data(prometheus: Prometheus, questions: list[Question]) -> list[Question]:
    """Those that have no data within the last minute, however often they are asked for a while."""
    deadline = time.monotonic() + PATIENCE_S / 4
    while time.monotonic() < deadline:
        questions = [one for one in questions if not prometheus.lately(one.expr)]
        if not [one for one in questions if not excused(one)]:
            break
        time.sleep(1)
    return questions


def excused(question: Question) -> bool:
    return any(part in question.expr for part in WITHOUT_DATA)


def pinned(stack: Stack) -> bool:
    """Pin what came so far as the reference of drift; False while that is too little."""
    url = f"{stack.admin_url}/admin/v1/drift/references/remote"
    return httpx.put(url, json={"since": "1h"}, headers=stack.credential, trust_env=False, timeout=60).is_success


def end(engine: FakeEngine) -> None:
    engine.kill()
    if engine.process.stdout is not None:
        engine.process.stdout.close()


def engine_of(stack: Stack, replica: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in stack.admin("/status")["engines"] if one["id"] == replica)
    return found


def own_tokens(stack: Stack) -> float:
    """Completion tokens by the own count of the llama.cpp engine that nobody kills."""
    port = engine_of(stack, "assistant@v1/0")["port"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    return sum(
        float(line.split()[1]) for line in text.splitlines() if line.startswith("llamacpp:tokens_predicted_total")
    )


def test_a_healthy_yard_raises_no_alert(played: Played) -> None:
    assert played.healthy == set()


def test_every_fault_is_told_to_whom_it_concerns_and_clears(played: Played) -> None:
    assert played.pager.told("firing") >= FAULTS | {DEAD}  # `played` waited for both
    assert played.pager.told("resolved") >= FAULTS | {DEAD}


def test_what_follows_from_another_alert_is_kept_back(played: Played) -> None:
    kept = {(one["labels"]["alertname"], one["labels"].get("replica")) for one in played.silenced}
    assert ("ModelyardEngineDown", "remote@v2/0") in kept
    assert ("mail", "ModelyardEngineDown", "remote@v2/0") not in played.pager.told("firing")


def test_every_panel_has_data(played: Played) -> None:
    questions = dashboard_queries()
    assert len(questions) > 150
    assert [one for one in played.empty if not excused(one)] == []
    assert len(played.empty) == len([one for one in questions if excused(one)])  # no excuse that is not needed


def test_every_recording_rule_has_data(played: Played) -> None:
    recorded = [Question(rule.where, rule.where) for rule in rule_expressions()[0]]
    assert without_data(played.prometheus, recorded) == []


def test_requests_and_tokens_are_the_same_wherever_they_are_counted(played: Played) -> None:
    stack, text = played.stack, metrics(played.stack)
    assert played.traffic is not None
    usage = {row["version"]: row for row in stack.json("cost")["usage"]}
    for ref, completed in played.traffic.completed.items():
        model, _, version = ref.partition("@")
        labels = {"model": model, "version": version}
        selector = f'model="{model}",version="{version}"'
        assert usage[ref]["requests"]["completed"] == completed
        assert sample(text, "modelyard_requests_total", **labels, outcome="completed") == completed
        assert value(played, f'sum(modelyard_requests_total{{{selector},outcome="completed"}})') == completed
        for kind in ("prompt", "completion"):
            counted = usage[ref][f"{kind}_tokens"]
            assert counted > 0
            assert sample(text, f"modelyard_{kind}_tokens_total", **labels) == counted
            assert value(played, f"sum(modelyard_{kind}_tokens_total{{{selector}}})") == counted
    assert own_tokens(stack) - played.own_before == usage["assistant@v1"]["completion_tokens"]
    own = 'modelyard_engine_completion_tokens_total{replica="assistant@v1/0"}'
    assert value(played, own) == own_tokens(stack)


def value(played: Played, expr: str) -> float:
    (series,) = played.prometheus.until(expr)  # a scrape that came too late leaves a gap
    return float(series["value"][1])


def test_an_allocated_bill_is_the_time_held_times_the_price(played: Played) -> None:
    (began, before), (ended, after) = played.bills
    assert ended - began > 5
    for gpu in GPUS:
        assert after[gpu] - before[gpu] == pytest.approx((ended - began) / 3600 * GPU_HOUR, rel=0.001)
    assert sample(metrics(played.stack), "modelyard_cost_residual_seconds") == 0
