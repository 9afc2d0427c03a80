"""What prefix affinity saves on two real llama.cpp replicas: cached prompt tokens and time to first token.

    python benchmarks/affinity.py MODEL.gguf [--conversations 6] [--turns 5] [--write docs/performance.md]

Method: a yard with one version in two replicas serves conversations about a document each, two at a time, turn by turn;
once with `affinity: true` and once, with fresh engines, with `affinity: false` (the least busy replica, ties at
random). Tokens are the engines' own usage. Times are the client's, of streams, and of this machine at this moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
from document import write  # the neighbour in this folder

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("river", "apple", "stone", "cloud", "garden", "window", "paper", "copper", "silver", "winter", "bread")
SYSTEM = "You are a patient assistant. Answer in one short sentence and never ask back. " * 4
DOCUMENT_WORDS = 250
TOKENS = 8
CLIENTS = 2
CONFIG = """
server: {{port: {port}, admin_port: {admin_port}, workers: 1}}
models:
  assistant:
    affinity: {affinity}
    versions:
      v1: {{artifact: "file:{model}", engine: llama.cpp, replicas: 2, engine_args: {{n_ctx: 8192, n_threads: 1}}}}
"""


@dataclass(frozen=True)
class Turn:
    """What one request used and how long its first token took."""

    turn: int
    prompt: int
    cached: int
    first_token_s: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(client: httpx.Client, turn: int, messages: list[dict[str, str]]) -> Turn:
    """One streamed turn; the answer is added to `messages`."""
    body: dict[str, Any] = {"model": "assistant", "messages": messages, "max_tokens": TOKENS, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    started, first, said, usage = time.monotonic(), 0.0, "", {}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            first = first or (time.monotonic() - started if piece else 0.0)
            said += piece
    messages.append({"role": "assistant", "content": said})
    return Turn(turn, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], first)


def converse(url: str, conversations: int, turns: int) -> list[Turn]:
    """Every conversation's first turn, then every one's second, and so on; CLIENTS of them at a time."""
    histories = []
    for number in range(conversations):
        chosen = random.Random(number)
        text = " ".join(chosen.choice(WORDS) for _ in range(DOCUMENT_WORDS))
        histories.append([{"role": "system", "content": f"{SYSTEM}\nThe document is: {text}"}])
    found: list[Turn] = []
    with httpx.Client(base_url=url, timeout=300, trust_env=False) as client, ThreadPoolExecutor(CLIENTS) as pool:
        for turn in range(turns):
            for messages in histories:
                messages.append({"role": "user", "content": f"How many words begin with {chr(97 + turn)}?"})
            found += pool.map(lambda messages, turn=turn: ask(client, turn, messages), histories)
            sys.stderr.write(f"\rturn {turn + 1} of {turns}")
    sys.stderr.write("\n")
    return found


def measure(model: Path, affinity: bool, conversations: int, turns: int) -> list[Turn]:
    """One yard from start to stop."""
    port, admin_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "yard.yaml"
        config.write_text(
            CONFIG.format(port=port, admin_port=admin_port, affinity=str(affinity).lower(), model=model.resolve())
        )
        with (folder / "log").open("wb") as log, yard(config, folder / "state", log) as process:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while not both_ready(admin_port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the engines are not ready:\n{(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.2)
            return converse(url, conversations, turns)


@contextlib.contextmanager
def yard(config: Path, state: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """`modelyard up`, until the block is left."""
    program = "import sys; from serving.cli import main; main()"
    command = [sys.executable, "-c", program, "up", str(config), "--state-dir", str(state)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def both_ready(admin_port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        status = httpx.get(f"http://127.0.0.1:{admin_port}/admin/v1/status", trust_env=False).json()
        return sum(engine["state"] == "ready" for engine in status["engines"]) == 2
    return False


def row(name: str, turns: Sequence[Turn]) -> str:
    prompt, cached = sum(one.prompt for one in turns), sum(one.cached for one in turns)
    later = [one.first_token_s for one in turns if one.turn]
    return (
        f"| {name} | {prompt} | {cached} ({cached / prompt:.0%}) | {prompt - cached} | "
        f"{statistics.median(later):.2f} s | {max(later):.2f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file, e.g. the quickstart's SmolLM2 in Q4_1")
    parser.add_argument("--conversations", type=int, default=6)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--write", type=Path, help="put the table into this document, between its markers")
    options = parser.parse_args()
    on = measure(options.model, True, options.conversations, options.turns)
    off = measure(options.model, False, options.conversations, options.turns)
    saved = 1 - sum(one.prompt - one.cached for one in on) / sum(one.prompt - one.cached for one in off)
    text = "\n".join(
        (
            f"`python benchmarks/affinity.py {options.model.name}` on {platform.machine()}, Python "
            f"{platform.python_version()}: two llama.cpp replicas, {options.conversations} conversations of "
            f"{options.turns} turns about a document each, {CLIENTS} at a time; with affinity {saved:.0%} fewer prompt "
            "tokens were computed.",
            "",
            "| replica chosen by | prompt tokens | from the cache | computed | TTFT p50, later turns | longest |",
            "|---|---:|---:|---:|---:|---:|",
            row("prefix affinity, bounded load", on),
            row("load alone", off),
        )
    )
    print(text)
    if options.write:
        write(options.write, "benchmarks/affinity.py", text)


if __name__ == "__main__":
    main()
