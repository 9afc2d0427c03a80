"""Segments and shadows from a file to the router and the accounts, in a whole yard."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from engines.fixtures import FakeEngine
from yard_harness import CONFIG, RunningYard, until

Engines = Callable[..., FakeEngine]
RULES = """
    segments:
      beta: {when: {header: {x-beta: 1}}, route: {v2: 10000}}
    shadow:
      v2: {sample: 10000, inflight_max: 50}
"""


def asked(yard: RunningYard, **headers: str) -> str:
    answer: httpx.Response = yard.api.post(
        "/v1/chat/completions", json={"model": "m", "messages": []}, headers={"x-session-id": "s0", **headers}
    )
    assert answer.status_code == 200
    return answer.headers["x-modelyard-version"].partition("@")[2]


def version_of(yard: RunningYard, label: str) -> dict[str, Any]:
    (model,) = yard.get("status")["models"]
    found: dict[str, Any] = next(one for one in model["versions"] if one["label"] == label)
    return found


def test_rules_of_the_file_route_are_applied_and_outlive_what_is_done_by_hand(
    fake_engine: Engines, tmp_path: Path
) -> None:
    plain = CONFIG.format(workers=1, first=fake_engine().url, second=fake_engine().url)
    with RunningYard(tmp_path, plain + RULES) as yard:
        yard.admin.put("/models/m/route", json={"weights": {"v1": 10_000, "v2": 0}})
        assert (asked(yard), asked(yard, **{"x-beta": "1"})) == ("v1", "v2")
        (model,) = yard.get("status")["models"]
        assert (model["segments"], model["shadows"]) == (["beta"], {"v2": 10_000})
        yard.admin.post("/models/m/rollback", json={})
        route = yard.get("models", "m", "route")
        assert (route["weights"], route["segments"][0]["name"]) == ({"v1": 9000, "v2": 1000}, "beta")
        assert asked(yard, **{"x-beta": "1"}) == "v2"
    with RunningYard(tmp_path, plain + RULES) as yard:
        assert yard.get("models", "m", "route")["revision"] == route["revision"], "nothing is set anew"
        assert asked(yard, **{"x-beta": "1"}) == "v2"
        yard.admin.put("/models/m/route", json={"weights": {"v1": 10_000, "v2": 0}})
        answer = yard.admin.post("/apply", json={"config": plain, "path": str(yard.path)})
        assert answer.status_code == 200, answer.text
        assert asked(yard, **{"x-beta": "1"}) == "v1", "the flag is off"
        assert yard.get("audit")[0]["action"] in ("route.rules", "config.apply")


def test_copies_are_apart_in_status_metrics_and_usage(fake_engine: Engines, tmp_path: Path) -> None:
    plain = CONFIG.format(workers=1, first=fake_engine("--events", "4").url, second=fake_engine("--events", "6").url)
    with RunningYard(tmp_path, plain + RULES) as yard:
        yard.admin.put("/models/m/route", json={"weights": {"v1": 10_000, "v2": 0}})
        for _ in range(5):
            assert yard.chat().status_code == 200
        until(lambda: version_of(yard, "v2")["shadow_requests"] == version_of(yard, "v1")["requests"] == 5)
        one, two = version_of(yard, "v1"), version_of(yard, "v2")
        assert (one["requests"], one["completion_tokens"], one["shadow_requests"]) == (5, 20, 0)
        assert (two["requests"], two["completion_tokens"], two["requests_per_second"]) == (0, 0, 0)
        until(lambda: 'modelyard_shadow_requests_total{model="m",outcome="completed",version="v2"} 5.0' in scrape(yard))
        text = scrape(yard)
        assert 'modelyard_shadow_completion_tokens_total{model="m",source="engine",version="v2"} 30.0' in text
        assert not [
            line
            for line in text.splitlines()
            if line.startswith("modelyard_requests_total{") and 'version="v2"' in line and not line.endswith(" 0.0")
        ]


def scrape(yard: RunningYard) -> str:
    time.sleep(0.1)
    return httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).text
