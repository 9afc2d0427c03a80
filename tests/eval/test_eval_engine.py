"""Evaluation on a real engine: llama.cpp with SmolLM2."""

import json
import signal

import pytest
from eval_support import Cli

pytestmark = pytest.mark.engine


def outputs(cli: Cli, name: str) -> dict[str, str]:
    from eval.results import RunStore

    return {sample.case: sample.output for sample in RunStore(cli.state / "runs").get(name).samples().values()}


def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(cli: Cli, llama_url: str) -> None:
    arguments = ("run", "quickstart", "--model", f"{llama_url}#smollm2", "--limit", "16", "--concurrency", "1")
    cli.kill_after(4, signal.SIGKILL, *arguments)
    kept = cli.journalled()
    assert 4 <= kept < 16
    resumed = cli.run(*arguments, "--json")
    assert resumed.returncode == 0, resumed.stderr
    found = json.loads(resumed.stdout)
    assert found["how"] == f"resumed: {kept} of 16 samples were there"
    assert (found["done"], found["failed"], found["state"]) == (16, 0, "finished")
    whole = json.loads(cli.run(*arguments, "--json", "--fresh").stdout)
    assert whole["run"] != found["run"]
    assert whole["overall"]["n"] == found["overall"]["n"] == 16
    # One request at a time at temperature 0: the engine is repeatable, so the kill must not show anywhere.
    first, second = outputs(cli, found["run"]), outputs(cli, whole["run"])
    assert first.keys() == second.keys()
    same = sum(first[case] == second[case] for case in first)
    assert same >= 15, "at most one answer may differ (prompt cache of the engine)"
    assert found["overall"]["mean"] == pytest.approx(whole["overall"]["mean"], abs=1 / 16 + 1e-9)


def test_a_version_against_itself_is_never_worse(cli: Cli, llama_url: str) -> None:
    ref = f"{llama_url}#smollm2"
    found = cli.run("compare", "quickstart", "--baseline", ref, "--candidate", ref, "--limit", "54", "--json")
    assert found.returncode in {0, 3}, found.stderr
    value = json.loads(found.stdout)
    assert value["verdict"]["kind"] in {"non-inferior", "inconclusive"}
    assert value["baseline"]["run"] != value["candidate"]["run"]
    assert 0.25 <= value["overall"]["baseline"]["mean"] <= 0.65, "scores must be able to move both ways"
    assert value["noise_floor"]["exact_match"] == value["drift"]["exact_match"]["value"]
    assert value["baseline"]["performance"]["completion_tokens"] > 0
