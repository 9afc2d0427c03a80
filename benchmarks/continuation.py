"""How often a continued stream differs from the uncut one, on a real llama.cpp engine at temperature 0.

    python benchmarks/continuation.py MODEL.gguf [--write docs/performance.md]

Method: each prompt is answered whole; then, for a cut after every fifth token, the router's own continuation request
(serving/router/continuation.py) is sent to the engine, its answer is rewritten as the router does, and the joined text
is compared with the whole one. A difference is none of the seam: it is a near tie that falls the other way, because the
engine computes the partial text in one batch and not token by token, or because the text is cut into other tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from document import write  # the neighbour in this folder

from serving.router.continuation import CHAT, Partial, payload_of, resume

ROOT = Path(__file__).resolve().parents[1]
FRESH = httpx.Limits(max_keepalive_connections=0)
"""llama.cpp's server closes idle connections under its clients now and then."""
TOKENS, STEP = 80, 5
PROMPTS = (
    "Write a short story about a river and list three animals.",
    "Write a numbered list of five fruits with a sentence each.",
    "Write a python function that adds two numbers, then explain it.",
    "Write a poem in two stanzas about winter.",
    "Explain photosynthesis to a child.",
    "What is the difference between a list and a tuple?",
    "Give me a recipe for pancakes as a list of steps.",
    "Translate 'good morning, my friend' into French and Spanish.",
    "Summarise the story of Romeo and Juliet.",
    "Count from 1 to 40, separated by commas.",
    "Write an e-mail that declines an invitation politely.",
    "Tell me about Tokyo (東京) and use an emoji.",
)


def body_of(prompt: str) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    options = {"max_tokens": TOKENS, "temperature": 0, "cache_prompt": False, "stream": True}
    return json.dumps({"model": "m", "messages": messages, **options}).encode()


def events(client: httpx.Client, body: bytes) -> Iterator[bytes]:
    with client.stream("POST", CHAT, content=body, headers={"content-type": "application/json"}) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield line.encode() + b"\n\n"


def text_of(data: bytes) -> str:
    partial = Partial()
    partial.add(data)
    return partial.text


def compare(client: httpx.Client, prompt: str) -> tuple[int, int]:
    """Cuts, and how many of them led to another text or another number of tokens."""
    body = body_of(prompt)
    asked = json.dumps(json.loads(body) | {"stream_options": {"include_usage": True}}).encode()
    whole = list(events(client, asked))
    text = text_of(b"".join(whole))
    usage = (payload_of(whole[-1]) or {})["usage"]
    said = [index for index, event in enumerate(whole) if text_of(event)]
    cuts = differing = 0
    for count in range(STEP, len(said), STEP):
        partial = Partial()
        for event in whole[: said[count - 1] + 1]:
            partial.add(event)
        before = partial.text
        resumption = resume(asked, CHAT, partial)
        if resumption is None:
            continue
        counted = client.post("/tokenize", content=resumption.counting_body("m"))
        resumption.counted(counted.content)
        rest = b"".join(resumption.rewrite(event) for event in events(client, resumption.body("m")))
        last = next(value["usage"] for part in rest.split(b"\n\n") if "usage" in (value := payload_of(part) or {}))
        cuts += 1
        differing += before + text_of(rest) != text or last["total_tokens"] != usage["total_tokens"]
    return cuts, differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file, e.g. the quickstart's SmolLM2 in Q4_1")
    parser.add_argument("--write", type=Path, help="put the figures into this document, between its markers")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serving.engines.llama_cpp_child", "--model", str(options.model), "--alias", "m"]
    command += ["--port", str(port), "--options", '{"engine_args": {"n_ctx": 4096}}']
    engine = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False, limits=FRESH) as client:
            for _ in range(600):
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
            found = []
            for number, prompt in enumerate(PROMPTS, 1):
                sys.stderr.write(f"\r{number} of {len(PROMPTS)} prompts")
                found.append(compare(client, prompt))
            sys.stderr.write("\n")
    finally:
        engine.kill()
        engine.wait()
    cuts, differing = (sum(column) for column in zip(*found, strict=True))
    exact = sum(not wrong for _, wrong in found)
    text = (
        f"`python benchmarks/continuation.py {options.model.name}` on {platform.machine()}, Python "
        f"{platform.python_version()}: {cuts - differing} of {cuts} cuts ({1 - differing / cuts:.1%}) went on to the "
        f"very text and token count of the uncut answer; {exact} of {len(PROMPTS)} prompts did so at every cut."
    )
    print(text)
    if options.write:
        write(options.write, "benchmarks/continuation.py", text)


if __name__ == "__main__":
    main()
