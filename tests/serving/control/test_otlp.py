"""Spans and metrics of a whole yard as a receiver in a process of its own gets them, by the GenAI conventions."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine
from test_access_log import record
from yard_harness import CONFIG, RunningYard, until

from registry.terminal import NotThereError
from serving.control.otel_metrics import (
    FIRST_TOKEN,
    INSTRUMENTS,
    OPERATION_DURATION,
    PER_TOKEN,
    TOKEN_USAGE,
    MetricExporter,
    measurements,
)
from serving.control.spans import Place

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")
HERE = Path(__file__).parent
Engines = Callable[..., FakeEngine]
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
PLACE = Place("127.0.0.1", 8000)


class Received:
    """What the receiver's process wrote down."""

    def __init__(self, file: Path, port: int) -> None:
        self._file = file
        self.url = f"http://127.0.0.1:{port}"

    def messages(self, path: str) -> list[dict[str, Any]]:
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [one["message"] for one in map(json.loads, lines) if one["path"] == path]

    def spans(self) -> list[dict[str, Any]]:
        groups = [group for message in self.messages("/v1/traces") for group in message["resource_spans"]]
        return [span for group in groups for scope in group["scope_spans"] for span in scope["spans"]]

    def points(self) -> dict[str, list[dict[str, Any]]]:
        """Instrument -> its histograms' points, of the last export."""
        (group,) = self.messages("/v1/metrics")[-1]["resource_metrics"]
        return {one["name"]: one["histogram"]["data_points"] for one in group["scope_metrics"][0]["metrics"]}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Received]:
    file = tmp_path / "received.jsonl"
    process = subprocess.Popen([sys.executable, str(HERE / "otlp_receiver.py"), str(file)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    yield Received(file, int(process.stdout.readline()))
    process.kill()
    process.wait()
    process.stdout.close()


def attributes(owner: dict[str, Any]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in owner["attributes"]}


def scraped(yard: RunningYard, accept: str) -> tuple[str, bytes]:
    answer = httpx.get(f"{yard.info.admin_url}/metrics", headers={"accept": accept}, trust_env=False, timeout=30)
    return answer.headers["content-type"], answer.content


def exemplars_of(yard: RunningYard) -> set[str]:
    """The traces that the metrics name, as OpenMetrics has them."""
    content_type, body = scraped(yard, "application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    return set(re.findall(r'^modelyard_\w+_bucket\{.*# \{trace_id="([0-9a-f]{32})"\}', body.decode(), re.MULTILINE))


def test_a_yard_tells_its_receiver_of_every_request(
    receiver: Received, fake_engine: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("spans", "otel_metrics"):  # what a stop still exports is looked at, however busy the machine is
        monkeypatch.setattr(f"serving.control.{module}.STOP_S", 30.0)
    config = CONFIG.format(workers=1, first=fake_engine("--events", "4").url, second=fake_engine("--events", "4").url)
    tracing = f'tracing: {{endpoint: "{receiver.url}", metrics: true}}'
    with RunningYard(tmp_path, config.replace("drain_s: 5", f"drain_s: 5, {tracing}")) as yard:
        answers = [yard.chat("m@v1") for _ in range(3)]
        assert all(answer.status_code == 200 for answer in answers)
        assert yard.chat("m@v2", stream=True).status_code == 200
        assert yard.chat("nobody").status_code == 404
        until(lambda: len(receiver.spans()) == 5)
        exemplars = until(lambda: exemplars_of(yard))
        (content_type, body) = scraped(yard, PROTOBUF)
        assert (content_type, b"modelyard_request_duration_seconds" in body) == (PROTOBUF.replace(";", "; "), True)
    assert exemplars <= {base64.b64decode(span["trace_id"]).hex() for span in receiver.spans()}
    usage = answers[0].json()["usage"]
    points = receiver.points()
    assert set(points) == set(INSTRUMENTS)
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, many in points.items():
        for point in many:
            said = attributes(point)
            assert said["gen_ai.provider.name"] == "modelyard"
            assert said["server.address"] == "127.0.0.1"
            assert said["gen_ai.operation.name"] == "chat"
            assert tuple(point["explicit_bounds"]) == pytest.approx(INSTRUMENTS[name][2])
            kind = said.get("gen_ai.token.type", said.get("error.type", ""))
            found[name, said.get("gen_ai.response.model", ""), kind] = point
    v1 = [found[TOKEN_USAGE, "m@v1", kind] for kind in ("input", "output")]
    assert [(int(point["count"]), point["sum"]) for point in v1] == [
        (3, 3 * usage["prompt_tokens"]),
        (3, 3 * usage["completion_tokens"]),
    ]
    assert int(found[OPERATION_DURATION, "m@v1", ""]["count"]) == 3
    assert int(found[OPERATION_DURATION, "", "model_not_found"]["count"]) == 1
    assert {key for key in found if key[0] in (FIRST_TOKEN, PER_TOKEN)} == {
        (FIRST_TOKEN, "m@v2", ""),
        (PER_TOKEN, "m@v2", ""),
    }
    spans = {attributes(span).get("gen_ai.response.model", ""): attributes(span) for span in receiver.spans()}
    assert spans["m@v1"]["gen_ai.usage.input_tokens"] == str(usage["prompt_tokens"])
    assert spans["m@v1"]["server.address"] == "127.0.0.1"
    assert (spans[""]["error.type"], spans[""]["gen_ai.operation.name"]) == ("model_not_found", "chat")


def test_measurements_are_those_of_the_conventions() -> None:
    streamed = {"streamed": True, "first_token_s": 0.05, "usage_source": "engine"}
    done = record(**streamed, prompt_tokens=11, completion_tokens=5)
    found = [(name, value, said.get("gen_ai.token.type")) for name, value, said in measurements(done, PLACE)]
    assert found == [
        (OPERATION_DURATION, done.duration_s, None),
        (TOKEN_USAGE, 11, "input"),
        (TOKEN_USAGE, 5, "output"),
        (FIRST_TOKEN, 0.05, None),
        (PER_TOKEN, pytest.approx((done.duration_s - 0.05) / 4), None),
    ]
    cut = list(measurements(record(**streamed, outcome="truncated", error="engine_reset"), PLACE))
    assert {name for name, *_ in cut} == {OPERATION_DURATION, TOKEN_USAGE}
    assert cut[0][2]["error.type"] == "engine_reset"
    gone = next(iter(measurements(record(outcome="cancelled", error=""), PLACE)))
    assert gone[2]["error.type"] == "cancelled"
    refused = next(iter(measurements(record(status=422), PLACE)))
    assert refused[2]["error.type"] == "422"
    strange = next(iter(measurements(record(endpoint="/v1/whatever/1234"), PLACE)))
    assert strange[2]["gen_ai.operation.name"] == "other"
    assert "server.port" not in Place("0.0.0.0").attributes()
    assert Place("0.0.0.0").attributes()["server.address"] not in ("", "0.0.0.0")


class Silent(BaseHTTPRequestHandler):
    """Refuses once it is let go, or after a minute."""

    let_go = threading.Event()

    def do_POST(self) -> None:
        self.let_go.wait(60)
        self.send_response(400)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


def test_a_receiver_that_is_slow_or_refuses_holds_nobody_up() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    exporter = MetricExporter(f"http://127.0.0.1:{server.server_port}", version="1", place=PLACE, interval_s=0.1)
    began = time.monotonic()
    exporter.take([record(shadow_of="") for _ in range(2000)])
    assert time.monotonic() - began < 30, "it waits for no answer"
    Silent.let_go.set()
    until(lambda: exporter.problem)
    Silent.let_go.clear()
    exporter.take([record(shadow_of="")])
    began = time.monotonic()
    exporter.close()
    assert time.monotonic() - began < 30, "nor does a close, for long"
    Silent.let_go.set()
    server.shutdown()
    server.server_close()


def test_what_is_missing_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(NotThereError, match=r"pip install '\.\[otel\]'"):
        MetricExporter("http://127.0.0.1:1", version="1", place=PLACE)
