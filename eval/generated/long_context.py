"""Needles in a haystack: facts hidden at a stated depth of a long filler text, and a question about them.

Owns: the cases of the generator `long-context`. Never: I/O. A pure function of its options; the context decides only
which cases are left out.

A case of length N is made for a window of N tokens: prompt, chat template and answer fit there at CHARACTERS_PER_TOKEN,
which today's tokenizers exceed on this prose. It is an estimate: the prompt's own count is in the run's usage. The
depth of a needle is the share of the filler's sentences before it, so 0 is the very beginning.

Kinds of cases:

- `single`: one needle at the depth.
- `distractor`: the same, and needles of the same form about other places, spread over the whole text.
- `multi`: several needles, the first at the depth, the others spread evenly; all are asked for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final, Literal

import msgspec

from eval.generated import prose
from eval.generated.base import (
    CHARACTERS_PER_TOKEN,
    MESSAGE_TOKENS,
    SYSTEM_TOKENS,
    GenerateContext,
    Generated,
    GenerateError,
    needed_tokens,
    read_options,
    seeded,
)

Kind = Literal["single", "distractor", "multi"]
KINDS: Final[tuple[Kind, ...]] = ("single", "distractor", "multi")
NAME: Final = "long-context"
SHORTEST: Final = 384
"""Room for the question and the needles, and some filler."""
DISTRACTORS_MAX: Final = 8
ANSWER_TOKENS: Final = 32
"""Enough for a sentence with three numbers."""
MULTI: Final = 3
"""Needles of a `multi` case."""
PLACES: Final = (
    "lighthouse", "observatory", "boathouse", "granary", "town hall", "greenhouse", "powder tower", "ice house",
    "printing works", "brewery", "customs shed", "pump house", "foundry", "riding school", "tannery", "rope walk",
    "map room", "bell tower", "seed bank", "sawmill", "tide gauge", "signal box", "theatre", "almshouse",
)  # fmt: skip
INTRODUCTION: Final = "Read the text and answer the question that follows it."


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a suite may set."""

    seed: int = 0
    lengths: tuple[int, ...] = (512, 2048, 8192)
    """Windows to fill, in tokens."""
    depths: tuple[float, ...] = (0.0, 0.5, 1.0)
    """0: before the first sentence; 1: after the last."""
    kinds: tuple[Kind, ...] = KINDS
    samples: int = 1
    """Cases of each length, depth and kind."""
    distractors: int = 4
    """Misleading needles of a `distractor` case."""
    unknown_limit: int = 4096
    """The longest length that is asked where the server does not tell its limit."""


class Fact(msgspec.Struct, frozen=True):
    """A needle: the number of a place."""

    place: str
    number: int

    @property
    def sentence(self) -> str:
        return f"The door number of the {self.place} is {self.number}."


def generate(options: Mapping[str, Any], context: GenerateContext) -> Generated:
    """The cases that fit. Raises GenerateError where an option cannot be used."""
    asked = read_options(options, Options, NAME)
    _check(asked)
    limit = context.context_tokens or asked.unknown_limit
    rows: list[dict[str, Any]] = []
    left_out: dict[int, int] = {}
    for length in sorted(set(asked.lengths)):
        cells = list(product(dict.fromkeys(asked.depths), dict.fromkeys(asked.kinds), range(asked.samples)))
        made = [_row(asked, length, *cell) for cell in cells] if length <= limit else []
        fitting = [row for row in made if needed_tokens(row["prompt"], ANSWER_TOKENS, context) <= limit]
        if len(fitting) < len(cells):
            left_out[length] = len(cells) - len(fitting)
        rows += fitting
    if not rows:
        raise GenerateError(
            f"no length of {NAME!r} fits a window of {limit:,} tokens: the shortest is {min(asked.lengths):,}"
        )
    said = (_left_out(left_out, limit, known=bool(context.context_tokens)),) if left_out else ()
    return Generated(rows=tuple(rows), left_out=said)


def _left_out(counts: Mapping[int, int], limit: int, *, known: bool) -> str:
    """In one sentence: how many cases of which lengths, and why."""
    count, lengths = sum(counts.values()), [f"{length:,}" for length in counts]
    listed = f"lengths {', '.join(lengths[:-1])} and {lengths[-1]}" if len(lengths) > 1 else f"length {lengths[0]}"
    cases = f"{count} case{'s' if count > 1 else ''} of {listed} left out: "
    if known:
        return cases + f"the window is {limit:,} tokens"
    return cases + f"a server does not tell its window, so nothing above {limit:,} tokens is asked (`unknown_limit`)"


def _check(asked: Options) -> None:
    rules = {
        "`lengths`, `depths` and `kinds` must not be empty": asked.lengths and asked.depths and asked.kinds,
        f"`lengths` must be {SHORTEST} or more": min(asked.lengths, default=SHORTEST) >= SHORTEST,
        "`depths` must lie between 0 and 1": all(0 <= depth <= 1 for depth in asked.depths),
        "`samples` must be at least 1": asked.samples >= 1,
        f"`distractors` must lie between 1 and {DISTRACTORS_MAX}": 1 <= asked.distractors <= DISTRACTORS_MAX,
        "`unknown_limit` must be at least 1": asked.unknown_limit >= 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise GenerateError(f"the generator {NAME!r}: {rule}")


def _row(asked: Options, length: int, depth: float, kind: Kind, index: int) -> dict[str, Any]:
    """One case. Its randomness hangs on the seed and its own place only: adding a length changes no other case."""
    rng = seeded(asked.seed, length, f"{depth:g}", kind, index)
    others = {"single": 0, "distractor": asked.distractors, "multi": MULTI - 1}[kind]
    places = rng.sample(PLACES, 1 + others)
    facts = [Fact(*pair) for pair in zip(places, rng.sample(range(10_000, 100_000), 1 + others), strict=True)]
    wanted = facts if kind == "multi" else facts[:1]
    question = _question(wanted)
    prompt = f"{INTRODUCTION}\n\n{_haystack(rng, length, depth, facts, question)}\n\n{question}"
    return {
        "id": f"{length}-{100 * depth:g}-{kind}-{index + 1}",
        "slice": f"{length}@{100 * depth:g}%",
        "prompt": prompt,
        "target": ", ".join(str(fact.number) for fact in wanted),
        "scorer": {"name": "regex", "pattern": _pattern(wanted)},
        "max_tokens": ANSWER_TOKENS,
    }


def _question(wanted: Sequence[Fact]) -> str:
    names = [f"the {fact.place}" for fact in wanted]
    if len(names) == 1:
        return f"Question: What is the door number of {names[0]}? Answer with the number only."
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"Question: What are the door numbers of {listed}? Answer with the {len(names)} numbers only."


def _pattern(wanted: Sequence[Fact]) -> str:
    """All the numbers, in any order; a thousands comma is forgiven."""
    numbers = (str(fact.number) for fact in wanted)
    return "(?s)^" + "".join(rf"(?=.*(?<!\d){text[:2]},?{text[2:]}(?!\d))" for text in numbers)


def _haystack(rng: random.Random, length: int, depth: float, facts: Sequence[Fact], question: str) -> str:
    """Filler for the window with the first fact at the depth, and the others spread evenly, each somewhere in its own
    stretch of the text."""
    fixed = len(INTRODUCTION) + len(question) + 4 + sum(len(fact.sentence) + 1 for fact in facts)
    tokens = length - ANSWER_TOKENS - MESSAGE_TOKENS - SYSTEM_TOKENS
    filler = prose.sentences(rng, int(tokens * CHARACTERS_PER_TOKEN) - fixed)
    count = len(filler)
    places = [round(depth * count)]
    stretch = count / max(1, len(facts) - 1)
    places += [round(stretch * (number + rng.random())) for number in range(len(facts) - 1)]
    # From the end to the beginning, so that earlier places stay as they are. Where two facts meet, the first one lies
    # on the outside: depth 0 is the very beginning and depth 1 the very end.
    last = depth >= 0.5
    order = sorted(range(len(facts)), key=lambda number: (places[number], (number == 0) == last), reverse=True)
    for number in order:
        filler.insert(places[number], facts[number].sentence)
    return prose.paragraphs(rng, filler)
