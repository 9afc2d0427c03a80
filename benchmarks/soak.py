"""A long run at 80% of capacity with faults injected; every answer, record, connection and megabyte accounted for.

    python benchmarks/soak.py --minutes 30 [--write docs/performance.md]

Method: a whole yard on core 0 in front of two engines that misbehave on demand (tests/engines/fake_engine.py) and this
client, on core 1. What that arrangement can do is found first, then four fifths of it are asked for. Meanwhile engines
are killed and started again, stall, answer 500, cut streams, end them without a word, and talk nonsense; routes change;
in the first third of the time the worker is killed (kill -9) three times; some clients leave, some stop reading.

It ends with a table of verdicts, and with 1 where one of them is a violation:
- no wrong answer: each is whole to the last word with its usage, or says that it is not;
- no connection ends without a word, but for those to a worker in the moment in which it is killed;
- each request has one record, with the tokens that the client got, and the ledger's total is their number;
- afterwards nothing is in flight, no connection is left, and the worker's memory has not grown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import uvloop
from document import write
from peers import modelyard_key, modelyard_program
from processes import ROOT, process_tree, resident_mb, router_workers, running
from router import until_it_answers
from soak_account import Tally, account_of, check_records, excused, growth_mb, metric
from soak_client import Ask, Connection, Verdict, judge

NAME = "benchmarks/soak.py"
PORT, ADMIN_PORT = 9300, 9301
ENGINE_PORTS = (9311, 9312)
ENGINE = ROOT / "tests" / "engines" / "fake_engine.py"
EVENTS, GAP_S = 24, 0.01
CAPACITY_S = 8.0
CAPACITY_CLIENTS = 48
SHARE = 0.8
OUTSTANDING_MAX = 400
GROWTH_MB_MAX = 4.0
GROWTH_MIN_S = 300.0
"""A shorter run is over before a worker that was started anew has its working set."""
CALM_S = 4.0
SEED = 20_261

YARD = f"""
server: {{port: {PORT}, admin_port: {ADMIN_PORT}, require_keys: true, drain_s: 5}}
prices: {{cpu_hour: 0.12}}
models:
  m:
    versions:
      v1: {{engine: external, url: "http://127.0.0.1:{ENGINE_PORTS[0]}"}}
      v2: {{engine: external, url: "http://127.0.0.1:{ENGINE_PORTS[1]}"}}
    route: {{v1: 5000, v2: 5000}}
    fallback: [v1, v2]
    equivalent: [[v1, v2]]
    timeouts: {{connect_s: 1, first_byte_s: 3, first_token_s: 3, between_tokens_s: 2, total_s: 60}}
    admission: {{inflight_max: 512, queue_max: 512, queue_timeout_s: 5}}
"""

FAULTS: Mapping[str, Mapping[str, object]] = {
    "stalls": {"stall_after_events": 3},
    "answers 500": {"status": 500},
    "cuts streams": {"cut_after_events": 4},
    "ends streams without a word": {"end_after_events": 5},
    "sends errors in streams": {"error_event_after_events": 6},
    "talks nonsense": {"garbage": True},
    "is late": {"first_byte_delay_s": 1.0},
}
SOUND = {
    "stall_after_events": -1,
    "status": 200,
    "cut_after_events": -1,
    "end_after_events": -1,
    "error_event_after_events": -1,
    "garbage": False,
    "first_byte_delay_s": 0.0,
}


class Engine:
    """A fake engine on a port of its own; a new process after each death."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        flags = ["--port", str(self.port), "--events", str(EVENTS), "--gap-s", str(GAP_S)]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                ["taskset", "-c", "1", sys.executable, str(ENGINE), *flags],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def behave(self, how: Mapping[str, object]) -> None:
        data = json.dumps(how).encode()
        url = f"http://127.0.0.1:{self.port}/fake/behave"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(url, data), timeout=5).close()


class Load:
    """Requests at a pace, each on a connection from a pool."""

    def __init__(self, headers: Mapping[str, str], tally: Tally, rng: random.Random) -> None:
        self._headers = headers
        self._tally = tally
        self._rng = rng
        self._idle: list[Connection] = []
        self._numbers = 0
        self.running: set[asyncio.Task[None]] = set()

    def ask(self) -> Ask:
        """One more request: mostly patient, now and then not."""
        self._numbers += 1
        rng, kind = self._rng, self._rng.random()
        ask = Ask(f"soak-{self._numbers:08d}", rng.randint(1, EVENTS), stream=kind > 0.3)
        if kind > 0.96:
            ask.leaves_after = rng.randint(1, 6)
        elif kind > 0.93:
            ask.pauses_s = rng.uniform(0.2, 2.0)
        return ask

    async def one(self) -> None:
        """Ask once and note the verdict."""
        ask = self.ask()
        connection = await self._connection(ask)
        if connection is not None:
            await connection.ask(ask)
            if connection.usable and not ask.left:
                self._idle.append(connection)
            else:
                connection.close()
        verdict, why = judge(ask)
        if verdict == "broken" and excused(ask, self._tally.kills):
            verdict = "killed"
        self._tally.asks.append(ask)
        self._tally.verdicts[verdict] += 1
        if verdict in ("wrong", "broken") and len(self._tally.examples) < 10:
            self._tally.examples.append(f"{verdict}: {ask.id}: {why}")
        ask.body.clear()

    async def _connection(self, ask: Ask) -> Connection | None:
        while self._idle:
            found = self._idle.pop()
            if found.usable:
                return found
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(lambda: Connection(PORT, self._headers), "127.0.0.1", PORT)
        except OSError as error:
            ask.began = ask.ended = time.time()
            ask.failure = f"no connection: {error}"
            return None
        return made

    async def closed_loop(self, clients: int, seconds: float) -> float:
        """Requests per second that so many clients get, each asking as soon as it is answered."""
        until = time.monotonic() + seconds
        before = len(self._tally.asks)

        async def client() -> None:
            while time.monotonic() < until:
                await self.one()

        await asyncio.gather(*(client() for _ in range(clients)))
        return (len(self._tally.asks) - before) / seconds

    async def paced(self, per_second: float, seconds: float) -> None:
        """Requests at random moments, so many a second on average, whatever became of the ones before."""
        loop = asyncio.get_running_loop()
        until = at = loop.time()
        until += seconds
        while at < until:
            at += self._rng.expovariate(per_second)
            await asyncio.sleep(max(0.0, at - loop.time()))
            if len(self.running) >= OUTSTANDING_MAX:
                self._tally.skipped += 1
                continue
            task = loop.create_task(self.one())
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        if self.running:
            await asyncio.wait(self.running, timeout=90)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class Chaos:
    """Faults, one after another, until cancelled."""

    def __init__(self, engines: Sequence[Engine], state: Path, pid: int, tally: Tally, rng: random.Random) -> None:
        self._engines = engines
        self._state = state
        self._pid = pid
        self._tally = tally
        self._rng = rng

    async def faults(self) -> None:
        """Never both engines at once: who has no sound one left can only say so."""
        while True:
            await asyncio.sleep(self._rng.uniform(0.5, 3.0))
            engine = self._rng.choice(self._engines)
            name = self._rng.choice(["is killed", "routes change", *FAULTS])
            self._tally.faults[name] += 1
            if name == "is killed":
                engine.kill()
                await asyncio.sleep(self._rng.uniform(0.2, 2.0))
                engine.start()
                await asyncio.sleep(1.0)
            elif name == "routes change":
                await self._change_route()
            else:
                await asyncio.to_thread(engine.behave, FAULTS[name])
                await asyncio.sleep(self._rng.uniform(0.5, 3.0))
                await asyncio.to_thread(engine.behave, SOUND)

    async def _change_route(self) -> None:
        share = self._rng.randrange(0, 10_001, 500)
        weights = [f"v1={share}", f"v2={10_000 - share}"]
        command = [*modelyard_program(), "route", "set", "m", *weights, "--state-dir", str(self._state)]
        done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            self._tally.examples.append(f"route set: {done.stderr.strip()[-300:]}")

    async def kill_workers(self, seconds: float) -> None:
        """Three times in the first third."""
        for _ in range(3):
            await asyncio.sleep(seconds / 10)
            for pid in router_workers(self._pid):
                self._tally.kills.append(time.time())
                self._tally.faults["the worker is killed"] += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def watch(self) -> None:
        """Note the workers' memory."""
        while True:
            self._tally.memory.append((time.time(), resident_mb(router_workers(self._pid))))
            await asyncio.sleep(2.0)


def scrape() -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{ADMIN_PORT}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def leftovers(pid: int) -> list[str]:
    """Connections of clients that the workers still hold, and half-closed ones of any kind."""
    return [
        f"{one.status} {one.laddr}–{one.raddr}"
        for worker in router_workers(pid)
        for one in psutil.Process(worker).net_connections("tcp")
        if (one.laddr.port == PORT and one.status == psutil.CONN_ESTABLISHED) or one.status == psutil.CONN_CLOSE_WAIT
    ]


async def soak(
    seconds: float, state: Path, pid: int, headers: Mapping[str, str], engines: Sequence[Engine]
) -> tuple[Tally, float]:
    """The run itself: what was seen, and the pace in requests per second."""
    tally, rng = Tally(), random.Random(SEED)
    load = Load(headers, tally, rng)
    capacity = await load.closed_loop(CAPACITY_CLIENTS, CAPACITY_S)
    sys.stderr.write(f"capacity: {capacity:.0f} requests a second; {SHARE:.0%} of it for {seconds:.0f} s\n")
    chaos = Chaos(engines, state, pid, tally, rng)
    tasks = [asyncio.create_task(work) for work in (chaos.faults(), chaos.kill_workers(seconds), chaos.watch())]
    await load.paced(SHARE * capacity, seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for engine in engines:
        await asyncio.to_thread(engine.behave, SOUND)
    if load.running:
        tally.examples.append(f"{len(load.running)} requests had no end after 90 s")
        tally.verdicts["wrong"] += len(load.running)
    load.close()
    await asyncio.sleep(CALM_S)
    return tally, SHARE * capacity


def verdicts(tally: Tally, state: Path, pid: int, seconds: float) -> list[tuple[str, str, bool]]:
    """(what must hold, what was seen, whether it holds)"""
    text = scrape()
    account = account_of(state / "requests")
    problems = check_records(tally, account)
    total, left, growth = metric(text, "modelyard_requests_total"), leftovers(pid), growth_mb(tally.memory)
    inflight = metric(text, "modelyard_inflight_requests")
    answers: dict[Verdict, int] = {
        name: tally.verdicts[name] for name in ("right", "told", "left", "killed", "broken", "wrong")
    }
    for line in (*tally.examples, *problems[:10], *left[:5]):
        sys.stderr.write(line + "\n")
    return [
        ("answers right to the last word", f"{answers['right']:,}", answers["right"] > 0),
        ("incomplete, and said so", f"{answers['told']:,}", True),
        (
            "asked again by the router, streams that went on elsewhere",
            f"{account.retried:,}, {account.continued:,}",
            True,
        ),
        ("clients that left", f"{answers['left']:,}", True),
        ("cut off as the worker was killed", f"{answers['killed']:,}", True),
        ("wrong answers", str(answers["wrong"]), answers["wrong"] == 0),
        ("connections that ended without a word", str(answers["broken"]), answers["broken"] == 0),
        ("requests without exactly one right record", str(len(problems)), not problems),
        ("records, and the ledger's total", f"{account.records:,} and {total:,.0f}", total == account.records),
        ("requests in flight afterwards", f"{inflight:.0f}", inflight == 0),
        ("connections left afterwards", str(len(left)), not left),
        ("growth of the worker's memory", f"{growth:+.1f} MB", growth <= GROWTH_MB_MAX or seconds < GROWTH_MIN_S),
    ]


def report(minutes: float, pace: float, tally: Tally, seen: Sequence[tuple[str, str, bool]]) -> str:
    """The table."""
    faults = ", ".join(f"{name} {count}×" for name, count in sorted(tally.faults.items()))
    lines = [
        f"`python {NAME} --minutes {minutes:g}` on {platform.machine()}, {os.cpu_count()} cores: {len(tally.asks):,} "
        f"requests at {pace:.0f} a second. Faults: {faults}.",
        "",
        "| | seen | |",
        "|---|---:|---|",
        *(f"| {what} | {value} | {'' if holds else '**violated**'} |" for what, value, holds in seen),
    ]
    return "\n".join(lines)


def run(minutes: float, folder: Path) -> tuple[str, bool]:
    """Everything, from start to stop: the report, and whether all holds."""
    (folder / "yard.yaml").write_text(YARD)
    state = folder / "state"
    command = [*modelyard_program(), "up", str(folder / "yard.yaml"), "--state-dir", str(state)]
    engines = [Engine(port, folder / f"engine-{port}.log") for port in ENGINE_PORTS]
    try:
        for engine in engines:
            engine.start()
        with running(command, 0, ADMIN_PORT, folder / "log") as process:
            key = modelyard_key(folder)
            headers = {"authorization": f"Bearer {key}"}
            until_it_answers(PORT, headers)
            tally, pace = uvloop.run(soak(minutes * 60, state, process.pid, headers, engines))
            seen = verdicts(tally, state, process.pid, minutes * 60)
            survivors = process_tree(process.pid)
        seen.append(("processes left", *_gone(survivors)))
    finally:
        for engine in engines:
            engine.kill()
    return report(minutes, pace, tally, seen), all(holds for _, _, holds in seen)


def _gone(pids: Sequence[int]) -> tuple[str, bool]:
    left = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    return str(len(left)), not left


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of load with faults (default 30)")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its markers")
    return parser


def main() -> None:
    options = arguments().parse_args()
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory(prefix="modelyard-soak-") as folder:
        text, holds = run(options.minutes, Path(folder))
    print(text)
    if options.write:
        write(options.write, NAME, text)
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
