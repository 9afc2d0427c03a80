"""Samples and feedback through a whole yard: what is kept, what is not, and where text may lie on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine
from yard_harness import RunningYard, files_in, until

CANARY = "xylograph"
CONFIG = """
server: {{port: 0, admin_port: 0, workers: 1, drain_s: 5{server}}}
models:
  m:
    versions:
      v1: {{engine: external, url: "{url}"}}
    samples: {samples}
"""
Engines = Callable[..., FakeEngine]
PROMPT = f"I am ann@example.org, call +49 89 1234567; the {CANARY} is broken. Help?"


def config(engine: FakeEngine, samples: str, server: str = "") -> str:
    return CONFIG.format(url=engine.url, samples=samples, server=server)


def ask(yard: RunningYard, path: str = "/v1/chat/completions", *, stream: bool = False, **changes: Any) -> str:
    """One request; the id of its answer."""
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": PROMPT}]},
        "/v1/completions": {"prompt": PROMPT},
        "/v1/responses": {"input": PROMPT},
        "/v1/messages": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
            "max_tokens": 8,
        },
    }
    headers = changes.pop("headers", {})
    answer = yard.api.post(path, json={"model": "m", "stream": stream, **bodies[path], **changes}, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])


def samples(yard: RunningYard, count: int, **query: Any) -> list[dict[str, Any]]:
    """The samples, newest first, once there are so many."""

    def found() -> list[dict[str, Any]]:
        listed = yard.get("samples", **query)
        return listed["samples"] if listed["total"] >= count else []

    listed: list[dict[str, Any]] = until(found)
    assert len(listed) == count
    return listed


def holds(folder: Path, text: str) -> list[str]:
    """The files below `folder` that hold a text."""
    return [str(path) for path, data in files_in(folder).items() if text.encode() in data]


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    from engines.fixtures import start_fake_engine

    started = start_fake_engine("--events", "4", "--word", CANARY)
    yield started
    started.kill()
    assert started.process.stdout is not None
    started.process.stdout.close()


def test_text_is_kept_redacted_for_every_api_streamed_or_not(engine: FakeEngine, tmp_path: Path) -> None:
    with RunningYard(tmp_path, config(engine, "{rate: 1.0, store: text}")) as yard:
        paths = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
        ids = {ask(yard, path, stream=stream): (path, stream) for path in paths for stream in (False, True)}
        ask(yard, model="m@v1")  # somebody's test, and no traffic
        digest = yard.get("models", "m", "versions", "v1")["digest"]
        listed = samples(yard, 8)
        for sample in listed:
            path, stream = ids[sample["request_id"]]
            assert (sample["endpoint"], sample.get("streamed", False)) == (path, stream)
            text = f"I am <email-1>, call <phone-1>; the {CANARY} is broken. Help?"
            assert sample["messages"] == [{"role": "user", "content": text}]
            assert sample["output"] == f"{CANARY}0 {CANARY}1 {CANARY}2 {CANARY}3"
            assert sample["redacted"] == {"email": 1, "phone": 1}
            assert (sample["model"], sample["version"], sample["digest"]) == ("m", "v1", digest)
            assert sample["completion_tokens"] == 4
            assert sample["features"]["output_characters"] == float(len(sample["output"]))
        assert not any("messages" in one or "output" in one for one in samples(yard, 8, texts="false"))
        metrics = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).text
        assert 'modelyard_samples_total{model="m",version="v1"} 8.0' in metrics
        until(lambda: not list(yard.state.spool.iterdir()))
    assert holds(yard.state.root, "ann@example") == []
    kept = yard.state.samples_database
    assert holds(yard.state.root, CANARY) == [str(kept)]
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("kept", "count"), [("features", 2), ("none", 0)])
def test_without_text_no_file_of_the_state_directory_has_any(
    engine: FakeEngine, tmp_path: Path, kept: str, count: int
) -> None:
    with RunningYard(tmp_path, config(engine, f"{{rate: 1.0, store: {kept}}}")) as yard:
        first = ask(yard)
        ask(yard, stream=True)
        if count:
            listed = samples(yard, count)
            assert listed[0]["features"]["input_characters"] > 40
            assert not {"messages", "output", "request", "tool_calls"} & listed[0].keys()
        body = {"request_id": first, "score": "down", "comment": f"no {CANARY}", "target": CANARY}
        assert yard.api.post("/v1/feedback", json=body).status_code == 202
        found = until(lambda: yard.get("feedback"))
        assert (found[0]["score"], found[0]["comment"], found[0]["target"]) == (-1.0, None, None)
        until(lambda: not list(yard.state.spool.iterdir()))
        assert holds(yard.state.root, CANARY) == []
    assert holds(yard.state.root, CANARY) == []


def test_nothing_is_sampled_unless_somebody_says_so(engine: FakeEngine, tmp_path: Path) -> None:
    with RunningYard(tmp_path, config(engine, "{store: text}")) as yard:
        ask(yard)
        until(lambda: yard.get("cost")["usage"])
        yard.yard.parts.samples.step()
        assert yard.get("samples") == {"total": 0, "samples": []}
        more = config(engine, "{rate: 1, store: text}")
        assert yard.admin.post("/apply", json={"config": more, "path": str(yard.path)}).status_code == 200
        ask(yard)
        samples(yard, 1)


def test_feedback_finds_its_request_and_the_last_word_counts(engine: FakeEngine, tmp_path: Path) -> None:
    with RunningYard(tmp_path, config(engine, "{rate: 1.0, store: text}")) as yard:
        one, two = ask(yard), ask(yard)
        for score, comment in (("up", "fine"), (-0.5, "wrong: mail bob@example.org")):
            answer = yard.api.post("/v1/feedback", json={"request_id": one, "score": score, "comment": comment})
            assert answer.json() == {
                "object": "feedback",
                "request_id": one,
                "score": 1.0 if score == "up" else -0.5,
                "status": "accepted",
            }
        until(lambda: [item["score"] for item in yard.get("feedback")] == [-0.5])
        (negative,) = samples(yard, 1, feedback="negative")
        assert (negative["request_id"], negative["comment"]) == (one, "wrong: mail <email-1>")
        assert [item["request_id"] for item in samples(yard, 1, feedback="none")] == [two]
        given = yard.admin.post("/feedback", json={"request_id": two, "score": "up", "target": "better"}).json()
        assert (given["request_id"], given["score"], given["target"], given["version"]) == (two, 1.0, "better", "v1")
        unknown = yard.admin.post("/feedback", json={"request_id": "req-nobody", "score": 1})
        assert unknown.status_code == 404
        assert "there was no request req-nobody" in unknown.json()["error"]["message"]
        metrics = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).text
        assert 'modelyard_feedback_total{model="m",score="negative",version="v1"} 1.0' in metrics
        assert 'modelyard_feedback_total{model="m",score="positive",version="v1"} 2.0' in metrics
    with RunningYard(tmp_path, config(engine, "{rate: 1.0, store: text}")) as yard:
        again = yard.admin.post("/feedback", json={"request_id": one, "score": 0}).json()
        assert again["model"] == "m", "after a restart a request is found in its segment"
        metrics = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).text
        assert 'modelyard_feedback_total{model="m",score="positive",version="v1"} 2.0' in metrics


def test_only_the_key_that_asked_may_judge_and_reading_needs_the_token(engine: FakeEngine, tmp_path: Path) -> None:
    with RunningYard(tmp_path, config(engine, "{rate: 0}")) as yard:
        mine, other = (yard.admin.post("/keys", json={"name": name}).json()["secret"] for name in ("a", "b"))
        asked = ask(yard, headers={"authorization": f"Bearer {mine}"})
        body = {"request_id": asked, "score": 1}
        assert yard.api.post("/v1/feedback", json=body).status_code == 401
        for key in (other, mine):
            answer = yard.api.post("/v1/feedback", json=body, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 202
        (found,) = until(lambda: yard.get("feedback"))
        assert (found["request_id"], found["version"]) == (asked, "v1"), "requests that are not sampled count too"

        def ignored() -> bool:
            text = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).text
            return 'modelyard_feedback_ignored_total{reason="other_key"} 1.0' in text

        until(ignored)
        for path in ("samples", "feedback"):
            plain = httpx.get(f"{yard.info.admin_url}/admin/v1/{path}", trust_env=False)
            assert plain.status_code == 401
            assert plain.json()["error"]["code"] == "missing_admin_token"
        assert holds(yard.state.root, mine) == []
