"""A public test set through the runner with a kill -9 in the middle: the same table as without one."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from eval_support import Cli

from eval.results import RunStore, Sample

SAMPLES = 100


@pytest.fixture
def engine(shared_data: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, str(Path(__file__).with_name("scripted_engine.py")), "--port", str(port)]
    with subprocess.Popen([*argv, "--data", str(shared_data / "gsm8k_test.jsonl"), "--gap-s", "0.02"]) as process:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                httpx.get(url, trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
        process.kill()


def samples(cli: Cli, name: str) -> dict[tuple[str, int], Sample]:
    return RunStore(cli.state / "runs").get(name).samples()


def test_a_killed_run_gives_the_table_of_one_that_was_not(
    cli: Cli, tmp_path: Path, engine: str, shared_data: Path
) -> None:
    data = shared_data / "gsm8k_test.jsonl"
    arguments = ["run", "gsm8k", "--path", str(data), "--sample", str(SAMPLES), "--model", f"{engine}#m"]
    cli.kill_after(SAMPLES // 3, signal.SIGKILL, *arguments)
    kept = cli.journalled()
    assert SAMPLES // 3 <= kept < SAMPLES
    resumed = json.loads(cli.call(*arguments, "--json").stdout)
    assert resumed["how"].startswith("resumed: ")
    asked = httpx.get(f"{engine}/asked", trust_env=False).json()
    assert len(asked) == SAMPLES, "no sample was lost"
    assert sum(asked.values()) <= SAMPLES + 4, "only what was in flight at the kill is asked again"

    other = Cli(tmp_path / "other")
    whole = json.loads(other.call(*arguments, "--json").stdout)
    assert [(one["name"], one["n"], one["mean"], one["interval"]) for one in (*whole["scorers"], whole["overall"])] == [
        (one["name"], one["n"], one["mean"], one["interval"]) for one in (*resumed["scorers"], resumed["overall"])
    ]
    first, second = samples(cli, resumed["run"]), samples(other, whole["run"])
    assert first.keys() == second.keys()
    assert [(one.output, one.score) for one in first.values()] == [(one.output, one.score) for one in second.values()]
    assert 0.2 < whole["overall"]["mean"] < 0.6
