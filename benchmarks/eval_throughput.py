"""How much of an engine's throughput an evaluation run gets: the runner beside a plain load generator.

    python benchmarks/eval_throughput.py MODEL.gguf [--concurrency 4] [--cases 96] [--write docs/performance.md]

Method: one engine, the same requests (regression-core's cases, the same token limits, the engine's prompt cache off),
the same number in flight. The load generator is httpx in a loop that reads the stream and looks at nothing but the
usage at its end. The runner is what `modelyard eval run` calls: parsing, scoring, the journal on disk, progress. They
take turns, three times each after a warm-up, so that a drift of the machine falls on both. Tokens per second count from
the first request to the last answer; `whole` also counts what the runner does before and after (reading what is there,
the Parquet file). A second pair of rows has a mock engine that needs no CPU: 64 events per answer, 5 ms apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from document import write  # the neighbour in this folder

from eval import loaders, runner
from eval.client import body_of
from eval.results import RunStore, Subject
from eval.scorers import Tools
from eval.suite import Suite

ROOT = Path(__file__).resolve().parents[1]
TURNS = 3
SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params.n_ctx = 2048 * params.n_parallel
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
time.sleep(36000)
"""
USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


@contextmanager
def served(argv: list[str], port: int) -> Iterator[str]:
    """An engine as a process, from the moment it answers."""
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    if httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield url
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def plain(url: str, suite: Suite, concurrency: int) -> tuple[float, float]:
    """(tokens per second from the first request to the last answer, the same) of the load generator."""
    bodies = [
        {"model": "m", **body_of(case, suite.sampling, 0), "stream": True, "stream_options": {"include_usage": True}}
        for case in suite.cases
    ]
    tokens = 0

    async def worker(http: httpx.AsyncClient, queue: Iterator[dict[str, Any]]) -> None:
        nonlocal tokens
        for body in queue:
            tail = b""
            async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                async for chunk in response.aiter_raw():
                    tail = (tail + chunk)[-1000:]
            tokens += int(USAGE.findall(tail)[-1])

    async def load() -> float:
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=0)
        async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=120) as http:
            queue = iter(bodies)
            began = time.perf_counter()
            await asyncio.gather(*(worker(http, queue) for _ in range(concurrency)))
            return time.perf_counter() - began

    took = asyncio.run(load())
    return tokens / took, tokens / took


def evaluated(url: str, suite: Suite, concurrency: int) -> tuple[float, float]:
    """(tokens per second from the first request to the last answer, over the whole call) of the runner."""
    subject = Subject(ref="m", model="m", url=url)
    key = runner.key_of(suite, subject, seed=0, repeats=1)
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        run = RunStore(Path(folder)).open(suite, subject, key, fresh=True, now=time.time())
        began = time.perf_counter()
        runner.execute(
            runner.Plan(suite, subject, key, run, concurrency), runner.Tally(len(suite.cases)), tools=Tools()
        )
        whole = time.perf_counter() - began
        samples = list(run.samples().values())
    assert not [sample for sample in samples if sample.error]
    tokens = sum(sample.completion_tokens for sample in samples)
    first = min(sample.started_at for sample in samples)
    last = max(sample.started_at + sample.latency_s for sample in samples)
    return tokens / (last - first), tokens / whole


def measured(url: str, suite: Suite, concurrency: int) -> dict[str, tuple[float, float]]:
    """Medians over the turns."""
    ways = {"load generator": plain, "runner": evaluated}
    for way in ways.values():
        way(url, suite.limited(max(8, concurrency)), concurrency)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            found[name].append(way(url, suite, concurrency))
    return {
        name: (statistics.median(one for one, _ in rates), statistics.median(one for _, one in rates))
        for name, rates in found.items()
    }


def rows(engine: str, found: dict[str, tuple[float, float]]) -> list[str]:
    base, _ = found["load generator"]
    return [
        f"| {engine} | {name} | {rate:,.0f} ({rate / base:.2f}×) | {whole:,.0f} ({whole / base:.2f}×) |"
        for name, (rate, whole) in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file, e.g. the quickstart's SmolLM2 in Q4_1")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--cases", type=int, default=96)
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table between its markers")
    options = parser.parse_args()
    suite = loaders.load("regression-core", ROOT / ".cache").limited(options.cases)
    asked = [msgspec.structs.replace(case, request=case.request | {"cache_prompt": False}) for case in suite.cases]
    suite = msgspec.structs.replace(suite, cases=tuple(asked))
    port = free_port()
    argv = [sys.executable, "-c", SERVE, str(options.model), str(port), str(options.concurrency)]
    with served(argv, port) as url:
        real = measured(url, suite, options.concurrency)
    port = free_port()
    mock = [sys.executable, str(ROOT / "benchmarks" / "mock_engine.py"), "--port", str(port)]
    with served([*mock, "--events", "64", "--gap-s", "0.005"], port) as url:
        instant = measured(url, suite, options.concurrency)
    lines = [
        f"`python benchmarks/eval_throughput.py {options.model.name}` on {platform.machine()}, 2 cores, Python "
        f"{platform.python_version()}: {len(suite.cases)} cases, {options.concurrency} in flight, medians of {TURNS}.",
        "",
        "| engine | client | tokens/s, first request to last answer | tokens/s, the whole call |",
        "|---|---|---:|---:|",
        *rows("llama.cpp, SmolLM2-135M", real),
        *rows("mock, 5 ms a token", instant),
    ]
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if options.write:
        write(options.write, "benchmarks/eval_throughput.py", text)
    sys.stderr.write(json.dumps({"real": real, "mock": instant}) + "\n")


main()
