"""A paused route through a running yard: nobody changes it by accident, anybody can get back, everybody is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.fixtures import start_fake_engine
from yard_harness import CONFIG, RunningYard, until


@pytest.fixture
def text() -> Iterator[str]:
    """The configuration of a yard with two engines that run."""
    engines = [start_fake_engine("--events", "4"), start_fake_engine("--events", "6")]
    try:
        yield CONFIG.format(workers=1, first=engines[0].url, second=engines[1].url)
    finally:
        for engine in engines:
            engine.kill()
            assert engine.process.stdout is not None
            engine.process.stdout.close()


@pytest.fixture
def yard(tmp_path: Path, text: str) -> Iterator[RunningYard]:
    with RunningYard(tmp_path, text) as running:
        yield running


def route(yard: RunningYard, v1: int, *, force: bool = False) -> Any:
    return yard.admin.put("/models/m/route", json={"weights": {"v1": v1, "v2": 10_000 - v1}, "force": force})


def is_said(yard: RunningYard, state: str) -> bool:
    """Whether the metric says that the route is in this state, and in no other."""
    text = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith('modelyard_rollout_state{model="m"')]
    assert len(lines) == 3, "every state has its series"
    return [line for line in lines if line.endswith(" 1.0")] == [
        f'modelyard_rollout_state{{model="m",state="{state}"}} 1.0'
    ]


def test_a_paused_route_stays_where_it_is_until_it_is_resumed(yard: RunningYard) -> None:
    weights = yard.get("models", "m", "route")["weights"]
    assert route(yard, 6000).status_code == 200
    until(lambda: is_said(yard, "progressing"))
    reason = {"reason": "v2 looks slow"}
    paused = yard.admin.put("/models/m/route/pause", json=reason, headers={"x-modelyard-actor": "ada"})
    assert paused.status_code == 200, paused.text
    assert (paused.json()["weights"]["v1"], paused.json()["pause"]["paused_by"]) == (6000, "ada")
    assert yard.get("models", "m", "route")["pause"]["reason"] == "v2 looks slow"
    assert yard.get("status")["models"][0]["pause"]["reason"] == "v2 looks slow"
    until(lambda: is_said(yard, "paused"))

    refused = route(yard, 5000)
    assert refused.status_code == 409
    assert "the route of m is paused by ada since" in refused.json()["error"]["message"]
    assert "(v2 looks slow): let it go on (`modelyard route resume m`), or force it" in refused.text
    assert route(yard, 5000, force=True).status_code == 200
    assert yard.get("audit", limit=1)[0]["action"] == "route.forced"
    assert yard.get("models", "m", "route")["pause"], "force goes past a pause and leaves it"

    back = yard.admin.post("/models/m/rollback")
    assert (back.status_code, back.json()["route"]["weights"]["v1"]) == (200, 6000), "the way back is always open"
    resumed = yard.admin.delete("/models/m/route/pause")
    assert (resumed.status_code, resumed.json()["pause"]) == (200, None)
    assert yard.admin.delete("/models/m/route/pause").status_code == 409
    assert yard.admin.put("/models/m/route", json={"weights": weights}).status_code == 200
    assert yard.get("audit", limit=1)[0]["action"] == "route.set"


def test_what_cannot_be_paused_is_refused_in_one_sentence(yard: RunningYard) -> None:
    assert yard.admin.put("/models/nobody/route/pause").status_code == 404
    for reason in ("two\nlines", "x" * 201):
        answer = yard.admin.put("/models/m/route/pause", json={"reason": reason})
        assert answer.status_code in (400, 422), answer.text
    assert yard.get("models", "m", "route")["pause"] is None


def test_a_pause_outlives_the_yard(tmp_path: Path, text: str) -> None:
    with RunningYard(tmp_path, text) as yard:
        assert yard.admin.put("/models/m/route/pause").status_code == 200
    with RunningYard(tmp_path, text) as yard:
        assert yard.get("models", "m", "route")["pause"]["reason"] == ""
        assert route(yard, 1000).status_code == 409
