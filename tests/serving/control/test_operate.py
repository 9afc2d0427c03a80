"""Operating a yard: changes under running streams, what readiness says, the access log and spans of real requests."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine
from test_spans import Receiver, attributes
from yard_harness import RunningYard, until

from registry.state import StateDir
from serving.commands import checks

Engines = Callable[..., FakeEngine]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONFIG = """
server: {{port: 0, admin_port: 0, drain_s: 5{more}}}
models:
  m:
    versions:
      v1: {{engine: external, url: "{one}"}}
      v2: {{engine: external, url: "{two}"}}
    route: {{v1: 10000}}
{extra}
"""


def config(one: FakeEngine, two: FakeEngine, more: str = "", extra: str = "") -> str:
    return CONFIG.format(one=one.url, two=two.url, more=f", {more}" if more else "", extra=extra)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


class Stream:
    """A stream that is read to its end in a thread, byte for byte."""

    def __init__(self, url: str, model: str = "m") -> None:
        self.body = b""
        self.version = ""
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, model))
        self._thread.start()
        assert self._begun.wait(30)

    def _read(self, url: str, model: str) -> None:
        body = {"model": model, "messages": [], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as response:
            self.version = response.headers["x-modelyard-version"]
            for data in response.iter_raw():
                self.body += data
                self._begun.set()

    def end(self) -> bytes:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.body


def content(body: bytes) -> list[str]:
    """The text of each event; the last one is [DONE]."""
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") for event in events]
    return [text for text in deltas if text]


def test_streams_are_untouched_by_an_apply_a_hangup_and_a_change_of_the_route(
    fake_engine: Engines, tmp_path: Path
) -> None:
    flags = ("--events", "60", "--gap-s", "0.03")
    one, two = fake_engine(*flags), fake_engine(*flags)
    with RunningYard(tmp_path, config(one, two)) as yard:
        quiet = content(Stream(yard.info.url).end())
        assert len(quiet) == 60
        workers = yard.get("status")["workers"][0]["pid"]
        running = [Stream(yard.info.url) for _ in range(4)]
        text = config(one, two, "keepalive_s: 30", "    timeouts: {total_s: 900}")
        applied = yard.admin.post("/apply", json={"config": text, "path": str(yard.path)})
        assert applied.status_code == 200, applied.text
        running.append(Stream(yard.info.url))
        yard.path.write_text(config(one, two, "keepalive_s: 40", "    timeouts: {total_s: 800}"))
        yard.wait(yard.yard.reload())  # what SIGHUP does
        assert yard.ui.said[-1].startswith("the configuration is applied")
        changed = yard.admin.put("/models/m/route", json={"weights": {"v1": 0, "v2": 10_000}})
        assert changed.status_code == 200, changed.text
        after = Stream(yard.info.url)
        assert [content(stream.end()) for stream in (*running, after)] == [quiet] * 6
        assert {stream.version for stream in running} == {"m@v1"}
        assert after.version == "m@v2"
        assert yard.get("status")["workers"][0]["pid"] == workers
        assert one.stats()["cancelled"] == two.stats()["cancelled"] == 0


def test_readiness_is_per_model_and_names_what_is_missing(fake_engine: Engines, tmp_path: Path) -> None:
    one, two = fake_engine(), fake_engine()
    other = f'  lone:\n    versions: {{v1: {{engine: external, url: "{two.url}"}}}}\n    route: {{v1: 10000}}'
    with RunningYard(tmp_path, config(one, two, extra=other)) as yard:
        until(lambda: yard.api.get("/health/ready").json()["status"] == "ready")
        assert yard.api.get("/health/ready").json()["models"]["lone"] == {"status": "ready", "missing": []}
        two.kill()
        until(lambda: yard.api.get("/health/ready").json()["status"] == "degraded")
        answer = yard.api.get("/health/ready")
        assert answer.status_code == 200  # the other model is served
        assert answer.json()["not_ready"] == ["lone"]
        assert answer.json()["models"]["lone"] == {
            "status": "failed",
            "missing": ["0 of 1 engines of lone@v1 are ready"],
        }
        assert yard.api.get("/health/ready?model=lone").status_code == 503
        assert yard.api.get("/health/ready?model=m").json()["status"] == "ready"
        pinned = until(
            lambda: (found := yard.api.get("/health/ready", params={"model": "m@v2"})).status_code != 200 and found
        )
        assert (pinned.status_code, pinned.json()["missing"]) == (503, ["0 of 1 engines of m@v2 are ready"])
        assert yard.api.get("/health/ready?model=nobody").status_code == 404
        engines = dependencies(yard)["engines"]
        assert engines["state"] == "degraded"
        assert "lone@v1/0 is" in engines["detail"]
        one.kill()
        until(lambda: yard.api.get("/health/ready").status_code == 503)
        assert until(lambda: ready(yard).status_code == 503 or None)
        assert ready(yard).json()["status"] == "failed"


def ready(yard: RunningYard) -> httpx.Response:
    return httpx.get(f"{yard.info.admin_url}/health/ready", trust_env=False, timeout=30)


def dependencies(yard: RunningYard) -> dict[str, dict[str, str]]:
    return {one["name"]: one for one in ready(yard).json()["dependencies"]}


def test_losing_the_database_is_said_and_takes_nothing_down(fake_engine: Engines, tmp_path: Path) -> None:
    one, two = fake_engine("--events", "3"), fake_engine("--events", "3")
    with RunningYard(tmp_path, config(one, two)) as yard:
        until(lambda: ready(yard).json()["status"] == "ready")
        assert set(dependencies(yard)) == {"workers", "engines", "database", "disk", "devices", "records"}
        engine = yard.yard.parts.registry.engine
        engine.dispose()
        files = list(yard.state.root.glob("registry.db*"))
        for path in files:
            path.rename(path.with_name(f"away-{path.name}"))
        yard.state.database.mkdir()  # what stands there now is no database
        try:
            found = until(lambda: dependencies(yard) if dependencies(yard)["database"]["state"] == "failed" else None)
            assert "requests are served on" in found["database"]["detail"]
            assert (ready(yard).status_code, ready(yard).json()["status"]) == (200, "degraded")
            assert yard.api.get("/health/ready").json()["status"] == "ready"
            assert yard.chat().status_code == 200
        finally:
            yard.state.database.rmdir()
            for path in files:
                path.with_name(f"away-{path.name}").rename(path)
            engine.dispose()
        until(lambda: ready(yard).json()["status"] == "ready")
        until(lambda: sum(v["requests"] for v in yard.get("status")["models"][0]["versions"]) == 1)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_access_log_follows_the_configuration(fake_engine: Engines, tmp_path: Path) -> None:
    one, two = fake_engine("--events", "3"), fake_engine("--events", "3")
    secret = "the client's own words"
    with RunningYard(tmp_path, config(one, two, "access_log: {}")) as yard:
        path = yard.state.root / "access.jsonl"
        headers = {"authorization": "Bearer sk-secret", "x-session-id": "session-of-mine", "x-request-id": "my-id"}
        body = {"model": "m", "messages": [{"role": "user", "content": secret}]}
        assert yard.api.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        assert yard.chat(model="nobody").status_code == 404
        good, bad = until(lambda: lines(path) if len(lines(path)) == 2 else None)
        assert (good["request_id"], good["outcome"], good["model"], good["version"]) == (
            "my-id",
            "completed",
            "m",
            "v1",
        )
        assert (good["completion_tokens"], good["status"], good["attempts"]) == (3, 200, 1)
        assert (bad["outcome"], bad["error"], bad["status"]) == ("rejected", "model_not_found", 404)
        text = path.read_text()
        assert not any(word in text for word in (secret, "sk-secret", "session-of-mine", "one two three"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "written to" in dependencies(yard)["access log"]["detail"]
        wanted = config(one, two, "access_log: {sample: 0, redact: [request_id], path: logs/requests.jsonl}")
        done = yard.admin.post("/apply", json={"config": wanted, "path": str(yard.path)})
        assert done.status_code == 200, done.text
        assert yard.chat().status_code == 200
        assert yard.chat(model="nobody").status_code == 404
        moved = tmp_path / "logs" / "requests.jsonl"
        (only,) = until(lambda: lines(moved) or None)
        assert only["outcome"] == "rejected"
        assert "request_id" not in only
        assert len(lines(path)) == 2
        yard.path.write_text(config(one, two))
        yard.wait(yard.yard.reload())
        assert "access log" not in dependencies(yard)


def test_spans_follow_the_configuration_and_carry_the_clients_trace(
    fake_engine: Engines, tmp_path: Path, receiver: Receiver
) -> None:
    one, two = fake_engine("--events", "3"), fake_engine("--events", "3")
    with RunningYard(tmp_path, config(one, two)) as yard:
        assert yard.chat().status_code == 200
        wanted = config(one, two, f'tracing: {{endpoint: "{receiver.url}/", sample: 0}}')
        done = yard.admin.post("/apply", json={"config": wanted, "path": str(yard.path)})
        assert done.status_code == 200, done.text
        assert yard.chat().status_code == 200  # without a trace, and the sample is nothing
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = {"model": "m", "messages": [], "stream": True}
        assert "[DONE]" in yard.api.post("/v1/chat/completions", json=body, headers=headers).text
        (span,) = until(lambda: receiver.spans)
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        found = attributes(span)
        assert (found["gen_ai.response.model"], found["gen_ai.usage.output_tokens"]) == ("m@v1", 3)
        assert [event.name for event in span.events][1] == "gen_ai.first_token"
        told = [dict(each["headers"]).get("traceparent") for each in one.stats()["requests"]]
        assert [value for value in told if value] == [f"00-{TRACE}-{span.span_id.hex()}-01"]
        until(lambda: "1 spans exported" in dependencies(yard)["tracing"]["detail"])
        receiver.status = 400
        assert yard.api.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        until(lambda: dependencies(yard)["tracing"]["state"] == "degraded")
        assert ready(yard).json()["status"] == "degraded"


def test_the_doctor_tells_how_the_running_yard_stands(fake_engine: Engines, tmp_path: Path) -> None:
    one, two = fake_engine(), fake_engine()
    with RunningYard(tmp_path, config(one, two)) as yard:
        until(lambda: ready(yard).json()["status"] == "ready")
        assert [one.result for one in checks.dependencies(StateDir(yard.state.root))] == ["ok"]
        two.kill()
        until(lambda: ready(yard).json()["status"] == "degraded")
        (found,) = [one for one in checks.dependencies(StateDir(yard.state.root)) if one.result != "ok"]
        assert (found.name, found.result) == ("yard: engines", "warn")
        assert "m@v2/0" in found.detail
