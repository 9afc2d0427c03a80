"""A yard as a process: signals, death and adoption. `modelyard up` with fake engines, so no model is needed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from engines.fixtures import FakeEngine
from yard_harness import CONFIG, until

from registry.state import StateDir, YardInfo

ROOT = Path(__file__).resolve().parents[3]


class YardProcess:
    """`modelyard up` on one state directory, as often as it is started."""

    def __init__(self, folder: Path, text: str) -> None:
        self.state = StateDir(folder / "state")
        self.path = folder / "yard.yaml"
        self.path.write_text(text)
        self.log = folder / "up.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> YardInfo:
        """Start it and wait until it is ready to serve."""
        program = [sys.executable, "-c", "from serving.cli import main; main()"]
        argv = [*program, "up", str(self.path), "--state-dir", str(self.state.root)]
        starts = self._starts()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*argv, "--port", str(self.port)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        info: YardInfo = until(self._answers, 60.0)
        until(lambda: self._starts() > starts, 60.0)  # a signal before that breaks off the start: another way out
        self.port = int(info.url.rpartition(":")[2])
        return info

    def _starts(self) -> int:
        return self.log.read_text().count("Modelyard is up") if self.log.exists() else 0

    def _answers(self) -> YardInfo | None:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        info = self.state.read_yard()
        if info is None or info.pid != self.process.pid:
            return None
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{info.url}/health/ready", trust_env=False).json()["status"] == "ready":
                return info
        return None

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def worker_pids(self) -> list[int]:
        found = []
        for path in self.state.workers.glob("*/worker.json"):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                found.append(json.loads(path.read_text())["pid"])
        return found

    def clean(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.worker_pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()


Start = Callable[..., YardProcess]


@pytest.fixture
def yard(tmp_path: Path, fake_engine: Callable[..., FakeEngine]) -> Iterator[Start]:
    made: list[YardProcess] = []

    def make(*flags: str, workers: int = 1) -> YardProcess:
        engines = [fake_engine("--events", "4", *flags) for _ in range(2)]
        made.append(YardProcess(tmp_path, CONFIG.format(workers=workers, first=engines[0].url, second=engines[1].url)))
        return made[-1]

    yield make
    for one in made:
        one.clean()


class Load:
    """Requests in a few threads, one after another, from entry to exit; counts how each ended."""

    def __init__(self, url: str, threads: int = 3) -> None:
        self.ended: Counter[Any] = Counter()
        self._url = f"{url}/v1/chat/completions"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not self._stop.is_set():
                try:
                    ended: Any = client.post(self._url, json=body).status_code
                except httpx.HTTPError as error:
                    ended = repr(error)
                with self._lock:
                    self.ended[ended] += 1
                time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether the process lives (an adopted child of a killed parent may stay a zombie for a while)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def completed(info: YardInfo) -> int:
    usage = httpx.get(f"{info.admin_url}/admin/v1/cost", trust_env=False, timeout=60).json()["usage"]
    return sum(one["requests"].get("completed", 0) for one in usage)


def test_a_control_plane_killed_under_load_fails_no_request_and_counts_each_once(yard: Start) -> None:
    one = yard(workers=2)
    info = one.start()
    workers = one.worker_pids()
    with Load(info.url) as load:
        for pause_s in (0.3, 1.1):
            time.sleep(pause_s)
            one.send(signal.SIGKILL)
            one.wait()
            info = one.start()
            time.sleep(0.5)
    assert set(load.ended) == {200}
    until(lambda: completed(info) == load.ended[200])
    assert sorted(one.worker_pids()) == sorted(workers)
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    assert not any(map(runs, workers))


def test_a_killed_worker_loses_only_its_own_connections(yard: Start) -> None:
    one = yard(workers=2)
    info = one.start()
    with Load(info.url, threads=4) as load:
        time.sleep(0.5)
        os.kill(one.worker_pids()[0], signal.SIGKILL)
        time.sleep(1.5)
    failed = {ended: count for ended, count in load.ended.items() if ended != 200}
    assert sum(failed.values()) <= 4, failed
    until(lambda: sum(map(runs, one.worker_pids())) == 2)
    until(lambda: -4 <= load.ended[200] - completed(info) <= 100)
    one.send(signal.SIGINT)
    assert one.wait() == 0


def test_a_second_interrupt_stops_at_once(yard: Start) -> None:
    one = yard("--stall-after-events", "2")
    one.path.write_text(one.path.read_text().replace("drain_s: 5", "drain_s: 60"))
    info = one.start()
    body = {"model": "m@v1", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with httpx.stream("POST", f"{info.url}/v1/chat/completions", json=body, trust_env=False, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        workers = one.worker_pids()
        one.send(signal.SIGINT)
        time.sleep(1.0)
        assert one.process is not None
        assert one.process.poll() is None
        one.send(signal.SIGINT)
        assert one.wait(40) == 0  # not the drain's 60 s
        with contextlib.suppress(httpx.HTTPError):
            list(lines)
    assert not any(map(runs, workers))
    assert one.state.read_yard() is None


def test_a_hangup_applies_the_file_again(yard: Start) -> None:
    one = yard()
    info = one.start()
    one.path.write_text(one.path.read_text().replace("workers: 1", "workers: 2"))
    one.send(signal.SIGHUP)
    until(lambda: len(one.worker_pids()) == 2)
    assert httpx.get(f"{info.url}/health/ready", trust_env=False).status_code == 200
    one.send(signal.SIGINT)
    assert one.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_breaks_off_the_fetching_of_a_large_file(tmp_path: Path, number: signal.Signals) -> None:
    with (tmp_path / "large.gguf").open("wb") as file:
        file.truncate(40 * 1024**3)  # takes no room; reading it would take half a minute and more
    text = 'models: {m: {versions: {v1: {engine: llama.cpp, artifact: "file:large.gguf"}}}}'
    one = YardProcess(tmp_path, f"server: {{port: 0, admin_port: 0}}\n{text}")
    with one.log.open("ab") as output:
        program = [sys.executable, "-c", "from serving.cli import main; main()"]
        one.process = subprocess.Popen(
            [*program, "up", str(one.path), "--state-dir", str(one.state.root)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    until(lambda: "Copying large.gguf" in one.log.read_text(), 60.0)
    one.send(number)
    assert one.wait(20) == 0
    assert "Traceback" not in one.log.read_text()


def test_an_interrupt_at_any_moment_of_the_stop_ends_it_as_any_other(yard: Start) -> None:
    one = yard()
    one.start()
    one.send(signal.SIGINT)
    assert one.process is not None
    while one.process.poll() is None:
        time.sleep(0.002)
        if "stopped" in one.log.read_text() or one.state.read_yard() is None:
            one.send(signal.SIGINT)
    assert one.wait() in (0, 130)
    assert "Traceback" not in one.log.read_text()


def test_a_second_interrupt_does_not_wait_for_an_engine_that_is_deaf_to_the_first(tmp_path: Path) -> None:
    fake = ROOT / "tests" / "engines" / "fake_engine.py"
    program = tmp_path / "llama-server"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\na = sys.argv\nif '--port' not in a: sys.exit(print('version: 1'))\n"
        f"os.execv(sys.executable, [sys.executable, {str(fake)!r}, '--deaf', '--port', a[a.index('--port') + 1]])\n"
    )
    program.chmod(0o755)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    version = f'{{engine: llama.cpp, artifact: "file:model.gguf", engine_args: {{binary: "{program}"}}}}'
    one = YardProcess(tmp_path, f"server: {{port: 0, admin_port: 0}}\nmodels: {{m: {{versions: {{v1: {version}}}}}}}")
    one.start()
    engines = [json.loads(path.read_text())["pid"] for path in one.state.engines.rglob("engine.json")]
    assert len(engines) == 1
    one.send(signal.SIGINT)
    time.sleep(1.0)
    one.send(signal.SIGINT)
    began = time.monotonic()
    assert one.wait() == 0
    assert time.monotonic() - began < 9.0, "an engine has 10 s from the first one on; what waits for it takes as long"
    assert not any(map(runs, engines))


def modelyard(yard: YardProcess, *arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", "from serving.cli import main; main()", *arguments]
    argv = [*program, "--state-dir", str(yard.state.root)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_workers_are_replaced_by_command(yard: Start) -> None:
    one = yard("--gap-s", "0.02", workers=2)
    info = one.start()
    before = one.worker_pids()
    with Load(info.url) as load:
        restarting = modelyard(one, "restart", "--json")
        output, errors = restarting.communicate(timeout=120)
        assert restarting.returncode == 0, errors
    done = json.loads(output)
    assert [(each["replaced"], each["worker"], each["cut_off"]) for each in done["replacements"]] == [
        ("w0", "w0b", 0),
        ("w1", "w1b", 0),
    ]
    assert set(load.ended) == {200}, load.ended
    assert not set(before) & set(one.worker_pids())
    one.send(signal.SIGTERM)
    assert one.wait() == 0


def test_a_control_plane_killed_while_it_replaces_a_worker_breaks_no_stream(yard: Start) -> None:
    one = yard("--events", "400", "--gap-s", "0.05")  # twenty seconds, in which all this happens
    one.path.write_text(one.path.read_text().replace("drain_s: 5", "drain_s: 100"))
    info = one.start()
    (before,) = one.worker_pids()
    body = {"model": "m", "messages": [], "stream": True}
    with httpx.stream("POST", f"{info.url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as response:
        chunks = response.iter_raw()
        read = next(chunks)
        restarting = modelyard(one, "restart")
        until(lambda: len(one.worker_pids()) == 2 or None)
        new = next(pid for pid in one.worker_pids() if pid != before)
        until(lambda: one.state.workers.joinpath("w0b", "control.sock").exists())
        time.sleep(0.7)  # the new one serves, the old one drains
        one.send(signal.SIGKILL)
        one.wait()
        restarting.communicate(timeout=60)
        again = one.start()
        assert "adopted" in one.log.read_text().lower()
        read += b"".join(chunks)
    assert read.endswith(b"data: [DONE]\n\n")
    until(lambda: one.worker_pids() == [new], 60)
    assert not runs(before)
    assert httpx.get(f"{again.url}/health/ready", trust_env=False).status_code == 200
    one.send(signal.SIGTERM)
    assert one.wait() == 0
