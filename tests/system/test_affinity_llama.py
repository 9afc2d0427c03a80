"""Prefix affinity on real llama.cpp engines: what they say they took from their caches, with affinity and without."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from engines.llama_engines import llama_engines
from router_harness import RouterProcess, model, running_router, version

pytestmark = [pytest.mark.engine, pytest.mark.system]

CONVERSATIONS, TURNS = 4, 9
"""Without affinity each turn goes to one of two replicas by chance: that fewer than two conversations ever change
theirs has a probability below 1e-6, and two make the difference that is asserted."""
WORDS = ("river", "apple", "stone", "cloud", "garden", "window", "paper", "copper", "silver", "winter", "bread")


def document(number: int) -> str:
    """Some hundred tokens that no other conversation has."""
    chosen = random.Random(number)
    return " ".join(chosen.choice(WORDS) for _ in range(300))


def converse(router: RouterProcess) -> tuple[int, int]:
    """Several conversations about a document each, in turns. Returns prompt tokens and how many of them were cached."""
    histories = [[{"role": "system", "content": document(number)}] for number in range(CONVERSATIONS)]
    prompt = cached = 0
    for turn in range(TURNS):
        for messages in histories:
            messages.append({"role": "user", "content": f"How many words begin with {'abcdefghi'[turn]}?"})
            answer = router.chat(messages=messages, max_tokens=2, temperature=0)
            assert answer.status_code == 200, answer.text
            value = answer.json()
            messages.append({"role": "assistant", "content": value["choices"][0]["message"]["content"]})
            prompt += value["usage"]["prompt_tokens"]
            cached += value["usage"]["prompt_tokens_details"]["cached_tokens"]
    return prompt, cached


def test_more_of_the_prompt_comes_from_the_cache_with_affinity(smollm2_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    found: dict[bool, tuple[int, int]] = {}
    for affinity in (True, False):
        folder = tmp_path / str(affinity)
        folder.mkdir()
        with llama_engines(smollm2_path, 2, n_ctx=8192) as ports, running_router(folder) as router:
            arms = model([version("v1", ports, names=("m",))], {"v1": 10_000}, affinity=affinity)
            router.publish(arms)
            prompt, cached = found[affinity] = converse(router)
            records = router.records(CONVERSATIONS * TURNS)
            assert sum(record.prompt_tokens for record in records) == prompt
            assert sum(record.cached_tokens for record in records) == cached, "the account has the engine's figures"
            per_replica = {record.replica for record in records}
            assert affinity or len(per_replica) == 2
    (prompt, cached), (prompt_without, cached_without) = found[True], found[False]
    uncached, uncached_without = prompt - cached, prompt_without - cached_without
    assert cached > cached_without
    assert uncached < 0.85 * uncached_without, f"{uncached} of {prompt} computed, {uncached_without} without affinity"
