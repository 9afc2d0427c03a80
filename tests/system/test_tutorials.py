"""Every command of the tutorials, in order, on the quickstart with its real engines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from components import ROOT
from stack import Stack

pytestmark = [pytest.mark.system, pytest.mark.engine, pytest.mark.timeout(600)]

TUTORIAL = ROOT / "docs" / "tutorial-quantised.md"
VERDICTS = {"compare", "check"}
"""Commands whose exit code is a verdict: pass, fail or inconclusive, whatever the models are worth."""


def blocks(text: str, kind: str) -> list[str]:
    """What stands between fences that open with this kind."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for found, body in fenced if found == kind]


def test_the_quantised_models_tutorial(quickstart: Stack, tmp_path: Path) -> None:
    text = TUTORIAL.read_text()
    (policy,) = blocks(text, "yaml")
    (tmp_path / "gate.yaml").write_text(policy)
    commands = [shlex.split(line) for block in blocks(text, "") for line in block.splitlines()]
    said = {}
    for command in commands:
        if command[0] != "modelyard":
            assert command == ["source", ".venv/bin/activate"]
            continue
        done = quickstart.cli(*command[1:], check=None, timeout_s=400, cwd=tmp_path)
        allowed = {0, 1, 3} if VERDICTS & set(command) else {0}
        assert done.returncode in allowed, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        said[" ".join(command[1:4])] = done
    assert len(said) == 9
    same = said["eval compare regression-core"]
    assert same.returncode in {0, 1, 3}
    assert "verdict" in same.stdout
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "quantised" in said["eval gate list"].stdout
    assert "assistant@v2" in said["cost"].stdout
