"""Requests of different shapes, to measure speed: chat, retrieval, writing, code.

Owns: the cases of the generator `latency-mix`. Never: I/O; a judgement of quality. A pure function of its options.

| workload  | prompt, tokens | answer, tokens | what it is like                            |
|-----------|----------------|----------------|--------------------------------------------|
| `chat`    | 50 to 150      | 64             | a short question, a short answer           |
| `rag`     | 800 to 1,600   | 48             | passages found by a search, a short answer |
| `writing` | 50 to 150      | 256            | a short request, a long text               |
| `code`    | 250 to 600     | 128            | a module to read, a function to write      |

Prompt lengths are estimates (CHARACTERS_PER_TOKEN), drawn log-uniformly and cut to whole sentences or functions. Where
`fixed` is set, every request carries `ignore_eos`, which llama.cpp, vLLM and SGLang honour: each answer has exactly its
length, and two versions do the same work. A hosted API may refuse the field; with `fixed: false` answers end where the
model ends them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from eval.generated import prose
from eval.generated.base import (
    CHARACTERS_PER_TOKEN,
    GenerateContext,
    Generated,
    GenerateError,
    needed_tokens,
    read_options,
    seeded,
)

NAME: Final = "latency-mix"
MIX: Final = {"chat": 16, "rag": 8, "writing": 8, "code": 8}


class Workload(msgspec.Struct, frozen=True):
    """The shape of one kind of request."""

    prompt_tokens: tuple[int, int]
    """The shortest and the longest prompt."""
    answer_tokens: int
    write: Callable[[random.Random, int], str]
    """The prompt of about so many characters."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a suite may set."""

    seed: int = 0
    mix: dict[str, int] = msgspec.field(default_factory=lambda: dict(MIX))
    """Workload -> number of requests."""
    fixed: bool = True
    """Ask for answers of exactly their length (`ignore_eos`)."""


def generate(options: Mapping[str, Any], context: GenerateContext) -> Generated:
    """The requests, workloads interleaved as they would arrive. Raises GenerateError where an option cannot be used."""
    asked = read_options(options, Options, NAME)
    for name, count in asked.mix.items():
        if name not in WORKLOADS:
            raise GenerateError(f"the generator {NAME!r}: unknown workload {name!r}; known: {', '.join(WORKLOADS)}")
        if count < 0:
            raise GenerateError(f"the generator {NAME!r}: the number of {name!r} is {count}: it must not be negative")
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for name, count in asked.mix.items():
        made = [_row(asked, name, index) for index in range(count)]
        limit = context.context_tokens
        fitting = [
            row for row in made if limit is None or needed_tokens(row["prompt"], row["max_tokens"], context) <= limit
        ]
        if len(fitting) < len(made):
            left_out.append(
                f"{len(made) - len(fitting)} of {count} {name!r} requests left out: the window is {limit:,} tokens"
            )
        rows += fitting
    if not rows:
        raise GenerateError(f"the generator {NAME!r}: no request is left; give `mix` numbers above 0")
    seeded(asked.seed, "order").shuffle(rows)
    return Generated(rows=tuple(rows), left_out=tuple(left_out))


def _row(asked: Options, name: str, index: int) -> dict[str, Any]:
    rng = seeded(asked.seed, name, index)
    workload = WORKLOADS[name]
    low, high = workload.prompt_tokens
    tokens = math.exp(rng.uniform(math.log(low), math.log(high)))
    row: dict[str, Any] = {
        "id": f"{name}-{index + 1:03d}",
        "slice": name,
        "prompt": workload.write(rng, int(tokens * CHARACTERS_PER_TOKEN)),
        "scorer": "answered",
        "max_tokens": workload.answer_tokens,
    }
    return row | ({"request": {"ignore_eos": True}} if asked.fixed else {})


def _note(rng: random.Random, characters: int, asked: str) -> str:
    """Some sentences and a request about them; at least one sentence, so that no two prompts are alike."""
    return " ".join([*(prose.sentences(rng, characters - len(asked)) or [prose.sentence(rng)]), asked])


def _chat(rng: random.Random, characters: int) -> str:
    asked = (
        "What would you say to that?", "What should I do next?", "Is that unusual?", "Why might that be?",
        "Can you put that more simply?", "What happened before, do you think?", "How would you reply to this?",
    )  # fmt: skip
    return _note(rng, characters, rng.choice(asked))


def _writing(rng: random.Random, characters: int) -> str:
    forms = ("a short story", "a letter to a friend", "a newspaper report", "a diary entry", "a speech", "a fairy tale")
    return _note(rng, characters, f"Write {rng.choice(forms)} that begins like this.")


def _rag(rng: random.Random, characters: int) -> str:
    opening = "Answer the question from the passages below, in one or two sentences."
    question = f"Question: What is said about {rng.choice(prose.PEOPLE)}, and what about {rng.choice(prose.THINGS)}?"
    texts = prose.sentences(rng, characters - len(opening) - len(question))
    size = max(1, len(texts) // 4)
    passages = [" ".join(texts[start : start + size]) for start in range(0, len(texts), size)]
    numbered = [f"[{number}] {passage}" for number, passage in enumerate(passages, start=1)]
    return "\n\n".join([opening, *numbered, question])


def _code(rng: random.Random, characters: int) -> str:
    opening = "Here is a Python module."
    functions: list[str] = []
    left = characters - len(opening) - 120
    for number, verb in enumerate(rng.sample(VERBS, len(VERBS))):
        noun, column = rng.choice(NOUNS), rng.choice(COLUMNS)
        text = rng.choice(FUNCTIONS).format(verb=verb, noun=noun, column=column, limit=rng.randint(2, 90))
        if number and len(text) + 2 > left:
            break
        functions.append(text)
        left -= len(text) + 2
    verb, noun, column = rng.choice(VERBS), rng.choice(NOUNS), rng.choice(COLUMNS)
    asked = f"Write a function `{verb}_{noun}s_by_{column}` in the same style, with a docstring and a small test."
    module = "\n\n\n".join(functions)
    return f"{opening}\n\n```python\n{module}\n```\n\n{asked}"


VERBS: Final = ("count", "merge", "rank", "filter", "group", "check", "split", "total", "sort", "trim", "list", "pair")
NOUNS: Final = ("order", "parcel", "ticket", "reading", "invoice", "booking", "student", "sensor", "route", "lease")
COLUMNS: Final = ("price", "weight", "city", "age", "date", "score", "owner", "status", "length", "region")
FUNCTIONS: Final = (
    "def {verb}_{noun}s(rows: list[dict], limit: int = {limit}) -> list[dict]:\n"
    '    """The {noun}s whose {column} is above the limit."""\n'
    "    return [row for row in rows if row['{column}'] > limit]",
    "def {verb}_{noun}s(rows: list[dict]) -> dict[str, int]:\n"
    '    """How many {noun}s there are of each {column}."""\n'
    "    counts: dict[str, int] = {{}}\n"
    "    for row in rows:\n"
    "        counts[row['{column}']] = counts.get(row['{column}'], 0) + 1\n"
    "    return counts",
    "def {verb}_{noun}s(rows: list[dict], size: int = {limit}) -> list[list[dict]]:\n"
    '    """The {noun}s by {column}, in batches of `size`."""\n'
    "    ordered = sorted(rows, key=lambda row: row['{column}'])\n"
    "    return [ordered[start:start + size] for start in range(0, len(ordered), size)]",
    "def {verb}_{noun}s(left: list[dict], right: list[dict]) -> list[tuple[dict, dict]]:\n"
    '    """Pairs of {noun}s with the same {column}."""\n'
    "    known = {{row['{column}']: row for row in left}}\n"
    "    return [(known[row['{column}']], row) for row in right if row['{column}'] in known]",
)

WORKLOADS: Final[Mapping[str, Workload]] = {
    "chat": Workload((50, 150), 64, _chat),
    "rag": Workload((800, 1600), 48, _rag),
    "writing": Workload((50, 150), 256, _writing),
    "code": Workload((250, 600), 128, _code),
}
