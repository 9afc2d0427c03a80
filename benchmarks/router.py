"""What routing costs: this router and its peers, one after another, on the same engines, in one run.

    python benchmarks/router.py --setup              # install the peers under .cache/bench, once
    python benchmarks/router.py                      # every peer that is installed
    python benchmarks/router.py --only modelyard nginx --seconds 3 --rounds 1
    python benchmarks/router.py --write docs/performance.md
    python benchmarks/router.py --soak-requests 1000000 --write docs/performance.md

Method: the router alone on core 0; the load generator (wrk) and two mock engines on core 1. The figures are the
router's own CPU time (user + system, all its processes) per request (32 connections) and per streamed event (100
streams, 64 events 10 ms apart). Every answer is checked by wrk: its status, its text to the last word, of a stream
every event and the [DONE]. Latencies are one run's; "added" is the median at one connection, less the median of
asking the engine itself. Of several rounds the one with the least CPU counts, for every router alike.

Modelyard runs whole, as `modelyard up` starts it: a key required, with every limit set, a bounded queue, the split
95:5 by a session header, accounting, metrics scraped as often as the shipped Prometheus configuration says. The peers
forward to the same two engines and do what they do by default.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from chart import Panel, bars
from document import write
from load import EVENTS, Loaded, script, wrk
from peers import ANY_KEY, BARE, ENGINE_PORTS, MODELYARD, PEERS, Peer, modelyard_key, ours, setup
from processes import ROOT, cpu_s, process_tree, resident_mb, router_workers, running

NAME = "benchmarks/router.py"
SOAK_NAME = "benchmarks/router.py --soak-requests"
ENGINE = ROOT / "benchmarks" / "mock_engine.py"
SCRAPE_S = 5.0
"""As configs/prometheus/prometheus.yml has it."""
SLOW_S = 6.0
"""What a slow router gets of either load: less, and one of its streams would not end."""
REFERENCES = ("vllm-router", "nginx")
LATE_S = 1.5
"""What is accounted for a little later counts too."""


@dataclass(frozen=True)
class Result:
    """One router's figures. None where not one stream came through."""

    router: str
    request_us: float
    event_us: float | None
    p50_us: float
    resident_mb: float
    answers: int
    wrong: int


@contextlib.contextmanager
def scraped(url: str) -> Iterator[None]:
    """Metrics are read as Prometheus reads them. Raises SystemExit where they are not there."""
    over = threading.Event()
    failures: list[str] = []

    def scrape() -> None:
        while not over.wait(SCRAPE_S):
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if b"modelyard_requests_total" not in answer.read():
                        failures.append("no requests in it")
            except OSError as error:
                failures.append(str(error))

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise SystemExit(f"{url} could not be scraped: {failures[0]}")


@contextlib.contextmanager
def serving(peer: Peer, port: int, folder: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The router, settled: its pid, and the headers that it is asked with."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running(peer.command(port, folder), 0, port, folder / "log", peer.env))
        time.sleep(peer.settle_s)
        key = ANY_KEY
        if peer.is_ours:
            key = ANY_KEY if peer.name == BARE else modelyard_key(folder)
            stack.enter_context(scraped(f"http://127.0.0.1:{port + 1}/metrics"))
        headers = {"Authorization": f"Bearer {key}", **peer.headers}
        until_it_answers(port, headers)
        yield process.pid, headers


def until_it_answers(port: int, headers: Mapping[str, str], model: str = "m") -> None:
    """Ask until an answer comes: a router that listens may not know its engines yet. Raises SystemExit after 60 s."""
    body = b'{"model":"%b","messages":[{"role":"user","content":"hi"}]}' % model.encode()
    sent = {"content-type": "application/json", **headers}
    limit = time.monotonic() + 60
    while True:
        try:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            urllib.request.urlopen(urllib.request.Request(url, body, sent), timeout=20).close()
        except OSError as error:
            if time.monotonic() > limit:
                raise SystemExit(f"it answers nothing: {error}") from None
            time.sleep(0.2)
        else:
            return


def measure(peer: Peer, port: int, folder: Path, seconds: float) -> list[Result]:
    """The figures of one router; for Modelyard also those of its worker alone."""
    whole_connections, streams = (8, 10) if peer.is_slow else (32, 100)
    with serving(peer, port, folder) as (pid, headers):
        whole = script(folder, stream=False, headers=headers)
        stream = script(folder, stream=True, headers=headers)
        groups = {peer.name: process_tree(pid)}
        if peer.is_ours:
            groups[f"{peer.name}, worker alone"] = router_workers(pid)
        wrk(port, whole, 8, 1 if peer.is_slow else 2)
        requests, request_us = _spent(groups, port, whole, whole_connections, seconds)
        alone = wrk(port, whole, 1, 3)
        flowing, stream_us = _spent(groups, port, stream, streams, seconds)
        for one in (requests, alone, flowing):
            if one.wrong:
                sys.stderr.write(f"{peer.name}: {one.wrong} of {one.answers} wrong, e.g. {one.example[:300]}\n")
        right = flowing.answers > flowing.wrong
        return [
            Result(
                router=name,
                request_us=request_us[name],
                event_us=stream_us[name] / EVENTS if right else None,
                p50_us=alone.p50_us,
                resident_mb=resident_mb(pids),
                answers=requests.answers + alone.answers + flowing.answers,
                wrong=requests.wrong + alone.wrong + flowing.wrong,
            )
            for name, pids in groups.items()
        ]


def _spent(
    groups: Mapping[str, Sequence[int]], port: int, path: Path, connections: int, seconds: float
) -> tuple[Loaded, dict[str, float]]:
    """What came back under load, and the microseconds of CPU that each group took per answer."""
    before = {name: cpu_s(pids) for name, pids in groups.items()}
    loaded = wrk(port, path, connections, seconds)
    time.sleep(LATE_S)
    answers = max(1, loaded.answers)
    return loaded, {name: (cpu_s(pids) - before[name]) / answers * 1e6 for name, pids in groups.items()}


def best(rounds: Sequence[Sequence[Result]]) -> list[Result]:
    """Per router the least CPU and latency of the rounds, the most memory, and all answers."""
    found: dict[str, Result] = {}
    for result in (one for results in rounds for one in results):
        old = found.get(result.router)
        if old is None:
            found[result.router] = result
            continue
        events = [us for us in (old.event_us, result.event_us) if us is not None]
        found[result.router] = replace(
            old,
            request_us=min(old.request_us, result.request_us),
            event_us=min(events) if events else None,
            p50_us=min(old.p50_us, result.p50_us),
            resident_mb=max(old.resident_mb, result.resident_mb),
            answers=old.answers + result.answers,
            wrong=old.wrong + result.wrong,
        )
    return list(found.values())


def table(results: Sequence[Result], direct_us: float) -> str:
    """The results as Markdown, with each figure's ratio to vllm-router's and nginx's where those ran."""
    of = {name: next((one for one in results if one.router == name), None) for name in REFERENCES}
    lines = [
        "| router | µs CPU / request | × vllm-router | × nginx | µs CPU / event | × vllm-router | × nginx "
        "| p50 added | × vllm-router | resident | wrong answers |",
        "|---|" + "---:|" * 10,
    ]
    for one in results:
        events = [reference.event_us if reference else None for reference in of.values()]
        requests = [reference.request_us if reference else None for reference in of.values()]
        reference = of["vllm-router"]
        cells = [
            one.router,
            f"{one.request_us:,.1f}",
            *(ratio(one.request_us, value) for value in requests),
            "none right" if one.event_us is None else f"{one.event_us:,.1f}",
            *(ratio(one.event_us, value) for value in events),
            f"{one.p50_us - direct_us:,.0f} µs",
            ratio(one.p50_us - direct_us, reference.p50_us - direct_us if reference else None),
            f"{one.resident_mb:,.0f} MB",
            f"{one.wrong:,} of {one.answers:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(value: float | None, of: float | None) -> str:
    return f"{value / of:.2f}" if value is not None and of and of > 0 else "–"


def draw(results: Sequence[Result], conditions: str) -> str:
    """The chart of the same results."""
    return bars(
        [
            Panel("CPU per request", "µs", [(one.router, one.request_us) for one in results]),
            Panel("CPU per streamed event", "µs", [(one.router, one.event_us) for one in results]),
        ],
        own=MODELYARD,
        note=f"Logarithmic scale; less is better. {NAME} on {conditions}",
    )


def soak(requests: int, port: int, folder: Path) -> str:
    """A sentence on the worker's memory after so many requests, measured ten times on the way."""
    peer = ours()
    with serving(peer, port, folder) as (pid, headers):
        path = script(folder, stream=False, headers=headers)
        workers = router_workers(pid)
        steps: list[tuple[int, float]] = []
        answered, wrong, rate = 0, 0, 2000.0
        while answered < requests:
            wanted = requests * (len(steps) + 1) / 10 - answered
            loaded = wrk(port, path, 32, max(1.0, wanted / rate))
            answered, wrong = answered + loaded.answers, wrong + loaded.wrong
            rate = max(1.0, loaded.answers / loaded.seconds)
            if answered >= requests * (len(steps) + 1) / 10:
                steps.append((answered, resident_mb(workers)))
                sys.stderr.write(f"{answered:,} requests: {steps[-1][1]:.1f} MB\n")
        memory = [mb for _, mb in steps]
        return (
            f"`python {SOAK_NAME} {requests}`: the worker's resident memory after {answered:,} requests is "
            f"{memory[-1]:.1f} MB; at every tenth of them: {', '.join(f'{mb:.1f}' for mb in memory)}. "
            f"{wrong:,} answers were wrong."
        )


def compare(options: argparse.Namespace, folder: Path) -> tuple[list[Result], float]:
    """Every router in turn, `rounds` times; and the median latency of the engine itself."""
    headers = {"Authorization": f"Bearer {ANY_KEY}"}
    direct = wrk(ENGINE_PORTS[0], script(folder, stream=False, headers=headers), 1, 3)
    rounds: list[list[Result]] = []
    for number in range(options.rounds):
        rounds.append([])
        for index, peer in enumerate(PEERS):
            if (options.only and peer.name not in options.only) or (number and peer.is_slow):
                continue
            if peer.program() is None:
                if not number:
                    sys.stderr.write(f"{peer.name}: not installed, left out ({peer.install})\n")
                continue
            sys.stderr.write(f"round {number + 1}: {peer.name} …\n")
            own = folder / f"{index}-{number}"
            own.mkdir()
            seconds = SLOW_S if peer.is_slow else options.seconds
            try:
                rounds[-1] += measure(peer, 9200 + 10 * index, own, seconds)
            except SystemExit as failure:
                if peer.is_ours:
                    raise
                sys.stderr.write(f"{peer.name}: left out: {failure}\n")
    return best(rounds), direct.p50_us


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="install the peers that are not there, then stop")
    parser.add_argument("--only", nargs="+", choices=[peer.name for peer in PEERS], help="measure these alone")
    parser.add_argument("--seconds", type=float, default=6, help="of load per figure and round (default 6)")
    parser.add_argument("--rounds", type=int, default=2, help="for the quick routers (default 2)")
    parser.add_argument("--soak-requests", type=int, default=0, help="the worker's memory over N requests", metavar="N")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument(
        "--write", type=Path, help="put the table into this document, between its markers, and the chart beside it"
    )
    return parser


def main() -> None:
    options = arguments().parse_args()
    if options.setup:
        setup()
        return
    for program in ("wrk", "taskset"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not there: install its package (apt-get install wrk util-linux)")
    conditions = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        for port in ENGINE_PORTS:
            command = [sys.executable, str(ENGINE), "--port", str(port), "--events", str(EVENTS)]
            stack.enter_context(running(command, 1, port, folder / f"engine-{port}.log"))
        if options.soak_requests:
            line = soak(options.soak_requests, 9290, folder)
            print(line)
            if options.write:
                write(options.write, SOAK_NAME, line)
            return
        results, direct_us = compare(options, folder)
    text = table(results, direct_us)
    print(json.dumps([asdict(one) for one in results]) if options.json else text)
    if options.write:
        picture = options.write.parent / "router-benchmark.svg"
        picture.write_text(draw(results, conditions))
        image = f"![CPU per request and per streamed event]({picture.name})"
        asked = f"The engine itself, asked directly: p50 {direct_us:.0f} µs."
        write(options.write, NAME, f"`python {NAME}` on {conditions}:\n\n{text}\n\n{asked}\n\n{image}")


if __name__ == "__main__":
    main()
