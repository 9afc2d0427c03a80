"""What a request's size costs: CPU per request for bodies of 1 KB, 100 KB and 1 MB, ours and nginx's.

    python benchmarks/bodies.py [--seconds 4] [--write docs/performance.md]

Method: the router alone on core 0; a mock engine and the client on core 1; one connection, one request after the other,
every answer checked. CPU time is the kernel's count for the router's processes (for us its worker: the control plane
does nothing per request of a size), over the requests of the run. nginx keeps bodies in memory here
(`client_body_buffer_size`), where its default writes those above 16 KB to a file. Bodies are made twice: `document` is
one message that is one string without a quote, as images and many documents are; `code` is full of quotes and line
ends, which no scanner can leap over. `stream` asks for a stream without usage, so that ours puts that wish in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from document import write
from peers import ENGINE_PORTS, MODELYARD, PEERS, nginx, ours
from processes import ROOT, cpu_s, process_tree, router_workers, running
from router import serving

NAME = "benchmarks/bodies.py"
SIZES = {"1 KB": 1_000, "100 KB": 100_000, "1 MB": 1_000_000}
TEXTS = {"document": "The quick brown fox jumps over the lazy dog. ", "code": 'if name == "a\\n":\n\tprint("b")\n'}
PORT = 9390


def nginx_in_memory(port: int, folder: Path) -> list[str]:
    """nginx as it is compared elsewhere, with room for a whole body."""
    command = nginx(port, folder)
    config = folder / "nginx.conf"
    more = "access_log off; client_body_buffer_size 2m; keepalive_requests 1000000000;"
    config.write_text(config.read_text().replace("access_log off;", more, 1))
    return command


def body(size: int, text: str, *, stream: bool) -> bytes:
    """A chat request of about `size` bytes, its fields in the order of OpenAI's Python SDK."""
    content, room = text, size - 120
    content = text * max(1, room // len(json.dumps(text)))
    value = {"messages": [{"role": "user", "content": content}], "model": "m", **({"stream": True} if stream else {})}
    return json.dumps(value, separators=(",", ":")).encode()


class Client:
    """One connection that sends one request after the other."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def ask(self, content: bytes, end: bytes) -> bytes:
        """The bytes of one answer, up to the end that it must have."""
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{self.head}content-type: application/json\r\n"
        self.socket.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        answer = b""
        while not answer.endswith(end):
            data = self.socket.recv(262_144)
            if not data:
                raise SystemExit(f"the connection ended after {answer[:300]!r}")
            answer += data
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"a wrong answer: {answer[:300]!r}")
        return answer


def measure(client: Client, pids: Sequence[int], content: bytes, end: bytes, seconds: float) -> float:
    """Microseconds of CPU a request."""
    for _ in range(20):
        client.ask(content, end)
    before, count, limit = cpu_s(pids), 0, time.monotonic() + seconds
    while time.monotonic() < limit:
        client.ask(content, end)
        count += 1
    return (cpu_s(pids) - before) / count * 1e6


@contextmanager
def engines(folder: Path) -> Iterator[None]:
    """The mock engines, on the client's core."""
    command = [sys.executable, "benchmarks/mock_engine.py", "--events", "1", "--gap-s", "0", "--port"]
    a, b = ENGINE_PORTS
    with running([*command, str(a)], 1, a, folder / "a.log"), running([*command, str(b)], 1, b, folder / "b.log"):
        yield


def compare(seconds: float) -> dict[tuple[str, str], dict[str, float]]:
    """(kind, size) -> router -> microseconds."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    theirs = replace(next(peer for peer in PEERS if peer.name == "nginx"), command=nginx_in_memory)
    for number, peer in enumerate((theirs, ours())):
        if peer.program() is None:
            raise SystemExit(f"{peer.name} is not there: {peer.install}")
        with tempfile.TemporaryDirectory() as name:
            folder, port = Path(name), PORT + 10 * number
            with engines(folder), serving(peer, port, folder) as (pid, headers):
                pids = router_workers(pid) if peer.is_ours else process_tree(pid)
                who = MODELYARD if peer.is_ours else peer.name
                for kind, text in TEXTS.items():
                    for size, count in SIZES.items():
                        for stream in (False, True):
                            content = body(count, text, stream=stream)
                            row = found.setdefault((f"{kind}, stream" if stream else kind, size), {})
                            end = b"0\r\n\r\n" if stream else b"}"
                            row[who] = measure(Client(port, headers), pids, content, end, seconds)
    return found


def table(found: Mapping[tuple[str, str], Mapping[str, float]]) -> str:
    """The result as Markdown."""
    cores = os.cpu_count()
    lines = [
        f"`python {NAME}` on {platform.machine()}, {cores} cores, Python {platform.python_version()}: "
        f"µs of CPU a request of {ours().name}, with one key, its limits, split and accounting on.",
        "",
        "| body | size | nginx | modelyard, its worker | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for (kind, size), row in found.items():
        nginx_us, own_us = row["nginx"], row[MODELYARD]
        lines.append(f"| {kind} | {size} | {nginx_us:.0f} | {own_us:.0f} | {own_us / nginx_us:.1f}× |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each size is sent")
    parser.add_argument("--write", type=Path, help="write the table into this document")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    text = table(compare(options.seconds))
    print(text)
    if options.write:
        write(ROOT / options.write, NAME, text)


if __name__ == "__main__":
    main()
