"""The figures of docs/dashboards.md: a yard of real llama.cpp engines under traffic, watched by a real Prometheus.

    python benchmarks/dashboards.py MODEL.gguf [--candidate OTHER.gguf] [--minutes 10] [--clients 2] [--write FILE]

Method: three versions of one model (v1, v2 requantised, v3 a shadow) with an objective, a budget and samples.
Streams without pause, each with a session of its own, a third of them judged by feedback. After a half of
the time the sampled traffic is pinned as drift's reference and the route goes from 90:10 to 50:50, after three
quarters the engine of v2 is killed. Prometheus runs with the shipped rules. At the end every panel is asked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from monitoring.dashboards.show import main as show

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
server: {{port: {port}, admin_port: {admin_port}, workers: 1}}
prices: {{currency: USD, gpu_hour: 2.50, cpu_hour: 0.12, kwh: 0.30, pue: 1.2}}
budgets: [{{name: team, amount: 40}}]
drift: {{every_s: 30, samples_min: 20, feedback_min: 20}}
models:
  assistant:
    versions:
      v1: {{artifact: "file:{model}", engine: llama.cpp, engine_args: {{n_threads: 1}}}}
      v2: {{artifact: {candidate}, engine: llama.cpp, engine_args: {{n_threads: 1}}}}
      v3: {{artifact: "file:{model}", engine: llama.cpp, engine_args: {{n_threads: 1}}}}
    route: {{v1: 9000, v2: 1000}}
    sticky: [header:x-session-id]
    fallback: [v1]
    shadow: {{v3: {{sample: 1000}}}}
    samples: {{rate: 1.0, store: features}}
    slo: {{first_token_s: 2.0, total_s: 20.0, target: 0.95}}
    admission: {{inflight_max: 8, queue_max: 32, queue_timeout_s: 30}}
"""
TOPICS = ("rivers", "bread", "the moon", "bicycles", "winter", "copper", "gardens", "trains")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Traffic:
    """Streams without pause from several threads, until it is left."""

    def __init__(self, url: str, clients: int) -> None:
        self._url = url
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        chosen, count = random.Random(number), 0
        with httpx.Client(base_url=self._url, timeout=120, trust_env=False) as client:
            while not self._stopped.is_set():
                count += 1
                with contextlib.suppress(httpx.HTTPError):  # an engine is killed on purpose; the metrics tell
                    self._ask(client, chosen, f"{number}-{count}")

    def _ask(self, client: httpx.Client, chosen: random.Random, session: str) -> None:
        body: dict[str, Any] = {"model": "assistant", "max_tokens": chosen.randint(8, 24), "stream": True}
        body["messages"] = [
            {"role": "user", "content": f"Tell me {chosen.randint(1, 9)} facts about {chosen.choice(TOPICS)}."}
        ]
        headers = {"x-session-id": session}
        with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            response.read()
        if response.status_code == 200 and chosen.random() < 0.33:
            time.sleep(1.2)  # feedback finds a request about a second after its end
            score = 1 if chosen.random() < 0.8 else -1
            client.post("/v1/feedback", json={"request_id": response.headers["x-request-id"], "score": score})


@contextlib.contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the block is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def ready(url: str, path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until it answers with 200."""
    deadline = time.monotonic() + 600
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}{path}", trust_env=False).status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{url} is not ready:\n{log.read_text()[-2000:]}")
        time.sleep(0.3)


def prometheus_config(folder: Path, admin_port: int) -> Path:
    """The shipped configuration, with this yard as its target and nobody to tell of alerts."""
    config = yaml.safe_load((ROOT / "configs/prometheus/prometheus.yml").read_text())
    config["rule_files"] = [str(ROOT / "configs/prometheus/rules/*.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{admin_port}"]
    config.pop("alerting", None)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def events(modelyard: list[str], state: Path, admin_url: str, minutes: float) -> None:
    """What happens during the run, at parts of its time."""

    def cli(*arguments: str) -> None:
        command = [*modelyard, *arguments, "--state-dir", str(state)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        sys.stderr.write(f"{arguments}: {done.returncode} {done.stderr.strip()[-300:]}\n")

    pause = 60 * minutes / 4
    time.sleep(2 * pause)
    cli("drift", "pin", "assistant", "--since", "1h")
    cli("route", "set", "assistant", "v1=5000", "v2=5000")
    time.sleep(pause)
    for engine in httpx.get(f"{admin_url}/admin/v1/status", trust_env=False).json()["engines"]:
        if "@v2/" in engine["id"] and engine["pid"]:
            os.kill(engine["pid"], signal.SIGKILL)
    time.sleep(pause)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--candidate", type=Path, help="v2's file; else v1's is requantised")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the page; pictures go to images/ beside it")
    options = parser.parse_args()
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        raise SystemExit("prometheus is not there: apt-get install prometheus")
    port, admin_port, web_port = free_port(), free_port(), free_port()
    modelyard = [sys.executable, "-c", "import sys; sys.argv[0] = 'modelyard'; from serving.cli import main; main()"]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        config, state = folder / "yard.yaml", folder / "state"
        candidate = f'"file:{options.candidate.resolve()}"' if options.candidate else "{requantize: v1, type: Q4_0}"
        config.write_text(
            CONFIG.format(port=port, admin_port=admin_port, model=options.model.resolve(), candidate=candidate)
        )
        up = [*modelyard, "up", str(config), "--state-dir", str(state)]
        yard = stack.enter_context(running(up, folder / "up.log", cwd=ROOT))
        ready(f"http://127.0.0.1:{port}", "/health/ready", yard, folder / "up.log")
        data = [f"--config.file={prometheus_config(folder, admin_port)}", f"--storage.tsdb.path={folder / 'data'}"]
        web = [str(prometheus), *data, f"--web.listen-address=127.0.0.1:{web_port}"]
        watcher = stack.enter_context(running(web, folder / "prometheus.log"))
        ready(f"http://127.0.0.1:{web_port}", "/-/ready", watcher, folder / "prometheus.log")
        with Traffic(f"http://127.0.0.1:{port}", options.clients):
            events(modelyard, state, f"http://127.0.0.1:{admin_port}", options.minutes)
            run = (
                f"three versions of {options.model.name} on llama.cpp, {options.clients} clients, "
                f"{options.minutes:g} minutes, {os.cpu_count()} cores ({platform.machine()}) that other work shared; "
                "at half time the route went from 90:10 to 50:50, after three quarters the engine of v2 was killed"
            )
            arguments = [
                "--prometheus",
                f"http://127.0.0.1:{web_port}",
                "--minutes",
                str(options.minutes),
                "--run",
                run,
            ]
            if options.write:
                arguments += ["--write", str(options.write), "--pictures", str(options.write.parent / "images")]
            raise SystemExit(show(arguments))


if __name__ == "__main__":
    main()
