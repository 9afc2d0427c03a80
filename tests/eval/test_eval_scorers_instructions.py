"""Verifiable instructions: each published id, right and wrong, strict and loose."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scorers import Answered, ScorerError, build
from eval.scorers.instructions import INSTRUCTIONS, readings, sentences

GERMAN = "Der Hund lief gestern schnell nach Hause, weil es stark regnete."
ENGLISH = "The dog ran home quickly yesterday because it was raining hard"

EXAMPLES: list[tuple[str, dict[str, object], str, str]] = [
    ("keywords:existence", {"keywords": ["river", "C++"]}, "The River runs C++.", "The river runs."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Go, go!", "Go."),
    ("keywords:forbidden_words", {"forbidden_words": ["rain", "snow"]}, "It is raining.", "No Rain."),
    ("keywords:letter_frequency", {"letter": "Z", "let_frequency": 2, "let_relation": "less than"}, "zoo", "ZaZa"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "Dr. Smith left. he came back.",
        "Dr. Smith left at 3.30 p.m. today",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n***\n***\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "now three words"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        'First.\n\n"Then," he said.',
        "First.\n\nThe end.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [address]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP. P. S. Call.", "Bye.\nP.S. Call."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n** two **"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 2},
        "PART 1\na\nPART 2\nb",
        "PART 1\na\nPART two\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<A poem>>\nroses", "<< >>\nroses"),
    ("combination:two_responses", {}, "yes\n******\nno", "yes\n******\nyes"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why?"}, "why? Because.", "Because."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. "The END."', "The end. Bye."),
    ("startend:quotation", {}, ' "quoted" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "A TOP-SECRET plan",
        "TOP secret",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), GERMAN.upper()),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
    ("punctuation:no_comma", {}, "one; two", "one, two"),
]


def value(text: str, target: object, **options: object) -> float:
    return build("instructions", options, target).score(Answered(text=text), target).value


@pytest.mark.parametrize(("name", "keywords", "followed", "missed"), EXAMPLES, ids=[row[0] for row in EXAMPLES])
def test_each_instruction_tells_an_answer_that_follows_it(
    name: str, keywords: dict[str, object], followed: str, missed: str
) -> None:
    target = [{"id": name, "keyword_of_another": None} | keywords]
    assert value(followed, target) == 1
    assert value(missed, target) == 0
    assert value(" \n", target) == value(" \n", target, mode="loose") == 0


def test_every_published_instruction_has_an_example() -> None:
    assert [row[0] for row in EXAMPLES] == list(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25


def test_the_share_or_all_of_them_and_which_were_missed() -> None:
    target = [{"id": "punctuation:no_comma"}, {"id": "startend:quotation"}]
    assert value("a", target) == 0.5
    assert value("a", target, count="all") == 0
    assert value('"a"', target, count="all") == 1
    found = build("instructions", {}, target).score(Answered(text="a"), target)
    assert found.detail == "not followed: startend:quotation"


def test_a_target_may_be_written_as_the_published_files_have_it() -> None:
    target = {
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 2.0, "relation": "at least"}],
    }
    assert value("two words", target) == 1


def test_the_loose_reading_forgives_an_opening_a_closing_and_asterisks() -> None:
    target = [{"id": "detectable_format:json_format"}]
    wrapped = 'Sure, here it is:\n**{"a": 1}**\nI hope this helps!'
    assert value(wrapped, target) == 0
    assert value(wrapped, target, mode="loose") == 1


@settings(deadline=None)
@given(st.text(max_size=200))
def test_the_loose_score_is_never_below_the_strict_one(text: str) -> None:
    target = [{"id": name} | keywords for name, keywords, _, _ in EXAMPLES]
    strict, loose = value(text, target), value(text, target, mode="loose")
    assert 0 <= strict <= loose <= 1
    assert text in list(readings(text))


@given(
    st.lists(st.sampled_from(["It rained.", "Did it?", "Yes!", "We left."]), max_size=8),
    st.sampled_from([" ", "\n", "  "]),
)
def test_sentences_are_counted_whatever_the_white_space(parts: list[str], space: str) -> None:
    assert sentences(space.join(parts)) == len(parts)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Wait... what? ok", 2),
        ("J. R. Smith came, e.g. yesterday.", 1),
        ('He said "Go." Then he went.', 2),
        ("hello there. how are you?", 2),
        ("See www.example.org now", 1),
        ("...", 0),
    ],
)
def test_what_ends_a_sentence(text: str, count: int) -> None:
    assert sentences(text) == count


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([], "needs a list of instructions"),
        ([{"id": "length_constraints:number_word"}], "did you mean 'length_constraints:number_words'"),
        ([{"id": "punctuation:no_comma", "n": 1}], "no keyword 'n'; it takes: none"),
        ([{"id": "keywords:existence"}], "needs the keyword 'keywords'"),
        ([{"id": "length_constraints:number_words", "num_words": 3, "relation": "about"}], "relation: Invalid enum"),
        ({"instruction_id_list": ["x"], "kwargs": []}, "needs a list of instructions"),
    ],
)
def test_an_instruction_that_cannot_be_checked_is_refused(target: object, message: str) -> None:
    with pytest.raises(ScorerError, match=message):
        build("instructions", {}, target)


def test_published_targets_survive_json() -> None:
    target = json.loads(json.dumps([{"id": name} | keywords for name, keywords, _, _ in EXAMPLES]))
    assert 0 <= value("x", target) < 1
