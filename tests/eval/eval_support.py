"""Helpers of the evaluation's tests: a small suite on disk, and the command line as a process.

Owns: writing and starting. Never: asserting what a test is about.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from eval.cli import app

ROOT = Path(__file__).resolve().parents[2]


def write_suite(folder: Path, cases: int = 12, **suite: Any) -> Path:
    """A suite whose every case a fake engine answers with `t0 t1 …`: the even ones are right."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"case-{index:03d}", "prompt": f"Question {index}", "target": "t0" if index % 2 == 0 else "nothing"}
        for index in range(cases)
    ]
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = {"name": "small", "cases": "cases.jsonl", "scorer": "contains"} | suite
    (folder / "suite.yaml").write_text(yaml.safe_dump(file))
    return folder


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Cli:
    """`modelyard eval` as a process of its own, on a state directory of the test."""

    state: Path

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        code = "from registry.terminal import run; from eval.cli import app; run(app)"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env=clean | {"MODELYARD_STATE_DIR": str(self.state), "COLUMNS": "160"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, **environment) as process:
            out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def call(self, *arguments: str) -> Ended:
        """The same within this process, which spares the imports: for whatever ends by itself."""
        found = CliRunner().invoke(app, list(arguments), env={"MODELYARD_STATE_DIR": str(self.state), "COLUMNS": "160"})
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return Ended(found.exit_code, found.stdout, found.stderr)

    def kill_after(self, samples: int, number: int, *arguments: str) -> str:
        """Start a run, send the signal once so many samples are in a journal, and return what it wrote."""
        with self.start(*arguments) as process:
            until = time.monotonic() + 120
            while self.journalled() < samples and process.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            assert process.poll() is None, f"it ended before it could be stopped: {process.communicate()}"
            process.send_signal(number)
            _, err = process.communicate(timeout=100)
        assert process.returncode == (-number if number == signal.SIGKILL else 130)
        return err

    def journalled(self) -> int:
        return sum(file.read_bytes().count(b"\n") for file in self.state.glob("runs/*/samples.jsonl"))
