"""What routing costs: this router and its peers, one after another, on the same engines, in one run.

    python benchmarks/router.py                      # every peer that is installed
    python benchmarks/router.py --only modelyard nginx
    python benchmarks/router.py --write docs/performance.md

Method: the router alone on core 0; the load generator (wrk) and two mock engines on core 1. The figures are the
router's own CPU time (user + system, all its processes) per request and per streamed event, which hold on a noisy
machine; latencies are one run's. Modelyard runs whole, as `modelyard up` starts it: split 95:5 by a session header,
accounting, metrics. A peer forwards to the same two engines. Before anything is measured, answers are checked.

Needs wrk and nginx (packages of those names) and, for vllm-router, the `bench` extra.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENGINE_PORTS = (9101, 9102)
EVENTS = 64
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BEGIN, END = "<!-- benchmarks/router.py: begin -->", "<!-- benchmarks/router.py: end -->"

LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-benchmark"
local text = string.rep("Tell me about rivers. ", 40)
wrk.body = '{"model":"m","messages":[{"role":"system","content":"You are a helpful assistant."},' ..
  '{"role":"user","content":"' .. text .. '"}],"max_tokens":100,"temperature":0.2STREAM}'
local n = 0
request = function()
  n = n + 1
  wrk.headers["X-Session-Id"] = "session-" .. (n % 1000)
  return wrk.format()
end
"""

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  upstream engines {{ server 127.0.0.1:{a} weight=19; server 127.0.0.1:{b}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""

YARD = """
server: {{port: {port}, admin_port: {admin_port}}}
prices: {{cpu_hour: 0.12}}
models:
  m:
    versions:
      v1: {{engine: external, url: "http://127.0.0.1:{a}"}}
      v2: {{engine: external, url: "http://127.0.0.1:{b}"}}
    route: {{v1: 9500, v2: 500}}
    fallback: [v1]
"""


@dataclass(frozen=True)
class Peer:
    """A router to measure: the command that serves on `port`, given a folder of its own."""

    name: str
    command: Callable[[int, Path], list[str]]
    needs: str
    settle_s: float = 2.0


def modelyard(port: int, folder: Path) -> list[str]:
    config = folder / "yard.yaml"
    config.write_text(YARD.format(port=port, admin_port=port + 1, a=ENGINE_PORTS[0], b=ENGINE_PORTS[1]))
    program = "import sys; sys.argv[0] = 'modelyard'; from serving.cli import main; main()"
    return [sys.executable, "-c", program, "up", str(config), "--state-dir", str(folder / "state")]


def nginx(port: int, folder: Path) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, a=ENGINE_PORTS[0], b=ENGINE_PORTS[1]))
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(config), "-p", str(folder)]


def vllm_router(port: int, folder: Path) -> list[str]:
    urls = [f"http://127.0.0.1:{engine}" for engine in ENGINE_PORTS]
    program = Path(sys.executable).with_name("vllm-router")
    return [str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin", "--worker-urls", *urls]


PEERS = (
    Peer("nginx", nginx, "nginx"),
    Peer("vllm-router", vllm_router, "vllm-router", settle_s=3.0),
    Peer("modelyard", modelyard, "", settle_s=3.0),
)


@dataclass
class Result:
    """One router's figures."""

    router: str
    request_cpu_us: float
    p50_one_connection: str
    event_cpu_us: float
    resident_mb: float
    requests: int
    events: int
    not_2xx: int


def process_tree(pid: int) -> list[int]:
    """`pid` and its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for candidate in found:
        found += [child for child, parent in parents.items() if parent == candidate]
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time of processes so far: user and system."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def resident_mb(pids: Sequence[int]) -> float:
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"it ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port} after 90 s:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def running(command: list[str], core: int, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one core, ready at `port`; ended by SIGTERM, then SIGKILL."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=output,
            stderr=output,
            cwd=HERE.parent,
            start_new_session=True,
        )
    try:
        wait_for(port, process, log)
        yield process
    finally:
        pids = process_tree(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wrk(port: int, script: Path, connections: int, seconds: int) -> tuple[int, str, int]:
    """Requests answered, the median latency as wrk prints it, and how many answers were not 2xx or broke off."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = [
        "taskset",
        "-c",
        "1",
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count = re.search(r"(\d+) requests in", output)
    median = re.search(r"50%\s+([\d.]+\w+)", output)
    bad = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    for errors in re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output):
        bad += sum(map(int, errors))
    return int(count[1]) if count else 0, median[1] if median else "?", bad


def check(port: int) -> None:
    """One whole answer and one stream must be right to the last word."""
    for stream in (False, True):
        body = json.dumps(
            {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}, separators=(",", ":")
        )
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", body.encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = response.read().decode()
        if stream:
            assert answer.count('"content":" hello"') == EVENTS, answer[:500]
            assert answer.rstrip().endswith("data: [DONE]"), answer[-200:]
        else:
            assert json.loads(answer)["usage"]["completion_tokens"] == 100, answer[:500]


def measure(peer: Peer, port: int, folder: Path, seconds: int) -> list[Result]:
    """The figures of one router; for Modelyard also those of its worker alone."""
    scripts = {}
    for kind, stream in (("whole", ""), ("stream", ',"stream":true')):
        scripts[kind] = folder / f"{kind}.lua"
        scripts[kind].write_text(LUA.replace("STREAM", stream))
    with running(peer.command(port, folder), 0, port, folder / "log") as process:
        time.sleep(peer.settle_s)
        check(port)
        tree = process_tree(process.pid)
        groups = {peer.name: tree}
        if peer.name == "modelyard":
            workers = [pid for pid in tree if "serving.router.worker" in Path(f"/proc/{pid}/cmdline").read_text()]
            groups = {"modelyard": tree, "modelyard, its worker alone": workers}
        wrk(port, scripts["whole"], 8, 2)
        before = {name: cpu_s(pids) for name, pids in groups.items()}
        requests, _, bad = wrk(port, scripts["whole"], 32, seconds)
        time.sleep(1.5)  # what is accounted for a little later counts too
        request_us = {name: (cpu_s(pids) - before[name]) / requests * 1e6 for name, pids in groups.items()}
        _, median, more = wrk(port, scripts["whole"], 1, 3)
        bad += more
        time.sleep(1.5)
        before = {name: cpu_s(pids) for name, pids in groups.items()}
        streams, _, more = wrk(port, scripts["stream"], 100, seconds)
        time.sleep(1.5)
        events = streams * EVENTS
        return [
            Result(
                router=name,
                request_cpu_us=round(request_us[name], 1),
                p50_one_connection=median,
                event_cpu_us=round((cpu_s(pids) - before[name]) / events * 1e6, 1),
                resident_mb=round(resident_mb(pids)),
                requests=requests,
                events=events,
                not_2xx=bad + more,
            )
            for name, pids in groups.items()
        ]


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, with each figure's ratio to vllm-router's where that ran."""
    reference = next((result for result in results if result.router == "vllm-router"), None)

    def ratio(value: float, of: float | None) -> str:
        return f" ({value / of:.2f}×)" if of else ""

    lines = [
        "| router | µs CPU / request | µs CPU / streamed event | p50, 1 connection | resident | wrong answers |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        request = f"{result.request_cpu_us}{ratio(result.request_cpu_us, reference and reference.request_cpu_us)}"
        event = f"{result.event_cpu_us}{ratio(result.event_cpu_us, reference and reference.event_cpu_us)}"
        lines.append(
            f"| {result.router} | {request} | {event} | {result.p50_one_connection} | {result.resident_mb:.0f} MB "
            f"| {result.not_2xx} of {result.requests + result.events // EVENTS} |"
        )
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Replace what stands between the markers in `path`."""
    document = path.read_text()
    before, _, rest = document.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{path} has no lines {BEGIN} and {END} to write between")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[peer.name for peer in PEERS], help="measure these alone")
    parser.add_argument("--seconds", type=int, default=8, help="of load per figure (default 8)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its markers")
    options = parser.parse_args()
    for program in ("wrk", "taskset"):
        if shutil.which(program) is None:
            raise SystemExit(
                f"{program} is not there: install the package that has it (apt-get install wrk util-linux)"
            )
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        for port in ENGINE_PORTS:
            command = [sys.executable, str(HERE / "mock_engine.py"), "--port", str(port), "--events", str(EVENTS)]
            stack.enter_context(running(command, 1, port, folder / f"engine-{port}.log"))
        for index, peer in enumerate(PEERS):
            if options.only and peer.name not in options.only:
                continue
            if peer.needs and not (shutil.which(peer.needs) or Path(sys.executable).with_name(peer.needs).exists()):
                sys.stderr.write(f"{peer.name}: not installed, left out\n")
                continue
            sys.stderr.write(f"{peer.name} …\n")
            own = folder / peer.name
            own.mkdir()
            results += measure(peer, 9200 + 10 * index, own, options.seconds)
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        print(table(results))
    if options.write:
        conditions = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        write(options.write, f"`python benchmarks/router.py` on {conditions}:\n\n{table(results)}")


if __name__ == "__main__":
    main()
