"""The admin API over a whole running yard: what it answers, what it refuses, and in which words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.fixtures import start_fake_engine
from yard_harness import CONFIG, RunningYard, until

from serving.control.admin_api import allowed_hosts
from serving.control.admin_live import parse_since
from serving.errors import ApiError


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningYard]:
    engines = [start_fake_engine("--events", "4"), start_fake_engine("--events", "6")]
    text = CONFIG.format(workers=2, first=engines[0].url, second=engines[1].url)
    try:
        with RunningYard(tmp_path_factory.mktemp("yard"), text) as running:
            yield running
    finally:
        for engine in engines:
            engine.kill()
            assert engine.process.stdout is not None
            engine.process.stdout.close()


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    return found


def test_requests_are_counted_in_the_status_and_in_the_bill(yard: RunningYard) -> None:
    before = {one["ref"]: one for one in yard.get("status")["models"][0]["versions"]}
    for _ in range(3):
        assert yard.chat("m@v2").status_code == 200

    def counted() -> bool:
        after = {one["ref"]: one for one in yard.get("status")["models"][0]["versions"]}
        return bool(after["m@v2"]["requests"] == before["m@v2"]["requests"] + 3)

    until(counted, 30)

    def used() -> Any:
        usage = {one["version"]: one for one in yard.get("cost")["usage"]}
        return usage if usage.get("m@v2", {}).get("requests", {}).get("completed", 0) >= 3 else None

    usage = until(used, 30)
    assert usage["m@v2"]["completion_tokens"] % 6 == 0
    assert usage["m@v2"]["completion_tokens"] >= 18


def test_status_says_what_runs(yard: RunningYard) -> None:
    status = yard.get("status")
    assert status["url"] == yard.info.url
    (model,) = status["models"]
    assert list(model["route"]) == ["v1", "v2"]
    assert {one["state"] for one in model["versions"]} == {"ready"}
    assert {one["id"] for one in status["engines"]} == {"m@v1/0", "m@v2/0"}
    assert [one["id"] for one in status["workers"]] == ["w0", "w1"]
    assert status["device"]["kind"] in ("cpu", "gpu")
    assert status["problems"] == []
    assert status["generation"] >= 1


def test_a_route_is_in_force_when_the_answer_comes(yard: RunningYard) -> None:
    for weights, answers in (({"v2": 10000}, "m@v2"), ({"v1": 10000}, "m@v1"), ({"v1": 9000, "v2": 1000}, "")):
        answer = yard.admin.put("/models/m/route", json={"weights": weights}, headers={"x-modelyard-actor": "eve"})
        assert answer.status_code == 200, answer.text
        changed = answer.json()
        assert changed["waiting_for"] == []
        assert changed["applied_ms"] > 0
        assert changed["route"]["created_by"] == "eve"
        got = yard.chat()
        assert int(got.headers["x-modelyard-generation"]) >= changed["generation"]
        assert got.headers["x-modelyard-version"].startswith(answers or "m@")
    assert yard.get("models", "m", "route")["weights"] == {"v1": 9000, "v2": 1000}
    assert yard.get("models", "m", "route", "history", limit=2)[0]["revision"] >= 3


def test_a_rollback_brings_the_route_before_back_and_again_the_one_before_that(yard: RunningYard) -> None:
    for share in (8000, 7000):
        weights = {"v1": share, "v2": 10000 - share}
        assert yard.admin.put("/models/m/route", json={"weights": weights}).status_code == 200
    first = yard.admin.post("/models/m/rollback").json()
    assert first["route"]["weights"] == {"v1": 8000, "v2": 2000}
    assert first["moved_buckets"] == 1000
    second = yard.admin.post("/models/m/rollback", json={}).json()
    assert second["route"]["weights"] == {"v1": 9000, "v2": 1000}
    to = first["route"]["restores"]
    named = yard.admin.post("/models/m/rollback", json={"to": to}).json()
    assert named["route"]["restores"] == to
    error = error_of(yard.admin.post("/models/m/rollback", json={"to": 10**6}), 404)
    assert "no revision 1000000" in error["message"]
    yard.admin.put("/models/m/route", json={"weights": {"v1": 9000, "v2": 1000}})


def test_wrong_weights_models_and_labels_are_refused_in_one_sentence(yard: RunningYard) -> None:
    put = yard.admin.put
    assert "sum to 9999" in error_of(put("/models/m/route", json={"weights": {"v1": 9999}}), 400)["message"]
    assert "v1, v2" in error_of(put("/models/m/route", json={"weights": {"v9": 10000}, "force": True}), 404)["message"]
    assert error_of(put("/models/m/route", json={"weights": {"v9": 10000}}), 404)
    assert "no route" in error_of(put("/models/x/route", json={"weights": {"v1": 10000}}), 404)["message"]
    assert error_of(put("/models/m/route", json={"weight": {}}), 422)["param"] in ("weights", "weight")
    assert error_of(put("/models/m/route", content=b"{"), 422)
    assert error_of(yard.admin.get("/models/x/versions"), 404)["code"] == "not_found"
    assert error_of(yard.admin.get("/nothing"), 404)["code"] == "path_not_found"
    assert error_of(yard.admin.delete("/status"), 405)["code"] == "method_not_allowed"
    assert error_of(yard.admin.get("/audit", params={"limit": 0}), 422)["param"] == "limit"
    assert error_of(yard.admin.get("/cost", params={"since": "yesterday"}), 400)["param"] == "since"


def test_aliases_move_and_can_be_called(yard: RunningYard) -> None:
    assert yard.chat("m@champion").headers["x-modelyard-version"] == "m@v1"
    moved = yard.admin.put("/models/m/aliases/champion", json={"label": "v2"}).json()
    assert moved["label"] == "v2"
    assert yard.chat("m@champion").headers["x-modelyard-version"] == "m@v2"
    assert yard.get("models", "m", "versions", "champion")["label"] == "v2"
    error_of(yard.admin.put("/models/m/aliases/champion", json={"label": "v9"}), 404)
    yard.admin.put("/models/m/aliases/champion", json={"label": "v1"})


def test_versions_are_registered_once_shown_and_retired(yard: RunningYard) -> None:
    url = yard.get("models", "m", "versions", "v2")["manifest"]["url"]
    body = {"label": "v3", "version": {"engine": "external", "url": url}}
    made = yard.admin.post("/models/m/versions", json=body)
    assert made.status_code == 201
    assert made.json()["state"] == "registered"
    assert yard.admin.post("/models/m/versions", json=body).status_code == 200
    other = {"label": "v3", "version": {"engine": "external", "url": url, "engine_args": {"model": "x"}}}
    assert made.json()["digest"] in error_of(yard.admin.post("/models/m/versions", json=other), 409)["message"]
    wrong = {"label": "v4", "version": {"engine": "external"}}
    assert "url" in error_of(yard.admin.post("/models/m/versions", json=wrong), 422)["message"]
    refused = error_of(yard.admin.put("/models/m/route", json={"weights": {"v1": 5000, "v3": 5000}}), 409)
    assert "no ready engine" in refused["message"]
    assert error_of(yard.admin.post("/models/m/versions/v1/retire"), 409)
    assert yard.admin.post("/models/m/versions/v3/retire").json()["retired_at"]
    labels = {one["label"]: one["state"] for one in yard.get("models", "m", "versions")}
    assert labels["v3"] == "retired"
    assert yard.get("models")[0]["model"] == "m"


def test_every_change_is_in_the_audit(yard: RunningYard) -> None:
    yard.admin.put("/models/m/aliases/probe", json={"label": "v1"}, headers={"x-modelyard-actor": "mallory"})
    (entry,) = [one for one in yard.get("audit") if one["action"] == "alias.set" and one["actor"] == "mallory"]
    assert entry["after"]["label"] == "v1"


def test_an_apply_shows_a_plan_and_refuses_what_contradicts_the_registry(yard: RunningYard) -> None:
    text = yard.path.read_text()
    dry = yard.admin.post("/apply", params={"dry_run": True}, json={"config": text, "path": str(yard.path)}).json()
    assert dry["dry_run"]
    assert dry["refusals"] == []
    assert not any(step["changes"] for step in dry["steps"])
    changed = text.replace("engine: external, url", "engine: external, licence: MIT, url", 1)
    refused = yard.admin.post("/apply", params={"dry_run": True}, json={"config": changed}).json()
    assert "sha256:" in refused["refusals"][0]
    assert "new label" in error_of(yard.admin.post("/apply", json={"config": changed}), 409)["message"]
    assert "did you mean" in error_of(yard.admin.post("/apply", json={"config": "model: {}"}), 400)["message"]


def test_metrics_and_health(yard: RunningYard) -> None:
    root = httpx.Client(base_url=yard.info.admin_url, trust_env=False)
    assert root.get("/health").json() == {"status": "ok"}
    answer = root.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'modelyard_engine_up{model="m",replica="m@v1/0",version="v1"} 1.0' in answer.text
    assert 'modelyard_route_weight{model="m",version="v1"} 9000.0' in answer.text
    schema = root.get("/openapi.json").json()
    assert "/admin/v1/models/{model}/route" in schema["paths"]
    root.close()


def test_engine_logs_name_the_engines_there_are(yard: RunningYard) -> None:
    assert yard.get("engines", "m@v1/0", "log")["lines"] == []
    assert yard.get("engines", "m@v1%2F0", "log", lines=5)["replica"] == "m@v1/0"
    assert "m@v1/0, m@v2/0" in error_of(yard.admin.get("/engines/m@v9/0/log"), 404)["message"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example", ""])
def test_another_host_name_is_refused(yard: RunningYard, host: str) -> None:
    answer = yard.admin.get("/status", headers={"host": host})
    if answer.headers.get("content-type") == "application/json":
        assert error_of(answer, 421)["code"] == "host_not_allowed"
    else:
        assert answer.status_code == 400


def test_a_change_from_another_origin_is_refused(yard: RunningYard) -> None:
    put = {"url": "/models/m/aliases/probe", "json": {"label": "v2"}}
    answer = yard.admin.put(**put, headers={"origin": "http://evil.example"})  # type: ignore[arg-type]
    assert error_of(answer, 403)["code"] == "origin_not_allowed"
    same = yard.admin.put(**put, headers={"origin": yard.info.admin_url})  # type: ignore[arg-type]
    assert same.status_code == 200
    huge = yard.admin.post("/apply", content=b" " * (5 * 1024 * 1024))
    assert error_of(huge, 413)["code"] == "body_too_large"


def test_hosts_that_are_this_machines() -> None:
    loopback = allowed_hosts("127.0.0.1")
    assert all(map(loopback, ["127.0.0.1:8001", "localhost", "LOCALHOST:1", "[::1]:8001", "127.8.8.8", "a.localhost"]))
    assert not any(map(loopback, ["10.0.0.1", "example.com", "localhost.example.com", "[bad", ""]))
    everywhere = allowed_hosts("0.0.0.0")
    assert all(map(everywhere, ["10.0.0.1:8001", "localhost", "[2001:db8::1]"]))
    assert not everywhere("example.com")
    assert allowed_hosts("yard.lan")("yard.lan:8001")


def test_spans_of_time() -> None:
    assert parse_since(None, 100.0) is None
    assert parse_since("30m", 10_000.0) == 8200.0
    assert parse_since("1.5h", 10_000.0) == 4600.0
    assert parse_since("123.5", 0.0) == 123.5
    with pytest.raises(ApiError):
        parse_since("nan h", 0.0)
    with pytest.raises(ApiError):
        parse_since("nan", 0.0)
    assert parse_since("inf", 0.0) == 1e11
    assert parse_since("9" * 400 + "d", 100.0) == parse_since("-5", 100.0) == 0.0


def test_yard_json_says_where_it_is(yard: RunningYard, tmp_path: Path) -> None:
    assert yard.info.config == str(yard.path)
    assert yard.ui.is_ready is not None
    assert yard.ui.is_ready.models == {"m": ["v1", "v2"]}
