"""Which replica has a request's beginning cached: fingerprints of prefixes, and the choice under bounded load.

Owns: fingerprints of request bodies, who was sent which, and the rule by which one of several replicas is chosen.
Never: I/O, clocks, a random generator of its own, knowing connections. What it says is a hint: being wrong costs a
replica some prompt tokens and nothing else.

A body is not parsed and not read to its end. From where its prompt begins, prefixes of 512 B, 768 B, 1 KiB, 1.5 KiB, …,
1 MiB have a fingerprint each: the hash of the one before and of the last 512 bytes. Equal prompts have equal
fingerprints as far as they agree; prompts that agree in 23 such samples and differ between them are taken for alike.

The rule is consistent hashing's with bounded loads (Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with Bounded
Loads", 2018), with the cache in place of the ring: the replica that has the longest prefix, unless it has more than
`LOAD_FACTOR` times the mean in flight, and one; then the next best. A prefix that several have goes to the least busy
of them, so that what everybody sends (a system prompt) spreads over all replicas and stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

LOAD_FACTOR: Final = 1.25
"""How far above the mean a replica's requests in flight may lie for the sake of its cache."""
ENTRIES_MAX: Final = 16_384
"""Fingerprints remembered by one worker, over all models: about 1.5 MB."""
LENGTHS: Final = (*(size << power for power in range(11) for size in (512, 768)), 1 << 20)
SAMPLE_BYTES: Final = 512
ANCHOR_BYTES: Final = 2048
"""How far into the body the prompt is looked for; one that begins later is taken from the body's start."""
ANCHORS: Final = {
    "/v1/chat/completions": b'"messages"',
    "/v1/messages": b'"messages"',
    "/v1/completions": b'"prompt"',
    "/v1/responses": b'"input"',
}
"""Endpoint -> the key before its prompt. Others have no prompt that an engine would keep."""


def fingerprints(body: bytes, anchor: bytes, seed: int) -> list[int]:
    """A number for each of `LENGTHS` that the prompt in `body` reaches, shortest first; `seed` keeps versions apart."""
    size = len(body)
    if size < LENGTHS[0]:
        return []
    start = max(0, body.find(anchor, 0, ANCHOR_BYTES))
    found: list[int] = []
    value = seed
    before = 0
    for length in LENGTHS:
        stop = start + length
        if stop > size:
            break
        value = hash((value, body[max(start + before, stop - SAMPLE_BYTES) : stop]))
        found.append(value)
        before = length
    return found


class Prefixes:
    """Which of a worker's replicas were sent which prefixes lately. Replicas go by their ids.

    Least recently used fingerprints go first, in halves: once the young half is full it becomes the old one, and what
    is used again becomes young again. So the last `entries_max` / 2 that were used are known, and never more than
    `entries_max`.
    """

    __slots__ = ("_bits", "_half", "_old", "_young")

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._half = max(1, entries_max // 2)
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._bits: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def retain(self, replicas: Collection[str]) -> None:
        """Forget replicas that are no longer there. Their numbers are given to others: a few hints are wrong then."""
        self._bits = {name: bit for name, bit in self._bits.items() if name in replicas}

    def choose(
        self, prints: Sequence[int], replicas: Sequence[str], loads: Sequence[int], draw: Callable[[], float]
    ) -> int:
        """The index of the replica to send a request to, which is remembered. Raises ValueError where there is none.

        `loads` are their requests in flight; `draw` gives a number from [0, 1) to break ties.
        """
        bound = LOAD_FACTOR * sum(loads) / len(loads) + 1 if loads else 0.0
        open_to = [
            index for index, load in enumerate(loads) if load <= bound
        ]  # never empty: the least is at most the mean
        bits = [self._bit(name) for name in replicas]
        best = open_to
        for value in reversed(prints):
            mask = self._young.get(value, 0) | self._old.get(value, 0)
            if mask and (holders := [index for index in open_to if mask & bits[index]]):
                best = holders
                break
        chosen = best[0] if len(best) == 1 else min(best, key=lambda index: (loads[index], draw()))
        for value in prints:
            self._note(value, bits[chosen])
        return chosen

    def _note(self, value: int, bit: int) -> None:
        young = self._young
        if value not in young and len(young) >= self._half:
            self._old, young = young, {}
            self._young = young
        young[value] = young.get(value, 0) | self._old.get(value, 0) | bit

    def _bit(self, name: str) -> int:
        bit = self._bits.get(name)
        if bit is None:
            taken = sum(self._bits.values())
            bit = self._bits[name] = ~taken & (taken + 1)
        return bit
