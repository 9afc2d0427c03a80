"""Parts of a suite, its digest, and worked examples: what must hold for every suite."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eval import loaders
from eval.errors import SuiteError
from eval.fewshot import Example, Pool, placed, question_of
from eval.suite import Case, Message, Sampling, ScorerSpec, Suite

slices = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=1, max_size=60)


def suite_of(names: list[str]) -> Suite:
    cases = tuple(
        Case(id=f"case-{n}", messages=(Message("user", f"q{n}"),), target="x", scorer=ScorerSpec("exact"), slice=name)
        for n, name in enumerate(names)
    )
    return Suite(name="s", version=1, description="", cases=cases, sampling=Sampling())


@given(slices, st.integers(1, 70), st.integers(0, 5))
def test_a_sample_keeps_every_slices_share_to_within_one(names: list[str], count: int, seed: int) -> None:
    suite = suite_of(names)
    part = suite.limited(count, seed)
    assert len(part.cases) == min(count, len(names))
    for name, size in suite.slices.items():
        assert abs(part.slices.get(name, 0) - size * len(part.cases) / len(names)) < 1
    assert [case.id for case in part.cases] == [case.id for case in suite.cases if case in part.cases]


@given(slices, st.integers(1, 70), st.integers(0, 5))
def test_a_sample_is_the_seeds_whatever_the_order(names: list[str], count: int, seed: int) -> None:
    suite = suite_of(names)
    turned = msgspec.structs.replace(suite, cases=suite.cases[::-1])
    assert suite.limited(count, seed) == suite.limited(count, seed)
    assert {case.id for case in suite.limited(count, seed).cases} == {
        case.id for case in turned.limited(count, seed).cases
    }


def test_another_seed_draws_others() -> None:
    suite = suite_of(["a"] * 40)
    drawn = {tuple(case.id for case in suite.limited(10, seed).cases) for seed in range(5)}
    assert len(drawn) == 5


def test_slices_are_chosen_by_name() -> None:
    suite = suite_of(["reading", "reading", "sums", ""])
    assert suite.sliced([]) is suite
    assert [case.id for case in suite.sliced(["sums", "reading"]).cases] == ["case-0", "case-1", "case-2"]
    with pytest.raises(SuiteError, match=r"no slice 'readings' \(did you mean 'reading'\?\); it has: reading, sums"):
        suite.sliced(["readings"])


CHANGES: dict[str, Any] = {
    "id": "other",
    "messages": (Message("user", "other"),),
    "target": "other",
    "scorer": ScorerSpec("contains", {"case_sensitive": True}),
    "slice": "other",
    "cluster": "other",
    "max_tokens": 3,
    "timeout_s": 2.0,
    "weight": 2.0,
    "kind": "choose",
    "choices": ("a", "b"),
    "chat": False,
    "then": ("And?",),
    "request": {"top_k": 1},
}


def test_the_digest_covers_every_field_of_a_case() -> None:
    assert set(CHANGES) == set(Case.__struct_fields__)
    suite = suite_of(["a", "b"])
    digests = {suite.digest}
    for name, value in CHANGES.items():
        changed = msgspec.structs.replace(suite.cases[1], **{name: value})
        digests.add(msgspec.structs.replace(suite, cases=(suite.cases[0], changed)).digest)
    digests.add(msgspec.structs.replace(suite, sampling=Sampling(temperature=1.0)).digest)
    digests.add(msgspec.structs.replace(suite, cases=suite.cases[::-1]).digest)
    assert len(digests) == len(CHANGES) + 3
    assert msgspec.structs.replace(suite, name="z", version=9, description="d", margin=0.2, repeats=5).digest in digests


fields = st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=4), st.none()), max_size=4)


@given(fields, st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_keys(target: dict[str, Any], random: Any) -> None:
    suite = suite_of(["a"])
    keys = list(target)
    random.shuffle(keys)
    first, second = (
        msgspec.structs.replace(suite, cases=(msgspec.structs.replace(suite.cases[0], target=one, request=one),))
        for one in (target, {key: target[key] for key in keys})
    )
    assert first.digest == second.digest


questions = st.lists(st.sampled_from([f"Question {n}?" for n in range(8)]), min_size=1, max_size=20)


@given(questions, st.integers(0, 4), st.integers(0, 9), st.data())
def test_an_example_never_asks_the_cases_own_question(pool: list[str], k: int, seed: int, data: st.DataObject) -> None:
    asked = data.draw(st.sampled_from([*pool, "Another?", f"  {pool[0].upper()} "]))
    messages = (Message("system", "Be brief."), Message("user", asked))
    drawn_from = Pool([Example((Message("user", text),), "yes", "ab"[n % 2]) for n, text in enumerate(pool)])
    others = [one for one in pool[::2] if question_of((Message("user", one),)) != question_of(messages)]
    if len(others) < k:
        with pytest.raises(ValueError, match=f"wants {k} examples, and there are {len(others)} of the slice 'a'"):
            drawn_from.draw(k, seed=seed, case="x", slice_="a", messages=messages)
        return
    found = drawn_from.draw(k, seed=seed, case="x", slice_="a", messages=messages)
    assert len(found) == k
    assert all(one.question != question_of(messages) for one in found)
    assert all(one.slice == "a" for one in found)
    assert found == drawn_from.draw(k, seed=seed, case="x", slice_="a", messages=messages)


def test_examples_stand_as_turns_or_in_the_prompt() -> None:
    case = (Message("system", "Be brief."), Message("user", "Three?"))
    shown = [Example((Message("user", "One?"),), "1"), Example((Message("user", "Two?\n"),), "2")]
    turns = placed(shown, case, "turns", "\n\n")
    assert [(turn.role, turn.content) for turn in turns] == [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?\n"),
        ("assistant", "2"),
        ("user", "Three?"),
    ]
    assert placed(shown, case, "text", "\n\n")[1].content == "One? 1\n\nTwo?\n2\n\nThree?"


def write(folder: Path, rows: list[dict[str, Any]], **suite: Any) -> Path:
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "suite.yaml").write_text(yaml.safe_dump({"name": "s", "cases": "cases.jsonl", "scorer": "exact"} | suite))
    return folder


ROWS = [{"id": f"c{n}", "prompt": f"Question {n}", "target": str(n), "slice": ["even", "odd"][n % 2]} for n in range(8)]


def test_examples_come_from_the_suite_from_a_file_or_from_the_yaml(tmp_path: Path) -> None:
    own = loaders.load(str(write(tmp_path, ROWS, few_shot=2)), tmp_path / "cache")
    assert all(len(case.messages) == 5 for case in own.cases)
    assert {turn.content for turn in own.cases[0].messages[:-1:2]} <= {"Question 2", "Question 4", "Question 6"}

    (tmp_path / "train.jsonl").write_text('{"id": "t", "prompt": "Seven?", "target": ["7", "seven"]}\n')
    given_file = loaders.load(str(write(tmp_path, ROWS, few_shot={"file": "train.jsonl", "k": 1})), tmp_path / "cache")
    assert [turn.content for turn in given_file.cases[3].messages] == ["Seven?", "7", "Question 3"]

    spec = {"examples": [{"prompt": "Question 3", "target": "3"}, {"prompt": "One?", "target": "1"}], "style": "text"}
    fixed = loaders.load(str(write(tmp_path, ROWS, few_shot=spec)), tmp_path / "cache")
    assert [case.messages[0].content.count("One? 1") for case in fixed.cases] == [1] * 8
    assert fixed.cases[3].messages[0].content == "One? 1\n\nQuestion 3"


def test_a_part_of_a_suite_asks_the_same_as_the_whole(tmp_path: Path) -> None:
    whole = loaders.load(str(write(tmp_path, ROWS, few_shot=2)), tmp_path / "cache")
    assert all(case in whole.cases for case in whole.limited(3, 1).cases)
    assert all(case in whole.cases for case in whole.sliced(["odd"]).cases)


@pytest.mark.parametrize(
    ("few_shot", "message"),
    [
        (
            4,
            r"line 1: case 'c0': few_shot wants 4 examples, and there are 3 of the slice 'even' beside the case itself",
        ),
        (-1, "line 2: `few_shot` wants -1 examples"),
        ({"file": "away.jsonl", "k": 2}, "line 3: the data .*away.jsonl are not there"),
        ({"file": "cases.jsonl"}, "`few_shot` needs `k`"),
        ({"k": 2, "sede": 1}, r"unknown field `sede` of `few_shot` \(did you mean `seed`\?\)"),
        ({"k": "two"}, "line 3: `few_shot.k`: expected"),
        ({"examples": [{"prompt": "One?"}]}, "a worked example needs an answer"),
    ],
)
def test_wrong_examples_are_one_sentence(tmp_path: Path, few_shot: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        loaders.load(str(write(tmp_path, ROWS, few_shot=few_shot)), tmp_path / "cache")
