"""What a scrape costs: the control plane's CPU time per scrape in each form, and what the router's worker feels of it.

    python benchmarks/scrape.py [--models 10] [--seconds 10] [--write docs/metrics.md]

Method: one yard with that many models of two versions each, all on one very quick engine, every version asked a few
times so that its histograms have series. A client asks 20 times a second throughout. Turn by turn nobody scrapes, then
each form is scraped 10 times a second, and CPU time is taken from the scheduler (schedstat, all threads) of the control
plane's process and of the worker's. A scrape's cost is what the control plane took more than in the quiet turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from affinity import free_port, yard  # the neighbours in this folder
from document import write
from processes import ROOT, process_tree, router_workers, running

NAME = "benchmarks/scrape.py"
SCRAPES_PER_S = 10
ASKS_PER_S = 20
TURNS = 3
READY_S = 180.0
FORMS = {
    "text": "text/plain;version=0.0.4",
    "OpenMetrics": "application/openmetrics-text;version=1.0.0",
    "protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
}


@dataclass(frozen=True)
class Turn:
    """One turn, with or without scrapes."""

    control_cpu_s: float
    worker_cpu_s: float
    worker_wakes: int
    worker_lag_s: float
    scrapes: int
    bytes: int
    wall_s: float
    """Of one scrape, the median."""


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def wakes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])


def config(models: int, engine: int, port: int, admin_port: int) -> str:
    versions = {label: {"engine": "external", "url": f"http://127.0.0.1:{engine}"} for label in ("v1", "v2")}
    model = {"versions": versions, "route": {"v1": 5000, "v2": 5000}}
    return json.dumps(
        {"server": {"port": port, "admin_port": admin_port}, "models": {f"m{n}": model for n in range(models)}}
    )


def ask(port: int, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "one"}], "stream": True}
    httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, trust_env=False).raise_for_status()


def wait_until_ready(port: int) -> None:
    """Until every model can be served. Raises SystemExit after READY_S."""
    limit = time.monotonic() + READY_S
    while time.monotonic() < limit:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"the yard was not ready within {READY_S:g} s")


def turn(control: int, worker: int, admin_port: int, accept: str, seconds: float) -> Turn:
    """`accept` is the form to scrape; "" scrapes nothing."""
    url, times, size = f"http://127.0.0.1:{admin_port}/metrics", [], 0
    before, at = (cpu_s(control), cpu_s(worker), wakes(worker)), time.monotonic()
    with httpx.Client(trust_env=False, headers={"accept": accept}) as client:
        for number in range(int(seconds * SCRAPES_PER_S)):
            time.sleep(max(0.0, at + number / SCRAPES_PER_S - time.monotonic()))
            if accept:
                began = time.monotonic()
                size = len(client.get(url).raise_for_status().content)
                times.append(time.monotonic() - began)
    after = cpu_s(control), cpu_s(worker), wakes(worker)
    text = httpx.get(url, trust_env=False).text
    lag = float(text.partition("modelyard_router_loop_lag_seconds{")[2].partition("} ")[2].split()[0])
    wall = statistics.median(times) if times else 0.0
    changes = [new - old for new, old in zip(after, before, strict=True)]
    return Turn(changes[0], changes[1], int(changes[2]), lag, len(times), size, wall)


def measure(models: int, seconds: float) -> tuple[dict[str, list[Turn]], int]:
    """Turns by form ("" where nobody scrapes), and how many series there were."""
    engine, port, admin_port = free_port(), free_port(), free_port()
    command = [sys.executable, str(ROOT / "benchmarks" / "mock_engine.py"), "--port", str(engine), "--events", "8"]
    over = threading.Event()
    found: dict[str, list[Turn]] = {form: [] for form in ("", *FORMS)}
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("wb") as log:
        path = Path(name) / "yard.yaml"
        path.write_text(config(models, engine, port, admin_port))
        with running(command, 0, engine, Path(name) / "engine.log"), yard(path, Path(name) / "state", log) as process:
            wait_until_ready(port)
            for model in range(models):
                for label in ("v1", "v2"):
                    for _ in range(5):
                        ask(port, f"m{model}@{label}")
            time.sleep(3)

            def load() -> None:
                while not over.wait(1 / ASKS_PER_S):
                    ask(port, "m0")

            client = threading.Thread(target=load)
            client.start()
            try:
                (worker,) = router_workers(process.pid)
                assert process.pid in process_tree(process.pid)
                for _ in range(TURNS):
                    for form, turns in found.items():
                        turns.append(turn(process.pid, worker, admin_port, FORMS.get(form, ""), seconds))
                text = httpx.get(f"http://127.0.0.1:{admin_port}/metrics", trust_env=False).text
            finally:
                over.set()
                client.join()
    return found, int(float(text.partition("\nmodelyard_metrics_series ")[2].split()[0]))


def table(found: dict[str, list[Turn]], series: int, models: int, seconds: float) -> str:
    def median(form: str, name: str) -> float:
        return statistics.median(getattr(one, name) for one in found[form])

    lines = [
        f"`python {NAME} --models {models} --seconds {seconds:g}` on {platform.machine()}, Python "
        f"{platform.python_version()}: {models} models of two versions, {series:,} series, medians of {TURNS} turns.",
        "",
        "| form | bytes | control plane's CPU a scrape | it takes | worker's CPU a second | its wake-ups a second |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    quiet = median("", "control_cpu_s")
    for form in found:
        worker = (
            f"{median(form, 'worker_cpu_s') / seconds * 1000:.1f} ms | {median(form, 'worker_wakes') / seconds:.0f}"
        )
        if not form:
            lines.append(f"| nobody scrapes | | | | {worker} |")
            continue
        cost = (median(form, "control_cpu_s") - quiet) / median(form, "scrapes") * 1000
        wall = f"{median(form, 'wall_s') * 1000:.0f} ms"
        lines.append(f"| {form} | {median(form, 'bytes'):,.0f} | {cost:.1f} ms | {wall} | {worker} |")
    lag = max(one.worker_lag_s for turns in found.values() for one in turns)
    lines += ["", f"The worker's longest loop lag in any turn was {lag * 1000:.1f} ms."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--write", type=Path, help="put the table into this document, between its markers")
    options = parser.parse_args()
    found, series = measure(options.models, options.seconds)
    text = table(found, series, options.models, options.seconds)
    print(text)
    if options.write:
        write(options.write, NAME, text)


if __name__ == "__main__":
    main()
