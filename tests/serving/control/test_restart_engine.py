"""One engine is restarted: what it has it finishes, then another process takes its place. By admin API and command."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.fixtures import FAKE_ENGINE, start_fake_engine
from steady_load import Load
from yard_harness import RunningYard, until

from serving.commands.restart import sentence

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = [sys.executable, "-c", "from serving.cli import main; main()"]
EVENTS, GAP_S = 600, 0.05
TOKENS = 40
LONG = 120
"""Tokens of a stream that outlasts what is asked meanwhile."""
CONFIG = """
server: {{port: 0, admin_port: 0, workers: 1, drain_s: 40}}
models:
  m:
    versions:
      v1: {{engine: llama.cpp, artifact: "file:model.gguf", engine_args: {{binary: "{first}"}}}}
      v2: {{engine: llama.cpp, artifact: "file:model.gguf", engine_args: {{binary: "{second}"}}, replicas: 2}}
      v3: {{engine: external, url: "{url}"}}
    route: {{v1: 10000}}
    fallback: [v3]
  alone:
    versions:
      v1: {{engine: llama.cpp, artifact: "file:model.gguf", engine_args: {{binary: "{second}"}}}}
    route: {{v1: 10000}}
"""


def engine_program(folder: Path, name: str, gap_s: float) -> Path:
    """A `llama-server` that is the fake engine; it cannot start while there is a file `broken` beside it."""
    program = folder / name
    flags = [str(FAKE_ENGINE), "--events", str(EVENTS), "--gap-s", str(gap_s)]
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "a = sys.argv\n"
        "if '--port' not in a: sys.exit(print('version: 1'))\n"
        f"if os.path.exists({str(folder / 'broken')!r}):\n"
        "    print('error: the model cannot be read', file=sys.stderr)\n"
        "    sys.exit(2)\n"
        "own = ['--port', a[a.index('--port') + 1], '--name', a[a.index('--alias') + 1]]\n"
        f"os.execv(sys.executable, [sys.executable, *{flags!r}, *own])\n"
    )
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningYard]:
    folder = tmp_path_factory.mktemp("yard")
    (folder / "model.gguf").write_bytes(b"GGUF")
    first, second = engine_program(folder, "slow", GAP_S), engine_program(folder, "quick", 0.005)
    other = start_fake_engine()
    try:
        with RunningYard(folder, CONFIG.format(first=first, second=second, url=other.url)) as running:
            running.folder = folder  # type: ignore[attr-defined]
            yield running
    finally:
        other.kill()
        assert other.process.stdout is not None
        other.process.stdout.close()


def engine(yard: RunningYard, replica: str) -> dict[str, Any]:
    """Its line of the status, which it lacks for a moment between its two lives."""
    found: dict[str, Any] = until(
        lambda: next((one for one in yard.get("status")["engines"] if one["id"] == replica), None)
    )
    return found


def ready(yard: RunningYard, replica: str) -> dict[str, Any]:
    found: dict[str, Any] = until(lambda: (one := engine(yard, replica))["state"] == "ready" and one, 30)
    return found


class Stream:
    """A streamed answer of `m@v1` that has begun: `tokens` at 20 a second, unless its client leaves before."""

    def __init__(self, yard: RunningYard, tokens: int = LONG) -> None:
        self.read = b""
        self.leave = threading.Event()
        self._tokens = tokens
        self._begun = threading.Event()
        self._url = f"{yard.info.url}/v1/chat/completions"
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Stream:
        self._thread.start()
        assert self._begun.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)

    def _run(self) -> None:
        body = {"model": "m@v1", "messages": [], "stream": True, "max_tokens": self._tokens}
        with httpx.stream("POST", self._url, json=body, timeout=60, trust_env=False) as answer:
            for piece in answer.iter_raw():
                self.read += piece
                self._begun.set()
                if self.leave.is_set():
                    return

    @property
    def tokens(self) -> int:
        lines = [line.removeprefix(b"data: ") for line in self.read.split(b"\n") if line.startswith(b"data: {")]
        return sum(bool(json.loads(line)["choices"][0]["delta"].get("content")) for line in lines)


def command(yard: RunningYard, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "restart", *arguments, "--state-dir", str(yard.state.root)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refusal(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


def test_what_it_has_it_finishes_and_then_it_starts_anew(yard: RunningYard) -> None:
    before = ready(yard, "m@v1/0")
    answers: list[httpx.Response] = []
    post = threading.Thread(target=lambda: answers.append(yard.admin.post("/engines/m@v1/restart")))
    began = time.monotonic()
    with Stream(yard) as stream:
        post.start()
        until(lambda: (one := engine(yard, "m@v1/0"))["state"] == "draining" and one["inflight"] == 1)
        again = yard.admin.post("/engines/m@v1/0/restart")
        assert "m@v1/0 is being restarted already" in refusal(again, 409)
        assert yard.chat("m").headers["x-modelyard-version"] == "m@v3", "new requests go to the fallback"
        assert yard.chat("m@v1").json()["error"]["code"] == "no_ready_engine", "but not those that name the version"
    post.join(60)
    assert stream.tokens == LONG
    assert stream.read.endswith(b"data: [DONE]\n\n")
    assert answers[0].status_code == 200, answers[0].text
    done = answers[0].json()
    assert (done["replica"], done["state"], done["unfinished"]) == ("m@v1/0", "starting", 0)
    assert 0 < done["drained_s"] < time.monotonic() - began
    after = ready(yard, "m@v1/0")
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1
    assert yard.chat("m@v1", max_tokens=1).headers["x-modelyard-version"] == "m@v1"
    (entry,) = yard.get("audit", limit=1)
    assert (entry["action"], entry["subject"], entry["actor"]) == ("engine.restart", "m@v1/0", "admin-api")
    assert entry["before"] == {"state": "ready", "pid": before["pid"]}


def test_what_outlasts_the_drain_is_counted(yard: RunningYard) -> None:
    ready(yard, "m@v1/0")
    text = yard.path.read_text()
    impatient = text.replace("drain_s: 40", "drain_s: 0.3")
    assert yard.admin.post("/apply", json={"config": impatient, "path": str(yard.path)}).status_code == 200
    try:
        with Stream(yard):
            answer = yard.admin.post("/engines/m@v1/0/restart")
    finally:
        assert yard.admin.post("/apply", json={"config": text, "path": str(yard.path)}).status_code == 200
    assert answer.status_code == 200, answer.text
    done = answer.json()
    assert done["unfinished"] == 1
    assert done["drained_s"] >= 0.3
    assert sentence(done | {"ready_s": 2.0}).endswith("later; 1 request was not finished within `server.drain_s`")


@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        ("m@v9/0", 404, "there is no engine m@v9/0: there are alone@v1/0, m@v1/0, m@v2/0, m@v2/1, m@v3/0"),
        ("m@v9", 404, "there is no engine m@v9: there are"),
        ("m@v1/7", 404, "there is no engine m@v1/7: there are"),
        ("m@v2", 409, "m@v2 has 2 engines: name one of m@v2/0, m@v2/1"),
        ("m@v3/0", 409, "m@v3/0 is run by somebody else: restart it where it runs"),
    ],
)
def test_what_cannot_be_restarted_is_one_sentence(yard: RunningYard, name: str, status: int, sentence: str) -> None:
    assert sentence in refusal(yard.admin.post(f"/engines/{name}/restart"), status)
    result = command(yard, "--engine", name)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.splitlines()[-1].startswith("modelyard: ")


@pytest.mark.parametrize("name", ["", "/0", "m@v1/first"])
def test_what_names_no_replica(yard: RunningYard, name: str) -> None:
    result = command(yard, "--engine", name)
    assert result.returncode == 2
    assert "names no replica: write MODEL@LABEL/N" in result.stderr


def test_it_takes_a_credential(yard: RunningYard) -> None:
    before = ready(yard, "m@v1/0")
    assert httpx.post(f"{yard.admin.base_url}engines/m@v1/0/restart", trust_env=False).status_code == 401
    assert engine(yard, "m@v1/0")["pid"] == before["pid"]


def test_by_command_one_of_two_under_load(yard: RunningYard) -> None:
    before = ready(yard, "m@v2/1")
    other = ready(yard, "m@v2/0")
    with Load(yard.info.url, clients=4, stream=True, max_tokens=TOKENS, model="m@v2") as load:
        time.sleep(0.5)
        result = command(yard, "--engine", "m@v2/1", "--json")
        time.sleep(0.5)
    assert (result.returncode, result.stderr) == (0, "")
    done = json.loads(result.stdout)
    assert (done["replica"], done["state"], done["unfinished"], done["last_error"]) == ("m@v2/1", "ready", 0, "")
    assert done["ready_s"] > 0
    assert load.failures == []
    assert load.completed > 10
    assert ready(yard, "m@v2/1")["pid"] != before["pid"]
    assert engine(yard, "m@v2/0")["pid"] == other["pid"]


def test_the_only_engine_of_a_version_is_told_of(yard: RunningYard) -> None:
    result = command(yard, "--engine", "alone@v1")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "no other engine serves alone@v1: until it is ready again, its requests are refused\n"
    assert result.stdout.startswith("alone@v1/0 is ready again: drained in ")
    result = command(yard, "--engine", "m@v1")
    assert result.stderr.endswith("its requests go to the fallback v3, and those that name m@v1 are refused\n")


def test_one_that_does_not_come_up_is_one_sentence_and_exit_4(yard: RunningYard) -> None:
    ready(yard, "alone@v1/0")
    broken = yard.folder / "broken"  # type: ignore[attr-defined]
    broken.touch()
    result = command(yard, "--engine", "alone@v1", "--json")
    assert result.returncode == 4
    assert json.loads(result.stdout)["state"] == "failed"
    assert result.stderr.splitlines()[-1] == (
        "modelyard: alone@v1/0 did not come up again: error: the model cannot be read; "
        "`modelyard logs alone@v1/0` has more"
    )
    broken.unlink()
    result = command(yard, "--engine", "alone@v1")
    assert (result.returncode, result.stderr) == (0, ""), "a failed one gets another chance, and nothing is lost by it"
    assert yard.chat("alone", max_tokens=1).status_code == 200


def test_ctrl_c_at_a_terminal_ends_the_waiting_alone(yard: RunningYard) -> None:
    before = ready(yard, "m@v1/0")
    with Stream(yard, EVENTS) as stream:
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            argv = [*PROGRAM, "restart", "--engine", "m@v1", "--state-dir", str(yard.state.root)]
            os.execve(argv[0], argv, {**os.environ, "TERM": "xterm", "COLUMNS": "160"})
        drawn = b""
        limit = time.monotonic() + 60
        while b"m@v1/0 finishes 1 request" not in drawn and time.monotonic() < limit:
            if select.select([terminal], [], [], 0.2)[0]:
                drawn += os.read(terminal, 65536)
        os.kill(pid, signal.SIGINT)
        while True:
            try:
                piece = os.read(terminal, 65536)
            except OSError:
                break
            if not piece:
                break
            drawn += piece
        assert engine(yard, "m@v1/0")["state"] == "draining"
        stream.leave.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(terminal)
    assert b"m@v1/0 finishes 1 request" in drawn
    assert b"the yard goes on with it, see `modelyard status`" in drawn
    until(lambda: engine(yard, "m@v1/0")["restarts"] > before["restarts"])
    assert ready(yard, "m@v1/0")["pid"] != before["pid"]
