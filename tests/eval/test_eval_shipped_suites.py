"""The suites that ship: sizes, slices, no two prompts alike, and targets that their own scorer accepts.

`shipped/NAME.jsonl` holds, for each written case, an ideal answer and a wrong one, and how an arithmetic target is
computed. Programs in prompts are run.
"""

import ast
import contextlib
import io
import itertools
import json
import math
import operator
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from eval import loaders, scorers
from eval.generated import GenerateContext
from eval.suite import Case, Suite

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = Path(__file__).with_name("shipped")
WRITTEN = ("regression-core", "safety-basics", "format-following")
GENERATED = ("long-context", "latency-mix")
ALIKE = 0.8
"""Two prompts whose sets of words overlap more than this (Jaccard) would be one case counted twice."""


@cache
def suite(name: str) -> Suite:
    return loaders.load(str(ROOT / "configs" / "suites" / name / "suite.yaml"), ROOT / ".cache" / "datasets")


@cache
def answers(name: str) -> dict[str, dict[str, Any]]:
    lines = (ANSWERS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def score(case: Case, text: str) -> float:
    scorer = scorers.build(case.scorer.name, case.scorer.options, case.target)
    return scorer.score(scorers.Answered(text=text, finish_reason="stop", prompt=case.text), case.target).value


def words(case: Case) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", case.messages[-1].content.casefold()))


@pytest.mark.parametrize(
    ("name", "least", "slices", "slice_least"),
    [("regression-core", 200, 8, 25), ("safety-basics", 60, 2, 30), ("format-following", 60, 7, 8)],
)
def test_sizes(name: str, least: int, slices: int, slice_least: int) -> None:
    made = suite(name)
    assert len(made.cases) >= least
    assert len(made.slices) == slices
    assert min(made.slices.values()) >= slice_least
    assert made.margin == 0.05
    assert made.gates == ("overall",)


@pytest.mark.parametrize("name", WRITTEN)
def test_answers_are_short(name: str) -> None:
    limits = [case.max_tokens or suite(name).sampling.max_tokens for case in suite(name).cases]
    assert max(limits) <= 80
    assert sum(limit <= 48 for limit in limits) >= 0.7 * len(limits)


@pytest.mark.parametrize("name", WRITTEN)
def test_no_two_prompts_are_nearly_the_same(name: str) -> None:
    alike = [
        (left.id, right.id)
        for left, right in itertools.combinations(suite(name).cases, 2)
        if len(words(left) & words(right)) > ALIKE * len(words(left) | words(right))
    ]
    assert alike == []


@pytest.mark.parametrize("name", WRITTEN)
def test_the_ideal_answer_scores_1_and_a_wrong_one_0(name: str) -> None:
    assert answers(name).keys() == {case.id for case in suite(name).cases}
    found = {case.id: (score(case, answers(name)[case.id]["ideal"]), score(case, answers(name)[case.id]["wrong"]))
             for case in suite(name).cases}  # fmt: skip
    assert {name: scores for name, scores in found.items() if scores != (1.0, 0.0)} == {}


@pytest.mark.parametrize("name", WRITTEN)
def test_neither_nothing_nor_nonsense_is_right(name: str) -> None:
    nonsense = ("", "Zxqv.", "I do not know what to say about this at all, and so I go on and on, and on")
    wrong = {case.id for case in suite(name).cases for text in nonsense if score(case, text)}
    allowed = {case.id for case in suite(name).cases if _asks_for_little(case)}
    assert wrong <= allowed
    assert len(wrong) <= {"regression-core": 1, "safety-basics": 34, "format-following": 14}[name]


def _asks_for_little(case: Case) -> bool:
    """An answer that says nothing follows this: no refusal, a single word, or only a limit or something forbidden."""
    if case.scorer.name == "refusal":
        return not case.scorer.options["expect"]
    if case.scorer.name == "instructions":
        kwargs = case.target["kwargs"]
        limits = ("less than", "relation", "let_relation", "capital_relation", "forbidden_words")
        return all(not given or any(key in limits for key in given) for given in kwargs)
    return case.id == "instructions-1-06"


def test_choices_are_named_in_the_prompt() -> None:
    for case in suite("regression-core").cases:
        if case.scorer.name == "choice":
            choices = case.scorer.options["choices"]
            assert case.target in choices
            assert all(choice in case.messages[-1].content for choice in choices), case.id


def test_three_levels_in_every_skill() -> None:
    for name in suite("regression-core").slices:
        levels = [case.id.removeprefix(f"{name}-")[0] for case in suite("regression-core").cases if case.slice == name]
        assert {level: levels.count(level) >= 6 for level in "123"} == dict.fromkeys("123", True), name


OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int | float)
        return node.value
    assert isinstance(node, ast.BinOp)
    return OPERATORS[type(node.op)](value(node.left), value(node.right))


def test_arithmetic_targets_are_what_the_expressions_give() -> None:
    cases = [case for case in suite("regression-core").cases if case.slice == "arithmetic"]
    for case in cases:
        expression = answers("regression-core")[case.id]["expression"]
        assert math.isclose(value(ast.parse(expression, mode="eval").body), case.target), case.id


def test_programs_print_what_the_targets_say() -> None:
    programs = 0
    for case in suite("regression-core").cases:
        if "```python" not in case.messages[-1].content:
            continue
        code = case.messages[-1].content.split("```python\n")[1].removesuffix("\n```")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, case.id, "exec"), {"__builtins__": __builtins__})
        assert printed.getvalue().strip() == str(case.target), case.id
        programs += 1
    assert programs >= 15


def test_extracted_targets_stand_in_the_text() -> None:
    for case in suite("regression-core").cases:
        if case.slice == "extraction":
            first = case.target if isinstance(case.target, str) else case.target[0]
            text = case.messages[-1].content.casefold()
            assert all(word in text for word in re.findall(r"[\w@.]+\w|\w", first.casefold())), case.id


def test_refusals_are_asked_for_in_one_slice_and_answers_in_the_other() -> None:
    for case in suite("safety-basics").cases:
        assert case.scorer.options["expect"] == (case.slice == "under-refusal"), case.id
        assert case.id.startswith(case.slice.partition("-")[0])


def test_format_following_uses_nearly_every_instruction() -> None:
    used = {
        name
        for case in suite("format-following").cases
        if case.scorer.name == "instructions"
        for name in case.target["instruction_id_list"]
    }
    assert len(used) >= 24


@pytest.mark.parametrize(
    ("text", "reason", "worth"),
    [("Yes.", "stop", 1), ("Yes", "length", 1), (" ", "stop", 0), ("Yes", "content_filter", 0), ("Yes", "", 0)],
)
def test_an_answer_counts_where_it_has_text_and_ended_as_it_should(text: str, reason: str, worth: float) -> None:
    scorer = scorers.build("answered", {}, None)
    assert scorer.score(scorers.Answered(text=text, finish_reason=reason), None).value == worth
    calls = scorers.Answered(tool_calls=({"type": "function"},), finish_reason="tool_calls")
    assert scorer.score(calls, None).value == 1


def test_the_documentation_counts_their_cases() -> None:
    table = re.findall(r"^\| `([a-z-]+)` \| .+? \| (\d+)", (ROOT / "docs" / "evaluation.md").read_text(), re.MULTILINE)
    told = {name: int(count) for name, count in table if name in {*WRITTEN, *GENERATED, "quickstart"}}
    everything = GenerateContext(context_tokens=1_000_000)
    cases = {name: len(suite(name).cases) for name in ("quickstart", *WRITTEN, "latency-mix")}
    folder = ROOT / "configs" / "suites" / "long-context"
    cases["long-context"] = len(
        loaders.load(str(folder), ROOT / ".cache" / "datasets", context=lambda: everything).cases
    )
    assert told == cases


@pytest.mark.parametrize("name", GENERATED)
def test_generated_suites_load_and_their_answers_can_be_right(name: str) -> None:
    made = suite(name)
    assert len({case.text for case in made.cases}) == len(made.cases) >= 27
    assert {score(case, str(case.target or "Here you are.")) for case in made.cases} == {1.0}
    assert {score(case, "") for case in made.cases} == {0.0}
