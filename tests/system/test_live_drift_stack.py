"""Live drift through the whole stack: requests are sampled by a worker, taken in, pinned, compared, told."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from components import ROOT
from engines.fixtures import FakeEngine
from stack import Stack, until

pytestmark = pytest.mark.system
EACH = 160
WORDS = ("river", "spring", "rain", "people", "home", "tea", "train", "garden", "night", "bread")


def config(engine: FakeEngine, webhook: str) -> str:
    model = {
        "versions": {"v1": {"engine": "external", "url": engine.url}},
        "samples": {"rate": 1.0, "store": "text"},
    }
    drift = {"every_s": 1, "samples_min": 100, "window_samples_max": 400, "webhook": {"url": webhook}}
    return json.dumps({"models": {"assistant": model}, "drift": drift})


def send(stack: Stack, kind: str, rng: random.Random) -> None:
    """EACH requests of one kind, eight at a time."""

    def body() -> dict[str, object]:
        words = rng.choices(WORDS, k=rng.randrange(4, 12) if kind == "short" else rng.randrange(60, 160))
        text = " ".join(words) + "?"
        return {
            "model": "assistant",
            "messages": [{"role": "user", "content": text if kind == "short" else text.upper()}],
            "max_tokens": rng.randrange(1, 6),
        }

    bodies = [body() for _ in range(EACH)]
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda one: client.post("/v1/chat/completions", json=one), bodies):
            assert answer.status_code == 200


def sampled(stack: Stack) -> int:
    url = f"{stack.admin_url}/admin/v1/samples?limit=1"
    return int(httpx.get(url, headers=stack.credential, trust_env=False).json()["total"])


def test_the_same_traffic_is_none_and_another_is_act(
    yard: Callable[[str], Stack], fake_engine: Callable[..., FakeEngine], tmp_path: Path
) -> None:
    received = tmp_path / "received.jsonl"
    program = ROOT / "tests" / "monitoring" / "webhook_receiver.py"
    receiver = subprocess.Popen([sys.executable, str(program), str(received), "500", "200"], stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    try:
        port = int(receiver.stdout.readline())
        stack = yard(config(fake_engine("--events", "8"), f"http://127.0.0.1:{port}/retrain")).up()
        rng = random.Random(1)

        refused = stack.cli("drift", "pin", "assistant", "--since", "1h", check=None)
        assert "a reference needs 100" in refused.stderr
        send(stack, "short", rng)
        until(lambda: sampled(stack) == EACH, what="every sample")
        assert stack.json("drift", "pin", "assistant", "--since", "1h")["samples"] == EACH

        send(stack, "short", rng)
        until(lambda: sampled(stack) == 2 * EACH, what="every sample")
        (same,) = stack.json("drift", "check", "assistant")["drifts"]
        assert (same["verdict"], same["current_n"]) == ("none", EACH)
        assert "drift none" in stack.cli("status").stdout

        send(stack, "long", rng)
        until(lambda: sampled(stack) == 3 * EACH, what="every sample")
        shown = until(lambda: stack.json("drift")["episodes"], 90, "a round of the watch by itself")
        (drift,) = stack.json("drift")["drifts"]
        assert (drift["verdict"], drift["kinds"]["data"], drift["kinds"]["output"]) == ("act", "act", "none")
        acts = {one["feature"] for one in drift["features"] if one["verdict"] == "act"}
        assert {"input_characters", "input_tokens", "input_uppercase"} <= acts
        assert all(one["text"].isupper() for one in drift["samples"])

        until(lambda: received.exists() and len(received.read_text().splitlines()) == 2, what="the webhook")
        time.sleep(0.5)
        events = [json.loads(json.loads(line)["body"]) for line in received.read_text().splitlines()]
        assert [one["id"] for one in events] == [shown[0]["id"]] * 2  # the first attempt got 500
        assert (events[0]["event"], events[0]["model"], events[0]["version"]) == ("retrain_trigger", "assistant", "v1")
        assert httpx.get(events[0]["link"], headers=stack.credential, trust_env=False).json()["drifts"]

        page = stack.cli("drift", "assistant", "--gate", check=1).stdout
        assert "act since" in page
        assert "the webhook was told" in page
        metrics = httpx.get(f"{stack.admin_url}/metrics", trust_env=False).text
        assert 'modelyard_drift_episode{model="assistant",version="v1"} 1.0' in metrics
        assert 'modelyard_drift_verdict{kind="data",model="assistant",version="v1"} 2.0' in metrics
        assert httpx.get(f"{stack.admin_url}/admin/v1/drift", trust_env=False).status_code == 401  # it shows texts

        assert stack.process is not None
        maps = Path(f"/proc/{stack.process.pid}/maps").read_text()
        assert "numpy" not in maps  # what computes is another process
        stack.cli("drift", "unpin", "assistant")
        assert "nothing is watched" in stack.cli("drift").stdout
        assert stack.stop() == 0
        until(lambda: not stack.processes(), what="the end of every process")
    finally:
        receiver.kill()
        receiver.wait()
        receiver.stdout.close()
