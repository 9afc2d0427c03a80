"""Gates through a running yard: verdicts recorded, shown with the version, required before a route gives traffic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from engines.fixtures import start_fake_engine
from typer.testing import CliRunner
from yard_harness import CONFIG, RunningYard

from serving.cli import app


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningYard]:
    engines = [start_fake_engine("--events", "4"), start_fake_engine("--events", "6")]
    text = CONFIG.format(workers=1, first=engines[0].url, second=engines[1].url)
    text = text.rstrip() + "\n    require_gate: release\n"
    try:
        with RunningYard(tmp_path_factory.mktemp("yard"), text) as running:
            yield running
    finally:
        for engine in engines:
            engine.kill()
            assert engine.process.stdout is not None
            engine.process.stdout.close()


def body(yard: RunningYard, **changes: Any) -> dict[str, Any]:
    digests = {label: yard.get("models", "m", "versions", label)["digest"] for label in ("v1", "v2")}
    return {
        "policy": "release",
        "policy_digest": "sha256:" + "0" * 64,
        "baseline": "v1",
        "baseline_digest": digests["v1"],
        "candidate": "v2",
        "candidate_digest": digests["v2"],
        "verdict": "inconclusive",
        "text": "about 40 more samples needed",
        "suites": {"quickstart": "sha256:1"},
        "evidence": {"runs": {"baseline": "a", "candidate": "b"}},
    } | changes


def route(yard: RunningYard, v1: int, *, force: bool = False) -> Any:
    return yard.admin.put("/models/m/route", json={"weights": {"v1": v1, "v2": 10_000 - v1}, "force": force})


def test_a_required_gate_is_between_a_version_and_its_traffic(yard: RunningYard) -> None:
    answer = route(yard, 5000)
    assert answer.status_code == 409
    assert "m@v2 may not have more traffic: the gate release was never run on it against v1" in answer.text
    assert route(yard, 9500).status_code == 200, "less traffic needs no gate"

    made = yard.admin.post("/models/m/gates", json=body(yard), headers={"x-modelyard-actor": "ci"})
    assert made.status_code == 201, made.text
    assert (made.json()["author"], made.json()["verdict"]) == ("ci", "inconclusive")
    assert "says inconclusive" in route(yard, 5000).text

    forced = route(yard, 5000, force=True)
    assert forced.status_code == 200, forced.text
    newest = yard.get("audit", limit=1)[0]
    assert (newest["action"], newest["subject"]) == ("route.forced", "m")

    assert yard.admin.post("/models/m/gates", json=body(yard, verdict="pass")).status_code == 201
    assert route(yard, 1000).status_code == 200
    assert yard.get("audit", limit=1)[0]["action"] == "route.set"
    assert [one["verdict"] for one in yard.get("models", "m", "gates")] == ["pass", "inconclusive"]
    assert len(yard.get("models", "m", "gates", candidate="v2", limit=1)) == 1
    assert yard.get("models", "m", "gates", candidate="champion") == []


def test_a_verdict_is_shown_with_its_version(yard: RunningYard) -> None:
    yard.admin.post("/models/m/gates", json=body(yard, verdict="pass"))
    options = ["--admin-url", yard.info.admin_url, "--state-dir", str(yard.state.root)]
    shown = CliRunner().invoke(app, ["versions", "show", "m@v2", *options])
    assert shown.exit_code == 0, shown.output
    assert "release: pass against v1" in shown.output
    found = json.loads(CliRunner().invoke(app, ["versions", "show", "m@v2", "--json", *options]).stdout)
    assert found["gates"][0]["suites"] == {"quickstart": "sha256:1"}


def test_verdicts_about_other_versions_or_without_a_credential_are_refused(yard: RunningYard) -> None:
    wrong = yard.admin.post("/models/m/gates", json=body(yard, candidate_digest="sha256:" + "1" * 64))
    assert (wrong.status_code, "and the verdict is about" in wrong.text) == (409, True)
    assert yard.admin.post("/models/m/gates", json=body(yard, candidate="v9")).status_code == 404
    assert yard.admin.post("/models/m/gates", json=body(yard, verdict="maybe")).status_code == 422
    assert yard.admin.post("/models/n/gates", json=body(yard)).status_code == 404
    anonymous = yard.admin.post("/models/m/gates", json=body(yard), headers={"authorization": ""})
    assert anonymous.status_code in {401, 403}
