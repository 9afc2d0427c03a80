"""From a client's thumbs-down to a regression test, by commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from components import ROOT
from engines.fixtures import FakeEngine
from yard_harness import RunningYard, until

CONFIG = """
server: {{port: 0, admin_port: 0, workers: 1, drain_s: 5}}
models:
  m:
    versions: {{v1: {{engine: external, url: "{url}"}}}}
    samples: {{rate: 1.0, store: text}}
"""
CALL = [sys.executable, "-c", "import sys; sys.argv[0] = 'modelyard'; from serving.cli import main; main()"]
pytest.importorskip("datasets")


def modelyard(yard: RunningYard, *words: str, code: int = 0) -> str:
    """What a command prints."""
    environment = {**os.environ, "MODELYARD_STATE_DIR": str(yard.state.root)}
    done = subprocess.run(
        [*CALL, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_thumbs_down_becomes_a_regression_test(fake_engine: Callable[..., FakeEngine], tmp_path: Path) -> None:
    folder = tmp_path / "from-production"
    suite = ["eval", "suites", "from-traffic", "m", "--output", str(folder), "--json"]
    with RunningYard(tmp_path, CONFIG.format(url=fake_engine("--events", "2", "--word", "Sydney").url)) as yard:
        questions = [
            "What is the capital of Australia? Tell ann@example.org",
            "what is  the capital of Australia, tell ann@example.org!",
            "Write a poem about rain",
        ]
        ids = [
            str(yard.chat(messages=[{"role": "user", "content": text}]).headers["x-request-id"]) for text in questions
        ]
        until(lambda: yard.get("samples")["total"] == 3)
        said = modelyard(yard, "feedback", ids[0], "--score", "down", "--label", "wrong", "--target", "Canberra")
        assert said.strip() == f"{ids[0]} by m@v1 has the score -1"
        for request_id in ids[1:]:
            modelyard(yard, "feedback", request_id, "--score", "-0.5", "--json")
        assert "there was no request req-none" in modelyard(yard, "feedback", "req-none", "--score", "1", code=2)
        assert "neither a number" in modelyard(yard, "feedback", ids[0], "--score", "bad", code=2)

        found = json.loads(modelyard(yard, *suite))
        counts = {name: found[name] for name in ("samples", "cases", "candidates", "duplicates", "known")}
        assert counts == {"samples": 3, "cases": 1, "candidates": 1, "duplicates": 1, "known": 0}
        again = json.loads(modelyard(yard, *suite))
        assert (again["cases"], again["candidates"], again["known"]) == (0, 0, 3)

        case = json.loads((folder / "cases.jsonl").read_text())
        assert case["messages"] == [
            {"role": "user", "content": "What is the capital of Australia? Tell <email-1>"},
        ]
        assert (case["target"], case["scorer"], case["slice"]) == ("Canberra", {"name": "contains"}, "wrong")
        first = json.loads((folder / "provenance.jsonl").read_text().splitlines()[0])
        digest = yard.get("models", "m", "versions", "v1")["digest"]
        assert (first["request_id"], first["digest"], first["feedback"]) == (ids[0], digest, -1)
        assert first["review"] == "pending"
        assert modelyard(yard, "eval", "suites", "check", str(folder)).startswith(f"{folder}/suite.yaml: 1 cases")
        text = modelyard(yard, *suite[:-1])
        assert f"{folder}: 1 cases, 1 candidates" in text
