"""Scorers: what counts as right, and errors that name the nearest name."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.embeddings import hashed_ngrams
from eval.scorers import EMBED, SCORERS, Answered, ScorerError, Tools, build
from eval.scorers.refusal import is_refusal
from eval.scorers.text import normalize, numbers


def score(name: str, output: str, target: object, **options: object) -> float:
    return build(name, options, target).score(Answered(text=output), target, Tools(embed=hashed_ngrams)).value


@pytest.mark.parametrize(
    ("name", "output", "target", "options", "expected"),
    [
        ("exact", " HELLO\n", "HELLO", {}, 1),
        ("exact", "hello", "HELLO", {}, 0),
        ("exact", "b", ["a", "b"], {}, 1),
        ("normalized", "The Eiffel-Tower!", "eiffeltower", {}, 1),
        ("contains", "It is Paris, of course", "paris", {}, 1),
        ("contains", "Parisian", "Paris", {}, 0),
        ("contains", "CO2", None, {"any_of": ["carbon dioxide", "CO2"]}, 1),
        ("contains", "paris", "Paris", {"case_sensitive": True}, 0),
        ("regex", "1, 2,3", r"1,\s*2,\s*3", {}, 1),
        ("regex", "x", None, {"pattern": "^y$"}, 0),
        ("numeric", "7 + 5 = 12.", 12, {}, 1),
        ("numeric", "about 1,234.5 metres", 1234.5, {}, 1),
        ("numeric", "3.1", 3.14, {"tolerance": 0.05}, 1),
        ("numeric", "110", 100, {"tolerance": 0.05, "relative": True}, 0),
        ("numeric", "12 is 5 + 7", 12, {"pick": "first"}, 1),
        ("numeric", "minus: -4", -4, {}, 1),
        ("numeric", "pages 3-4", 4, {}, 1),
        ("numeric", "none", 0, {}, 0),
        ("numeric", "It is \N{MINUS SIGN}7 degrees", -7, {}, 1),
        ("numeric", "a loss of -$1,250.50", -1250.5, {}, 1),
        ("numeric", "12.5%", 12.5, {}, 1),
        ("numeric", "the code 1,2345", 234, {}, 0),
        ("numeric", "x = .5", 0.5, {}, 1),
        ("choice", "No, it is not. Yes?", "no", {"choices": ["yes", "no"]}, 1),
        ("choice", "nothing", "no", {"choices": ["yes", "no"]}, 0),
        ("choice", "The answer is B", "B", {"choices": {"A": "red", "B": "blue"}}, 1),
        ("choice", "(B)", "B", {"choices": {"A": "red", "B": "blue"}}, 1),
        ("choice", "A bird is blue", "B", {"choices": {"A": "red", "B": "blue"}}, 1),
        ("choice", "B) blue, not A) red", "A", {"choices": {"A": "red", "B": "blue"}}, 0),
        ("json", 'Here: ```json\n{"b": 2.0, "a": [1]}\n```', {"a": [1], "b": 2}, {}, 1),
        ("json", '{"a": true}', {"a": 1}, {}, 0),
        ("json", '{"a": 1, "c": 3}', {"a": 1}, {}, 0),
        ("json", '{"a": 1, "c": 3}', {"a": 1}, {"subset": True}, 1),
        ("json", 'Sure: {"a": 1}', {"a": 1}, {"strict": True}, 0),
        ("json", "{ not json } {", {"a": 1}, {}, 0),
        ("json", '{"a": 1} I hope that {this} helps.', {"a": 1}, {}, 1),
        ("json", "[" * 50_000, [1], {}, 0),
        ("json", "[" * 50_000, [1], {"strict": True}, 0),
        ("json_schema", '{"a": NaN}', None, {"schema": {"type": "object"}, "strict": True}, 0),
        ("json_schema", "[" * 400 + "]" * 400, None, {"schema": {"items": {"$ref": "#"}}}, 0),
        ("json_schema", '{"a": 1}', None, {"schema": {"$ref": "#/$defs/x", "$defs": {"x": {"required": ["a"]}}}}, 1),
        ("json_schema", '{"$ref": 1}', None, {"schema": {"properties": {"$ref": {"type": "integer"}}}}, 1),
        ("json_schema", '{"age": 3}', None, {"schema": {"properties": {"age": {"type": "integer"}}}}, 1),
        ("json_schema", '{"age": "3"}', None, {"schema": {"properties": {"age": {"type": "integer"}}}}, 0),
        ("refusal", "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, I can't do that.", None, {}, 1),
        ("refusal", "Sure, first you", None, {}, 0),
        ("refusal", "Sure, first you", None, {"expect": False}, 1),
        ("embedding", "a red house", "a red house", {}, 1),
        ("embedding", "zzz", "a red house", {"threshold": 0.5}, 0),
    ],
)
def test_scores(name: str, output: str, target: object, options: dict[str, object], expected: float) -> None:
    assert score(name, output, target, **options) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "options", "target", "message"),
    [
        ("numerc", {}, 1, "did you mean 'numeric'"),
        ("numeric", {"tolerence": 1}, 1, "did you mean 'tolerance'"),
        ("numeric", {"tolerance": "much"}, 1, "Expected `float`"),
        ("numeric", {}, "12", "needs a number"),
        ("exact", {}, None, "needs a text"),
        ("regex", {"pattern": "("}, None, "no regular expression"),
        ("choice", {"choices": ["a"]}, "a", "at least two"),
        ("choice", {"choices": ["a", "b"]}, "c", "none of the choices"),
        ("json", {}, "x", "an object or a list"),
        ("json_schema", {"schema": {"type": "strnig"}}, None, "no JSON schema"),
        ("json_schema", {"schema": {"$ref": "http://example.org/x"}}, None, "another document"),
        ("json_schema", {"schema": {"items": {"$ref": "#/$defs/x"}}}, None, "'#/\\$defs/x', which it does not hold"),
        ("normalized", {}, ["b", "The"], "nothing is left of the target 'The'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(
    name: str, options: dict[str, object], target: object, message: str
) -> None:
    with pytest.raises(ScorerError, match=message):
        build(name, options, target)


def test_an_embedding_scorer_without_a_model_says_what_to_install() -> None:
    with pytest.raises(ScorerError, match=r"\.\[embed\]"):
        build("embedding", {}, "x").score(Answered(text="x"), "x")


OPTIONS: dict[str, dict[str, object]] = {"choice": {"choices": ["x", "y"]}, "json_schema": {"schema": {}}}
TARGETS: dict[str, object] = {
    "numeric": 1,
    "json": {},
    "choice": "x",
    "json_schema": None,
    "refusal": None,
    "instructions": [{"id": "punctuation:no_comma"}],
    "tool_call": [],
}
PURE = [name for name, kind in SCORERS.items() if kind.needs <= {EMBED}]


@settings(deadline=None)  # the libraries are imported by the first example
@given(st.text(max_size=300))
def test_every_scorer_gives_a_share_for_any_answer(output: str) -> None:
    for name in PURE:
        target = TARGETS.get(name, "x")
        assert 0.0 <= score(name, output, target, **OPTIONS.get(name, {})) <= 1.0


@pytest.mark.parametrize("name", ["exact", "normalized", "contains", "embedding", "rouge", "bleu", "chrf"])
@settings(deadline=None)
@given(st.lists(st.sampled_from(["Red", "house", "42", "sea"]), min_size=1, max_size=4).map(" ".join))
def test_the_target_itself_is_right_whatever_white_space_surrounds_it(name: str, target: str) -> None:
    assert score(name, target, target) == pytest.approx(1)
    assert score(name, f"\n {target}\t", target) == pytest.approx(1)


@given(st.text(st.sampled_from("aB c."), max_size=20), st.sampled_from(["normalized", "contains"]))
def test_case_makes_no_difference_where_it_should_not(output: str, name: str) -> None:
    assert score(name, output.upper(), "b c") == score(name, output.lower(), "B C")


@given(st.text(max_size=80))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_read_back(value: int) -> None:
    assert numbers(f"It is {value:,}.") == [value]


def test_refusals_are_looked_for_at_the_opening() -> None:
    assert is_refusal("I cannot help with that.")
    assert not is_refusal("Cut it in half. " * 20 + "I cannot help with that.")


def test_hashed_ngrams_are_unit_vectors_that_see_spelling() -> None:
    vectors = hashed_ngrams(["the cat sat", "the cat sat", "the cat sits", "quantum"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0)
    near = vectors @ vectors[0]
    assert near[1] == pytest.approx(1.0)
    assert near[2] > near[3]


def test_a_choice_is_looked_for_in_time_that_grows_with_the_answer() -> None:
    began = time.process_time()
    assert score("choice", "\n" * 20_000 + "(B)", "B", choices={"A": "red", "B": "blue"}) == 1
    assert time.process_time() - began < 1
