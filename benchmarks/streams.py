"""A thousand streams at once on one router worker: gaps, fairness, and what slow readers cost.

    python benchmarks/streams.py [--streams 1000 --events 100 --gap-s 0.2] [--write docs/performance.md]

Method: the yard alone on core 0; a mock engine and the client on core 1. Every stream has the same number of events at
the same cadence, begun over one cadence so that they do not fall together. An event's stall is its gap to the one
before, less the cadence. The same client asks the engine directly first: what it sees there is the machine's and the
engine's own. Then slow readers ask for far more than they read; the worker's memory is read, they go on reading, and
every event must be there. Every stream is checked: all its events and the [DONE].
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop
from document import write
from peers import ENGINE_PORTS, ours
from processes import ROOT, cpu_s, resident_mb, router_workers, running
from router import serving, until_it_answers

NAME = "benchmarks/streams.py"
STALL_S = 0.05
WORD = b' hello"'
SLOW_EVENTS, SLOW_GAP_S = 20_000, 0.0005
EVENT_BYTES = 190
PORT = 9290


class Stream(asyncio.Protocol):
    """One stream: when its events came."""

    def __init__(self, request: bytes, *, paused: bool = False) -> None:
        self.request = request
        self.times: list[float] = []
        self.events = 0
        self.began = 0.0
        self.ended = 0.0
        self.tail = b""
        self.head = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._paused = paused

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.began = time.perf_counter()
        self.transport.write(self.request)
        if self._paused:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self.head:
            self.head = data[:1000]
        joined = self.tail + data
        found = joined.count(WORD)
        if found:
            self.events += found
            self.times.append(now)
            joined = joined[joined.rfind(WORD) + len(WORD) :]
        if b"data: [DONE]" in joined:
            self.ended = now
            self.transport.close()
            self._finish()
        self.tail = joined[-32:]

    def connection_lost(self, error: Exception | None) -> None:
        self._finish()

    def is_whole(self, events: int) -> bool:
        """All events and the [DONE], as they came: a stream that is held back and sent at once is none."""
        return self.events == events and self.ended > 0 and len(self.times) > events // 2

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


@dataclass
class Seen:
    """What a run of streams showed."""

    streams: int
    whole: int
    events: int
    stalls_s: list[float] = field(repr=False)
    """Per gap: its excess over the cadence."""
    worst_s: list[float] = field(repr=False)
    """Per stream: its largest stall."""
    lasted_s: list[float] = field(repr=False)
    """Per stream: request to [DONE]."""
    lag_s: float = 0.0
    """The client's own longest delay."""
    example: str = ""
    """What a stream began with that was not whole."""


def quantile(values: Sequence[float], q: float) -> float:
    """Nearest rank; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def seen(streams: Sequence[Stream], events: int, gap_s: float, lag_s: float) -> Seen:
    """The figures of finished streams."""
    gaps = [
        [after - before - gap_s for before, after in zip(one.times, one.times[1:], strict=False)] for one in streams
    ]
    return Seen(
        streams=len(streams),
        whole=sum(one.is_whole(events) for one in streams),
        events=sum(one.events for one in streams),
        stalls_s=[gap for some in gaps for gap in some],
        worst_s=[max(some, default=0.0) for some in gaps],
        lasted_s=[one.ended - one.began for one in streams if one.ended],
        lag_s=lag_s,
        example=next((repr(one.head) for one in streams if not one.is_whole(events)), ""),
    )


def request_for(model: str, headers: Mapping[str, str]) -> bytes:
    body = b'{"model":"%b","messages":[{"role":"user","content":"hi"}],"stream":true}' % model.encode()
    lines = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body


async def watch(lag: list[float]) -> None:
    """Append how late this process's own timers are."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.01)
        lag.append(time.perf_counter() - before - 0.01)


async def flow(port: int, request: bytes, count: int, events: int, gap_s: float) -> Seen:
    """`count` streams at once, begun over one cadence."""
    loop = asyncio.get_running_loop()
    lag: list[float] = []
    watching = loop.create_task(watch(lag))
    began = loop.time()
    streams: list[Stream] = []
    for number in range(count):
        await asyncio.sleep(began + 5 * gap_s * number / count - loop.time())
        _, protocol = await loop.create_connection(lambda: Stream(request), "127.0.0.1", port)
        streams.append(protocol)
    del lag[:]  # the connecting is not what is measured
    limit = events * gap_s * 3 + 60
    await asyncio.wait([one.over for one in streams], timeout=limit)
    watching.cancel()
    return seen(streams, events, gap_s, max(lag, default=0.0))


async def read_slowly(port: int, request: bytes, count: int, workers: Sequence[int]) -> tuple[float, float, int]:
    """Megabytes of the worker before and while `count` clients read nothing, and how many got all in the end."""
    loop = asyncio.get_running_loop()
    before = resident_mb(workers)
    streams = []
    for _ in range(count):
        _, protocol = await loop.create_connection(lambda: Stream(request, paused=True), "127.0.0.1", port)
        streams.append(protocol)
    most = before
    until = loop.time() + SLOW_EVENTS * SLOW_GAP_S + 5
    while loop.time() < until:
        await asyncio.sleep(0.5)
        most = max(most, resident_mb(workers))
    for one in streams:
        one.transport.resume_reading()
    await asyncio.wait([one.over for one in streams], timeout=120)
    return before, most, sum(one.events == SLOW_EVENTS and one.ended > 0 for one in streams)


def rows(name: str, one: Seen) -> str:
    """One row of the table."""
    cells = (
        name,
        f"{one.whole:,} of {one.streams:,}",
        f"{quantile(one.stalls_s, 0.5) * 1e3:.1f} ms",
        f"{quantile(one.stalls_s, 0.999) * 1e3:.1f} ms",
        f"{max(one.worst_s, default=0.0) * 1e3:.1f} ms",
        str(sum(stall > STALL_S for stall in one.stalls_s)),
        f"{min(one.lasted_s, default=0):.2f}–{max(one.lasted_s, default=0):.2f} s",
        f"{one.lag_s * 1e3:.1f} ms",
    )
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| | whole streams | stall, median | stall, 99.9% | longest stall | stalls over 50 ms | streams took "
    "| client's own lag |\n|---|---:|---:|---:|---:|---:|---:|---:|"
)


def measure(options: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """The text, and whether every stream was whole."""
    engine = [sys.executable, str(ROOT / "benchmarks" / "mock_engine.py")]
    cadences = ((options.events, options.gap_s), (SLOW_EVENTS, SLOW_GAP_S))
    with contextlib.ExitStack() as stack:
        for port, (events, gap_s) in zip(ENGINE_PORTS, cadences, strict=True):
            command = [*engine, "--port", str(port), "--events", str(events), "--gap-s", str(gap_s)]
            stack.enter_context(running(command, 1, port, folder / f"engine-{port}.log"))
        shape = (options.streams, options.events, options.gap_s)
        direct = uvloop.run(flow(ENGINE_PORTS[0], request_for("m", {}), *shape))
        pid, headers = stack.enter_context(serving(ours(), PORT, folder))
        for version in ("m@v1", "m@v2"):
            until_it_answers(PORT, headers, version)
        if direct.example:
            raise SystemExit(f"the engine itself gave a stream that was not whole: {direct.example}")
        workers = router_workers(pid)
        before = cpu_s(workers)
        routed = uvloop.run(flow(PORT, request_for("m@v1", headers), *shape))
        event_us = (cpu_s(workers) - before) / max(1, routed.events) * 1e6
        slow = uvloop.run(read_slowly(PORT, request_for("m@v2", headers), options.slow, workers))
    unread = SLOW_EVENTS * EVENT_BYTES / 1e6
    text = "\n".join(
        (
            f"`python {NAME}` on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}: "
            f"{options.streams:,} streams at once of {options.events} events, {options.gap_s * 1e3:.0f} ms apart, "
            f"on one worker of {ours().name}.",
            "",
            HEAD,
            rows("the engine, asked directly", direct),
            rows("through the worker", routed),
            "",
            f"{options.slow} clients that read nothing of {unread:.1f} MB each: the worker grew from {slow[0]:.1f} to "
            f"{slow[1]:.1f} MB; once they read on, {slow[2]} of {options.slow} got every event. "
            f"The worker took {event_us:.1f} µs of CPU per event.",
        )
    )
    if routed.example:
        sys.stderr.write(f"a stream that was not whole began: {routed.example}\n")
    return text, routed.whole == routed.streams and slow[2] == options.slow


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--events", type=int, default=100, help="of each stream (default 100)")
    parser.add_argument("--gap-s", type=float, default=0.2, help="between two events (default 0.2)")
    parser.add_argument("--slow", type=int, default=20, help="clients that read nothing for a while (default 20)")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its markers")
    return parser


def main() -> None:
    options = arguments().parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4 * options.streams:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder:
        text, whole = measure(options, Path(folder))
    print(text)
    if options.write:
        write(options.write, NAME, text)
    if not whole:
        raise SystemExit("a stream was not whole")


if __name__ == "__main__":
    main()
