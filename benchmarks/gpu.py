"""The whole stack with a real engine on this machine's GPU: readings, tokens per second and what they cost.

    python benchmarks/gpu.py MODEL [--seconds 60] [--clients 16] [--write docs/performance.md]

MODEL is a GGUF file (llama.cpp; its library must be built with CUDA) or the folder of a Hugging Face checkpoint (vLLM,
in the environment that `--python` names). Method: a fresh yard reads the GPU ten times a second; so many clients each
have one streamed request in flight, for so many seconds after a warm-up. Readings are the metrics' own, scraped every
second of the load. Tokens are the engine's own counts. The bills are of the whole life of the engine, loading included:
that is what a GPU is paid for. Without a GPU it ends with 4.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pynvml
from affinity import free_port, yard  # the neighbours in this folder
from document import write
from prometheus_client.parser import text_string_to_metric_families

from monitoring.gpu import NvmlReader, open_reader

ROOT = Path(__file__).resolve().parents[1]
NAME = "benchmarks/gpu.py"
NO_GPU = 4
READY_S = 900.0
WARM_UP_S = 5.0
TOPICS = ("rivers", "glass", "bread", "maps", "clocks", "bridges", "salt", "paper", "wind", "copper")
READINGS: Mapping[str, tuple[str, float, str]] = {
    "modelyard_gpu_utilization_ratio": ("utilisation", 100, "%"),
    "modelyard_gpu_process_utilization_ratio": ("utilisation, the engine's processes", 100, "%"),
    "modelyard_gpu_memory_used_bytes": ("memory in use", 1e-9, "GB"),
    "modelyard_gpu_process_memory_bytes": ("memory, the engine's processes", 1e-9, "GB"),
    "modelyard_gpu_power_watts": ("power", 1, "W"),
    "modelyard_gpu_power_limit_watts": ("power limit", 1, "W"),
    "modelyard_gpu_temperature_celsius": ("temperature", 1, "°C"),
    "modelyard_gpu_sm_clock_hertz": ("SM clock", 1e-6, "MHz"),
    "modelyard_gpu_memory_clock_hertz": ("memory clock", 1e-6, "MHz"),
}


@dataclass
class Seen:
    """What the load and the scrapes brought."""

    tokens: int = 0
    requests: int = 0
    first_token_s: list[float] = field(default_factory=list)
    readings: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    throttled: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def config(options: argparse.Namespace, port: int, admin_port: int) -> str:
    """A yard with one version on the GPU."""
    version: dict[str, Any] = {"artifact": f"file:{options.model.resolve()}", "engine": "llama.cpp"}
    if options.model.is_dir():
        version |= {"engine": "vllm", "python": str(options.python.absolute())}
    version["engine_args"] = json.loads(options.engine_args)
    prices = {"currency": "USD", "gpu_hour": options.gpu_hour, "kwh": options.kwh, "pue": 1.0}
    whole = {
        "server": {"port": port, "admin_port": admin_port, "workers": 1},
        "prices": prices,
        "monitoring": {"sample_hz": 10},
        "models": {"assistant": {"versions": {"v1": version}}},
    }
    return json.dumps(whole, indent=2)  # which is YAML too


def ask(client: httpx.Client, number: int, tokens_max: int) -> tuple[int, float]:
    """One streamed request: its completion tokens by the engine's count, and when its first piece came."""
    text = f"Write a long story about {TOPICS[number % len(TOPICS)]}, number {number}."
    body = {"model": "assistant", "messages": [{"role": "user", "content": text}], "max_tokens": tokens_max}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    began, first, usage = time.monotonic(), 0.0, {}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                    first = time.monotonic() - began
    return int(usage["completion_tokens"]), first


def load(url: str, options: argparse.Namespace, seconds: float, seen: Seen) -> float:
    """Seconds from the first request to the last answer; each client asks again until the time is up."""
    began = time.monotonic()

    def one(client_number: int) -> None:
        with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
            number = client_number
            while time.monotonic() - began < seconds:
                tokens, first = ask(client, number, options.tokens)
                number += options.clients
                with seen.lock:
                    seen.tokens, seen.requests = seen.tokens + tokens, seen.requests + 1
                    seen.first_token_s.append(first)

    with ThreadPoolExecutor(options.clients) as pool:
        list(pool.map(one, range(options.clients)))
    return time.monotonic() - began


def watch(admin_url: str, until: threading.Event, seen: Seen) -> None:
    """Scrape once a second."""
    while not until.wait(1.0):
        scrape(httpx.get(f"{admin_url}/metrics", timeout=30, trust_env=False).text, seen)


def scrape(text: str, seen: Seen) -> None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in READINGS:
                seen.readings[sample.name].append(sample.value)
            elif sample.name == "modelyard_gpu_throttled" and sample.value:
                seen.throttled.add(sample.labels["reason"])
            elif sample.name == "modelyard_device_reading_absent" and sample.value:
                seen.absent.add(sample.labels["reading"])


def wait_ready(admin_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the engine takes requests. Raises SystemExit with the log's end where it never does."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            status = httpx.get(f"{admin_url}/admin/v1/status", trust_env=False).json()
            if any(engine["state"] == "ready" for engine in status["engines"]):
                return
        time.sleep(0.5)
    raise SystemExit(f"the engine is not ready:\n{log.read_text()[-3000:]}")


def measure(options: argparse.Namespace) -> tuple[Seen, float, dict[str, Any]]:
    """What was seen under load, its seconds, and the bill of the whole yard's life."""
    port, admin_port = free_port(), free_port()
    url, admin_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, log = folder / "yard.yaml", folder / "log"
        path.write_text(config(options, port, admin_port))
        with log.open("wb") as output, yard(path, folder / "state", output) as process:
            wait_ready(admin_url, process, log)
            load(url, options, WARM_UP_S, Seen())
            seen, done = Seen(), threading.Event()
            watcher = threading.Thread(target=watch, args=(admin_url, done, seen))
            watcher.start()
            took = load(url, options, options.seconds, seen)
            done.set()
            watcher.join()
            time.sleep(3)  # until the last records are counted and divided
            bill = httpx.get(f"{admin_url}/admin/v1/cost", timeout=30, trust_env=False).json()
    return seen, took, bill


def readings(seen: Seen) -> list[str]:
    rows = ["| reading under load | median | least | most |", "|---|---:|---:|---:|"]
    for name, (words, factor, unit) in READINGS.items():
        if values := [value * factor for value in seen.readings[name]]:
            middle, least, most = statistics.median(values), min(values), max(values)
            rows.append(f"| {words} | {middle:,.1f} {unit} | {least:,.1f} | {most:,.1f} |")
        else:
            rows.append(f"| {words} | absent | – | – |")
    return rows


def bills(bill: Mapping[str, Any]) -> list[str]:
    """A row for each bill of a GPU."""
    rows = ["| basis | method | bill | to the version | idle | not divided yet |", "|---|---|---:|---:|---:|---:|"]
    for one in bill["bills"]:
        if one["device_kind"] != "gpu":
            continue
        parts: defaultdict[str, float] = defaultdict(float)
        for line in one["lines"]:
            parts[line["kind"]] += float(line["amount"])
        cells = (float(one["total"]), parts["version"], parts["idle"], parts["unsettled"])
        money = " | ".join(f"{cell:.6f} {one['currency']}" for cell in cells)
        rows.append(f"| {one['basis']} | {one['method']} | {money} |")
    return rows


def report(options: argparse.Namespace, device: str, seen: Seen, took: float, bill: Mapping[str, Any]) -> str:
    engine = "vLLM" if options.model.is_dir() else "llama.cpp"
    first = sorted(seen.first_token_s)
    late = first[int(0.95 * (len(first) - 1))]
    lines = [
        f"`python {NAME} {options.model.name} --clients {options.clients} --seconds {options.seconds:g}` on "
        f"**{device}**, {engine}: {seen.requests} requests of up to {options.tokens} tokens, "
        f"{options.clients} in flight: "
        f"**{seen.tokens / took:,.0f} completion tokens per second**; the median of the first tokens came after "
        f"{statistics.median(first):.3f} s, 95% of them within {late:.3f} s.",
        "",
        *readings(seen),
        "",
        f"Clocks held down by: {', '.join(sorted(seen.throttled)) or 'nothing'}. "
        f"Readings that the device did not give: {', '.join(sorted(seen.absent)) or 'none'}.",
        "",
        *bills(bill),
        "",
        f"At {options.gpu_hour:g} USD a GPU-hour and {options.kwh:g} USD a kWh, from the start of the engine, loading "
        "and warm-up included.",
    ]
    if not seen.readings["modelyard_gpu_process_memory_bytes"]:
        lines += ["", "The driver lists no process of the engine: it may not have run on the GPU."]
    return "\n".join(lines)


def device_name() -> str:
    """The GPUs and the driver of this machine. Ends the program with 4 where there is none."""
    reader, why = open_reader()
    if not isinstance(reader, NvmlReader):
        reader.close()
        sys.stderr.write(f"there is no GPU to measure on ({why}): run this where nvidia-smi lists one\n")
        raise SystemExit(NO_GPU)
    names: Sequence[str] = [one.name or one.device for one in reader.read(time.time())]
    driver = pynvml.nvmlSystemGetDriverVersion()
    reader.close()
    counted = [f"{names.count(name)} × {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
    return f"{', '.join(counted)} (driver {driver})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file, or the folder of a checkpoint for vLLM")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm/bin/python", help="where vLLM is")
    parser.add_argument("--engine-args", default="{}", help="arguments of the engine, as JSON")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer, at most")
    parser.add_argument("--gpu-hour", type=float, default=2.5)
    parser.add_argument("--kwh", type=float, default=0.3)
    parser.add_argument("--write", type=Path, help="put the result into this document, between its markers")
    options = parser.parse_args()
    device = device_name()
    if options.model is None or not options.model.exists():
        parser.error("give a GGUF file or the folder of a checkpoint that exist here")
    seen, took, bill = measure(options)
    text = report(options, device, seen, took, bill)
    sys.stdout.write(text + "\n")
    if options.write:
        write(options.write, NAME, text)


if __name__ == "__main__":
    main()
