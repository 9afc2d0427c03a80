"""Prefix affinity: pure, so its bounds are checked on made-up prompts and loads."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.router.affinity import LENGTHS, LOAD_FACTOR, Prefixes, fingerprints

ANCHOR = b'"messages"'
REPLICAS = ("a", "b", "c", "d")
DRAW = random.Random(1).random


def prints_of(prompt: bytes, seed: int = 1, before: bytes = b"{") -> list[int]:
    return fingerprints(before + ANCHOR + b":" + prompt, ANCHOR, seed)


def common(one: list[int], other: list[int]) -> int:
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


@given(
    st.integers(0, 6000), st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=40), st.integers(0, 900)
)
def test_prompts_have_as_many_fingerprints_in_common_as_they_share_lengths(
    shared: int, one: bytes, other: bytes, rest: int
) -> None:
    start = random.Random(shared).randbytes(shared)
    first, second = start + b"A" + one + bytes(rest), start + b"B" + other + bytes(rest)
    alike = common(prints_of(first), prints_of(second))
    reached = sum(length <= shared + len(ANCHOR) + 1 for length in LENGTHS)
    assert alike == reached or shared > 2048, "whole up to 2 KiB; sampled above"
    assert alike >= reached


def test_what_stands_before_the_prompt_makes_no_difference() -> None:
    prompt = b'[{"content":"' + bytes(3000)
    assert prints_of(prompt) == prints_of(prompt, before=b'{"model":"assistant","temperature":0.7,"stream":true,')
    assert prints_of(prompt) != prints_of(prompt, seed=2)
    assert len(fingerprints(bytes(5000), ANCHOR, 1)) == 7, "without a prompt to be found, from the start"
    assert prints_of(b"short") == []


def test_a_body_of_a_megabyte_is_not_read_whole() -> None:
    body = b'{"messages":' + random.Random(1).randbytes(4 << 20)

    def best_s(look: Callable[[], object]) -> float:
        took = []
        for _ in range(50):
            before = time.perf_counter()
            look()
            took.append(time.perf_counter() - before)
        return min(took)

    assert len(fingerprints(body, ANCHOR, 1)) == len(LENGTHS)
    whole_s = best_s(lambda: zlib.crc32(body))
    assert best_s(lambda: fingerprints(body, ANCHOR, 1)) < whole_s / 10, "about 10 µs; a whole pass takes milliseconds"


prompts = st.lists(st.integers(0, 5), min_size=1, max_size=6).map(
    lambda parts: prints_of(b"".join(random.Random(part).randbytes(700) for part in parts))
)


@given(st.lists(st.tuples(prompts, st.integers(0, 9)), max_size=120), st.integers(1, 4))
def test_no_replica_is_chosen_above_the_bound(steps: list[tuple[list[int], int]], count: int) -> None:
    """Whatever is sent and whenever it ends."""
    prefixes, loads, running = Prefixes(64), [0] * count, []
    for prints, ending in steps:
        chosen = prefixes.choose(prints, REPLICAS[:count], loads, DRAW)
        assert loads[chosen] <= LOAD_FACTOR * sum(loads) / count + 1
        assert len(prefixes) <= 64
        loads[chosen] += 1
        running.append(chosen)
        for _ in range(min(ending // 3, len(running))):
            loads[running.pop(0)] -= 1


@given(prompts, st.lists(prompts, max_size=20), st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_a_prefix_goes_where_it_was_while_that_is_within_the_bound(
    mine: list[int], others: list[list[int]], loads: list[int]
) -> None:
    prefixes = Prefixes()
    home = prefixes.choose(mine, REPLICAS, [0] * 4, DRAW)
    for other in others:
        if not common(mine, other):
            prefixes.choose(other, REPLICAS, [0] * 4, DRAW)
    chosen = prefixes.choose(mine, REPLICAS, loads, DRAW)
    if loads[home] <= LOAD_FACTOR * sum(loads) / 4 + 1:
        assert chosen == home
    else:
        assert loads[chosen] == min(loads)


def test_the_longest_known_prefix_wins() -> None:
    prefixes = Prefixes()
    system = bytes(range(256)) * 4
    first, second = prints_of(system + bytes(2000)), prints_of(system + b"x" * 2000)
    assert prefixes.choose(first, REPLICAS, [0, 1, 1, 1], DRAW) == 0
    assert prefixes.choose(second, REPLICAS, [9, 1, 2, 2], DRAW) == 1, "the one that has the start is too busy"
    assert prefixes.choose(first, REPLICAS, [1, 0, 0, 0], DRAW) == 0
    assert prefixes.choose(second, REPLICAS, [0, 1, 0, 0], DRAW) == 1
    assert prefixes.choose(prints_of(system + b"y" * 2000), REPLICAS, [1, 0, 0, 0], DRAW) == 1, (
        "both have it: the idle one"
    )


def test_without_a_known_prefix_the_least_busy_is_chosen_and_ties_are_drawn() -> None:
    prefixes = Prefixes()
    assert prefixes.choose([], REPLICAS, [3, 2, 1, 2], DRAW) == 2
    assert {prefixes.choose([], REPLICAS, [1, 0, 0, 1], DRAW) for _ in range(50)} == {1, 2}
    with pytest.raises(ValueError, match="empty"):
        prefixes.choose([], (), [], DRAW)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=600))
def test_the_last_half_that_was_used_is_known(keys: list[int]) -> None:
    prefixes = Prefixes(64)
    for key in keys:
        prefixes.choose([key], REPLICAS[:2], [key % 2, 1 - key % 2], DRAW)
        assert len(prefixes) <= 64
    recent = list(dict.fromkeys(reversed(keys)))[:32]
    for key in recent[:1] + recent[-1:]:
        # The idle one would be the other: only what is remembered says otherwise.
        assert prefixes.choose([key], REPLICAS[:2], [1 - key % 2, key % 2], DRAW) == key % 2


def test_replicas_that_left_make_room_for_others() -> None:
    prefixes = Prefixes()
    prints = prints_of(bytes(3000))
    assert prefixes.choose(prints, ("a", "b"), [1, 0], DRAW) == 1
    prefixes.retain({"b"})
    for number in range(200):
        prefixes.choose([], ("b", f"new{number}"), [0, 1], DRAW)
        prefixes.retain({"b", f"new{number}"})
        assert max(prefixes._bits.values()) <= 4
    assert prefixes.choose(prints, ("b", "new199"), [1, 0], DRAW) == 0
