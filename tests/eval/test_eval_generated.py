"""Generated suites: the same seed gives the same cases, needles lie where they are said to, lengths hold."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import scorers
from eval.generated import GENERATORS, GenerateContext, GenerateError, generate, prose
from eval.generated.base import CHARACTERS_PER_TOKEN, MESSAGE_TOKENS, SYSTEM_TOKENS, needed_tokens, seeded
from eval.generated.latency_mix import MIX, WORKLOADS
from eval.generated.long_context import ANSWER_TOKENS, INTRODUCTION, KINDS, MULTI

FACT = re.compile(r"The door number of the ([a-z ]+) is (\d{5})\.")
ASKED = re.compile(r"door numbers? of (?:the )(.+)\?")
WIDE = GenerateContext(context_tokens=1_000_000)


def cases(name: str, context: GenerateContext = WIDE, **options: Any) -> dict[str, dict[str, Any]]:
    rows = {row["id"]: row for row in generate(name, options, context).rows}
    assert len(rows) == len(generate(name, options, context).rows)
    return rows


def filler_and_facts(prompt: str) -> tuple[list[str], list[tuple[int, str, str]]]:
    """The filler's sentences, and each fact with the number of filler sentences before it."""
    text = prompt.removeprefix(INTRODUCTION).rpartition("\n\n")[0].strip()
    filler: list[str] = []
    facts: list[tuple[int, str, str]] = []
    for sentence in re.split(r"(?<=\.)\s", text):
        if found := FACT.fullmatch(sentence):
            facts.append((len(filler), found[1], found[2]))
        else:
            filler.append(sentence)
    return filler, facts


def places_asked(prompt: str) -> list[str]:
    found = ASKED.search(prompt.rpartition("\n\n")[2])
    assert found
    return re.split(r", the | and the ", found[1])


@given(seed=st.integers(0, 10**6), length=st.integers(384, 1500), depth=st.floats(0, 1), kind=st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_a_needle_lies_at_its_depth_and_its_case_fits_its_length(
    seed: int, length: int, depth: float, kind: str
) -> None:
    asked = {"seed": seed, "lengths": [length], "depths": [depth], "kinds": [kind]}
    (row,) = generate("long-context", asked, WIDE).rows
    assert generate("long-context", asked, WIDE).rows == (row,)
    filler, facts = filler_and_facts(row["prompt"])
    wanted = places_asked(row["prompt"])
    numbers = {place: number for _, place, number in facts}
    before = {place: count for count, place, _ in facts}

    assert before[wanted[0]] == round(depth * len(filler))
    assert len(wanted) == (MULTI if kind == "multi" else 1)
    assert len(facts) == len(numbers) == {"single": 1, "distractor": 5, "multi": MULTI}[kind]
    assert row["target"] == ", ".join(numbers[place] for place in wanted)
    assert len(set(filler)) == len(filler) >= 3
    assert needed_tokens(row["prompt"], ANSWER_TOKENS, WIDE) <= length
    longest_sentence = 200 / CHARACTERS_PER_TOKEN
    assert needed_tokens(row["prompt"], ANSWER_TOKENS, WIDE) >= length - longest_sentence


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS))
@settings(max_examples=30, deadline=None)
def test_the_numbers_asked_for_are_right_and_any_other_is_wrong(seed: int, kind: str) -> None:
    (row,) = generate("long-context", {"seed": seed, "lengths": [512], "depths": [0.5], "kinds": [kind]}, WIDE).rows
    spec = scorers.build("regex", {"pattern": row["scorer"]["pattern"]}, row["target"])

    def score(text: str) -> float:
        return spec.score(scorers.Answered(text=text), row["target"]).value

    wanted = row["target"].split(", ")
    assert score(row["target"]) == 1
    assert score(f"The door numbers are:\n{' and '.join(reversed(wanted))}.") == 1
    assert score(", ".join(f"{number[:2]},{number[2:]}" for number in wanted)) == 1
    assert score("7".join(wanted) + "7") == 0
    assert score("") == 0
    misleading = [number for _, _, number in filler_and_facts(row["prompt"])[1] if number not in wanted]
    assert score(", ".join([*wanted[1:], *misleading])) == 0


def test_another_seed_gives_other_texts_and_a_further_length_changes_no_other_case() -> None:
    first = cases("long-context", seed=7, lengths=[512, 1024])
    assert {row["slice"] for row in first.values()} == {f"{n}@{d}%" for n in (512, 1024) for d in (0, 50, 100)}
    more = cases("long-context", seed=7, lengths=[512, 768, 1024], depths=[0, 0.25, 0.5, 1], samples=2)
    assert first == {name: more[name] for name in first}
    assert len({row["prompt"] for row in more.values()}) == len(more) == 3 * 4 * 3 * 2
    other = cases("long-context", seed=8, lengths=[512, 1024])
    assert first.keys() == other.keys()
    assert all(first[name]["prompt"] != other[name]["prompt"] for name in first)


def test_the_server_decides_what_is_left_out_and_never_what_is_asked() -> None:
    options = {"lengths": [512, 2048, 8192]}
    everything = generate("long-context", options, WIDE)
    assert everything.left_out == ()
    told = generate("long-context", options, GenerateContext(context_tokens=2048))
    assert told.rows == everything.rows[:18]
    assert told.left_out == ("9 cases of length 8,192 left out: the window is 2,048 tokens",)
    untold = generate("long-context", options, GenerateContext())
    assert untold.rows == told.rows
    assert "does not tell its window" in untold.left_out[0]
    assert "4,096" in untold.left_out[0]

    words = GenerateContext(context_tokens=2048, count_tokens=lambda text: len(text.split()))
    assert generate("long-context", options, words).rows == told.rows
    letters = GenerateContext(context_tokens=2048, count_tokens=len)
    counted = generate("long-context", options, letters)
    assert counted.rows == told.rows[:9]
    assert counted.left_out == ("18 cases of lengths 2,048 and 8,192 left out: the window is 2,048 tokens",)
    with pytest.raises(GenerateError, match="no length of 'long-context' fits a window of 300 tokens"):
        generate("long-context", options, GenerateContext(context_tokens=300))


def test_filler_varies_and_holds_no_digits() -> None:
    texts = prose.sentences(seeded(1), 100_000)
    assert 900 < len(texts) == len(set(texts))
    assert not re.search(r"\d|[{}]", " ".join(texts))
    assert len({text.split()[0] for text in texts}) > 30
    assert sum(len(text) + 1 for text in texts) == pytest.approx(100_000, abs=200)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_a_mix_has_its_numbers_and_lengths(seed: int) -> None:
    rows = cases("latency-mix", seed=seed)
    assert rows == cases("latency-mix", seed=seed)
    assert len({row["prompt"] for row in rows.values()}) == len(rows) == sum(MIX.values())
    for name, count in MIX.items():
        mine = [row for row in rows.values() if row["slice"] == name]
        low, high = WORKLOADS[name].prompt_tokens
        assert len(mine) == count
        assert all(row["max_tokens"] == WORKLOADS[name].answer_tokens for row in mine)
        assert all(low - 90 <= len(row["prompt"]) / CHARACTERS_PER_TOKEN <= high + 90 for row in mine)
        assert all(row["request"] == {"ignore_eos": True} for row in mine)
        for row in mine:
            if name == "code":
                compile(row["prompt"].split("```")[1].removeprefix("python\n"), row["id"], "exec")


def test_a_mix_asks_for_fixed_lengths_where_it_is_told_to_and_leaves_out_what_does_not_fit() -> None:
    assert all("request" not in row for row in cases("latency-mix", fixed=False).values())
    small = generate("latency-mix", {}, GenerateContext(context_tokens=900))
    assert {row["slice"] for row in small.rows} == {"chat", "writing", "code"}
    assert any("'rag' requests left out: the window is 900 tokens" in text for text in small.left_out)
    assert {row["slice"] for row in cases("latency-mix", mix={"code": 2}).values()} == {"code"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("long-contxt", {}, "unknown generator 'long-contxt' .did you mean 'long-context'"),
        ("long-context", {"lenghts": [512]}, "no option 'lenghts' .did you mean 'lengths'"),
        ("long-context", {"lengths": "512"}, r"generator 'long-context': .*array.*lengths"),
        ("long-context", {"lengths": []}, "must not be empty"),
        ("long-context", {"lengths": [100]}, "`lengths` must be 384 or more"),
        ("long-context", {"depths": [1.5]}, "`depths` must lie between 0 and 1"),
        ("long-context", {"kinds": ["double"]}, "double"),
        ("long-context", {"samples": 0}, "`samples` must be at least 1"),
        ("long-context", {"distractors": 30}, "`distractors` must lie between 1 and 8"),
        ("latency-mix", {"mix": {"chats": 3}}, "unknown workload 'chats'; known: chat, rag, writing, code"),
        ("latency-mix", {"mix": {"chat": -3}}, "must not be negative"),
        ("latency-mix", {"mix": {}}, "no request is left"),
    ],
)
def test_options_that_cannot_be_used_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        generate(name, options)


def test_template_and_answer_tokens_are_part_of_what_a_case_needs() -> None:
    assert needed_tokens("", 32, GenerateContext()) == MESSAGE_TOKENS + SYSTEM_TOKENS + 32
    assert needed_tokens("x" * 401, 0, GenerateContext()) == MESSAGE_TOKENS + SYSTEM_TOKENS + 101
    assert set(GENERATORS) == {"long-context", "latency-mix"}
