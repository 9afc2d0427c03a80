"""Throws mutated HTTP at a live router worker over real sockets, and then looks whether anything is left of it.

    python tests/serving/router/fuzz_sockets.py --inputs 100000 --seed 1

Owns: the grammar of inputs (each made from the seed and its number alone), how each is sent (pieces, pauses, resets,
half-closes, never reading), and what must hold afterwards. A failure names the seed and the input, and prints it.
Never: the project's own parser; what comes back is checked by httptools' parser of answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import httptools  # noqa: E402
from engines.fixtures import FakeEngine, start_fake_engine  # noqa: E402
from router_harness import RouterProcess, running_router  # noqa: E402

from serving.router.table import Limits  # noqa: E402

LIMITS = Limits(
    body_bytes_max=16_384, head_bytes_max=8192, head_timeout_s=1, body_timeout_s=1, keepalive_s=1, unread_timeout_s=1
)
CONCURRENT = 48
GROWTH_BYTES_MAX = 24 * 1024 * 1024
BODIES = (
    *(b'{"model":"assistant","messages":[{"role":"user","content":"a b"}]}',) * 8,
    *(b'{"model":"assistant","messages":[],"stream":true}',) * 4,
    b'{"model":"assistant@v1","messages":[],"max_tokens":1}',
    b'{"model":"nobody"}',
    b"[]",
    b"\xff{",
    b'{"model":"ass\\u0069stant","a":"\xff"}',
    b"",
)
METHODS = (b"POST",) * 12 + (b"GET", b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI", b"DELETE", b"post")
TARGETS = (b"/v1/chat/completions",) * 9 + (
    b"/v1/models",
    b"/health/ready",
    b"/v1/models/assistant",
    b"http://h:1/v1/models",
    b"*",
    b"/",
    b"/%00",
    b"h:80",
    b"/v1/embeddings?x=y",
)
VERSIONS = (b"HTTP/1.1",) * 30 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.9", b"ICE/1.0")
HEADERS = (
    b"connection: close",
    b"connection: keep-alive",
    b"connection: upgrade",
    b"upgrade: websocket",
    b"expect: 100-continue",
    b"content-length: 3",
    b"content-length: 99999",
    b"content-length: -1",
    b"transfer-encoding: chunked",
    b"transfer-encoding: gzip, chunked",
    b"host: b",
    b"x-session-id: s",
    b"x-request-id: r",
    b"x-request-id: r\tr",
    b"authorization: Bearer fuzz-credential",
    b"cookie: fuzz-credential",
    b"te: trailers",
    b"a:",
    b"b: \xff\xfe",
    b"c: " + b"d" * 9000,
    b" e: f",
    b"g : h",
)
LINE = re.compile(r"POST /(v1/(chat/completions|completions|embeddings)|(de)?tokenize)([?#][!-~]*)? HTTP/1\.1")
"""What an engine may see: a mutation can make one endpoint of another."""
ODDITIES = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b":",
    b"\xff",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"7fffffffffffffff\r\n",
    b"\x16\x03\x01",
)


@dataclass
class Input:
    """One connection's worth of bytes and how they are sent."""

    number: int
    raw: bytes
    cuts: list[int]
    pause_s: float
    ending: str
    """wait, half-close, reset, close, deaf"""


@dataclass
class Findings:
    """What was seen."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def make(seed: int, number: int) -> Input:
    """The input with this number: the same for the same seed."""
    rng = random.Random(f"{seed}:{number}")
    raw = b"".join(_request(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 8))))
    for _ in range(rng.choice((0, 0, 0, 1, 1, 3))):
        raw = _mutated(rng, raw)
    cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.choice((0, 0, 1, 2, 6))))
    ending = rng.choices(("wait", "half-close", "reset", "close", "deaf"), (8, 1, 1, 1, 1))[0]
    return Input(number, raw, cuts, rng.choice((0.0, 0.0, 0.001, 0.01)), ending)


def _request(rng: random.Random) -> bytes:
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    body = rng.choice(BODIES)
    lines = [b" ".join((rng.choice(METHODS), rng.choice(TARGETS), rng.choice(VERSIONS))), b"host: x"]
    lines += rng.sample(HEADERS, rng.choice((0, 0, 0, 0, 1, 1, 2)))
    if rng.random() < 0.3:
        lines.append(b"transfer-encoding: chunked")
        at = rng.randrange(len(body) + 1)
        parts = [part for part in (body[:at], body[at:]) if part]
        extension = rng.choice((b"", b"", b";a=b", b";" + b"x" * 300))
        body = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
        body += b"0\r\n" + rng.choice((b"", b"", b"host: t\r\n", b"x: y\r\n" * 20)) + b"\r\n"
    elif rng.random() < 0.9:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


def _mutated(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw) + 1)
    how = rng.randrange(6)
    if how == 0:
        return raw[:at] + rng.choice(ODDITIES) + raw[at:]
    if how == 1:
        return raw[:at] + raw[at + rng.randrange(1, 20) :]
    if how == 2:
        return raw[:at] + bytes((rng.randrange(256),)) + raw[at + 1 :]
    if how == 3:
        return raw[: rng.randrange(len(raw) + 1)]
    if how == 4:
        return raw[:at] + raw[max(0, at - 40) : at] * rng.choice((1, 2, 400)) + raw[at:]
    return raw[:at] + rng.randbytes(rng.randrange(1, 9)) + raw[at:]


class _Answers:
    """Parses what came back."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())


async def send(port: int, one: Input, found: Findings) -> None:
    """Send one input and note what came back."""
    received = bytearray()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for start, stop in zip([0, *one.cuts], [*one.cuts, len(one.raw)], strict=True):
                writer.write(one.raw[start:stop])
                await writer.drain()
                await asyncio.sleep(one.pause_s)
            if one.ending == "half-close":
                writer.write_eof()
            if one.ending in ("wait", "half-close"):
                with contextlib.suppress(TimeoutError):
                    while data := await asyncio.wait_for(reader.read(65536), 0.03):
                        received += data
            elif one.ending == "deaf":
                await asyncio.sleep(0.05)
            elif one.ending == "reset":
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except TimeoutError:
        found.faults.append(f"input {one.number} hung")
    except OSError:
        pass  # refused and closed while we were still sending
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    _judge(bytes(received), one, found)


def _judge(received: bytes, one: Input, found: Findings) -> None:
    if b"HEAD " in one.raw:
        return  # where an answer's body has none, a parser needs to know
    answers = _Answers()
    try:
        answers.feed(received)
    except httptools.HttpParserError as error:
        found.faults.append(f"input {one.number}: the answer is not HTTP ({error}): {received[-300:]!r}")
    if b"fuzz-credential" in received:
        found.faults.append(f"input {one.number}: a credential came back: {received[-300:]!r}")
    if len(answers.statuses) > 2 * one.raw.count(b"\r\n\r\n") + 1:  # 100 Continue counts too
        found.faults.append(f"input {one.number}: more answers than requests")
    if any(status >= 500 and status not in (501, 505) for status in answers.statuses):
        found.faults.append(f"input {one.number}: {answers.statuses}")
    found.statuses.update(answers.statuses)


async def bombard(port: int, seed: int, numbers: range) -> Findings:
    """Send all of these inputs, some at a time."""
    found = Findings()
    waiting = iter(numbers)

    async def sender() -> None:
        for number in waiting:
            await send(port, make(seed, number), found)

    await asyncio.gather(*(sender() for _ in range(CONCURRENT)))
    return found


def at_rest(engine: FakeEngine, deadline: float) -> dict[str, Any]:
    """What the engine says once it generates nothing more, or at the deadline."""
    while (seen := engine.stats())["running"] and time.monotonic() < deadline:
        time.sleep(0.2)
    return seen


def afterwards(router: RouterProcess, engine: FakeEngine, log: Path, before_bytes: int) -> list[str]:
    """What does not hold once everybody has gone."""
    faults: list[str] = []
    if router.process.poll() is not None:
        return [f"the worker ended with {router.process.returncode}: {log.read_text()[-2000:]}"]
    deadline = time.monotonic() + 60
    while (stats := router.control.stats()).connections or stats.inflight:
        if time.monotonic() > deadline:
            faults.append(f"{stats.connections} connections and {stats.inflight} in flight are left")
            break
        time.sleep(0.2)
    if router.chat().status_code != 200:
        faults.append("a good request is not answered any more")
    growth = router.control.stats().resident_bytes - before_bytes
    if growth > GROWTH_BYTES_MAX:
        faults.append(f"the worker has grown by {growth} bytes")
    if b"Traceback" in log.read_bytes() or b"Exception" in log.read_bytes():
        faults.append(f"its log: {log.read_text()[-3000:]}")
    seen = at_rest(engine, deadline)
    strange = {line for line in seen["lines"] if not LINE.fullmatch(line)}
    if strange:
        faults.append(f"the engine saw {sorted(strange)[:5]}")
    if seen["running"]:
        faults.append(f"{seen['running']} generations still run")
    if b"fuzz-credential" in b"".join(path.read_bytes() for path in router.folder.rglob("*") if path.is_file()):
        faults.append("a credential is in a log or an account")
    if "fuzz-credential" in str(seen["requests"]):
        faults.append("a credential reached the engine")
    records = router.records()
    attempts = sum(record.attempts for record in records)
    answered = sum(record.attempts for record in records if record.outcome != "cancelled")
    if not answered <= seen["seen"] <= attempts:  # who leaves at once may have been on the way to an engine
        faults.append(f"the account has {answered} to {attempts} attempts, the engine saw {seen['seen']}")
    return faults


def run(inputs: int, seed: int, folder: Path, *, show: bool = False) -> list[str]:
    """Everything; what did not hold."""
    log = folder / "worker.log"
    engine = start_fake_engine("--events", "3")
    try:
        with running_router(folder, log=log) as router:
            router.serve(engine.port, limits=LIMITS)
            warm_up = min(inputs // 10, 2000)
            faults = asyncio.run(bombard(router.port, seed, range(warm_up))).faults
            before = router.control.stats().resident_bytes
            started = time.monotonic()
            found = asyncio.run(bombard(router.port, seed, range(warm_up, inputs)))
            took = time.monotonic() - started
            faults += found.faults
            faults += afterwards(router, engine, log, before)
            if show:
                grown = router.control.stats().resident_bytes - before
                print(f"{inputs} inputs of seed {seed} in {took:.0f} s; resident memory {grown / 1e6:+.1f} MB")
                print("answers:", dict(sorted(found.statuses.items())))
                print("account:", dict(Counter(record.error or record.outcome for record in router.records())))
    finally:
        engine.kill()
        assert engine.process.stdout is not None
        engine.process.stdout.close()
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=None, metavar="N", help="only print input N")
    options = parser.parse_args()
    if options.show is not None:
        print(make(options.seed, options.show))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        faults = run(options.inputs, options.seed, Path(folder), show=True)
    for fault in faults[:20]:
        print(f"seed {options.seed}: {fault}")
        words = fault.split()
        if words[0] == "input":
            print("  sent:", make(options.seed, int(words[1].rstrip(":"))))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
