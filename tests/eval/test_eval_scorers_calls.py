"""Tool calls, log-likelihoods, and the overlap with a reference."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scorers import Answered, Likelihood, NoScoreError, Score, ScorerError, build


def call(name: str, arguments: str) -> dict[str, object]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


BERLIN = {"name": "weather", "arguments": {"city": "Berlin", "days": 2}}
PARIS = {"name": "weather", "arguments": {"city": "Paris"}}


def of_calls(target: object, *calls: dict[str, object], text: str = "", **options: object) -> float:
    return build("tool_call", options, target).score(Answered(tool_calls=calls, text=text), target).value


@pytest.mark.parametrize(
    ("target", "calls", "options", "expected"),
    [
        (BERLIN, [call("weather", '{"days": 2.0, "city": "Berlin"}')], {}, 1),
        (BERLIN, [call("weather", '{"days": 3, "city": "Berlin"}')], {}, 0),
        (BERLIN, [call("weather", '{"days": 3}')], {"arguments": "ignore"}, 1),
        (BERLIN, [call("news", '{"days": 2, "city": "Berlin"}')], {"arguments": "ignore"}, 0),
        (BERLIN, [call("weather", '{"days": 2, "city": "Berlin", "unit": "C"}')], {}, 0),
        (BERLIN, [call("weather", '{"days": 2, "city": "Berlin", "unit": "C"}')], {"arguments": "subset"}, 1),
        (BERLIN, [call("weather", '{"city": "Berlin"')], {}, 0),
        (BERLIN, [], {}, 0),
        ([], [], {}, 1),
        ([], [call("weather", "{}")], {}, 0),
        ([BERLIN, PARIS], [PARIS, BERLIN], {}, 1),
        ([BERLIN, PARIS], [PARIS, BERLIN], {"in_order": True}, 0),
        ([BERLIN, PARIS], [PARIS], {"partial": True}, 0.5),
        ([PARIS], [PARIS, BERLIN], {}, 0),
        ([PARIS], [PARIS, BERLIN], {"partial": True}, 0.5),
        ([PARIS], [PARIS, BERLIN], {"extra": True}, 1),
        ([PARIS, PARIS], [PARIS], {}, 0),
        ({"name": "f", "arguments": {"x": [1, 2]}}, [call("f", '{"x": [2, 1]}')], {}, 0),
        ({"name": "f", "arguments": {"x": [1, 2.0]}}, [call("f", '{"x": [2, 1]}')], {"unordered_lists": True}, 1),
        ({"name": "now"}, [call("now", "")], {}, 1),
    ],
)
def test_calls_are_matched_with_those_expected(
    target: object, calls: list[dict[str, object]], options: dict[str, object], expected: float
) -> None:
    assert of_calls(target, *calls, **options) == expected


def test_the_best_assignment_of_calls_counts() -> None:
    """The first expected call fits both; only the other way round do both find theirs."""
    target = [{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1, "b": 2}}]
    both = [call("f", '{"a": 1, "b": 2}'), call("f", '{"a": 1}')]
    assert of_calls(target, *both, arguments="subset") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>', 1),
        ('I call ```json\n[{"name": "weather", "parameters": {"city": "Paris"}}]\n```', 1),
        ("weather(city='Paris')", 0),
        ('{"name": "weather", "arguments": "no"}', 0),
    ],
)
def test_a_call_can_be_read_from_the_text(text: str, expected: float) -> None:
    assert of_calls(PARIS, text=text, in_text=True) == expected
    assert of_calls(PARIS, text=text) == 0


names = st.sampled_from(["f", "g"])
values = st.recursive(st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3), st.lists)
calls_made = st.lists(
    st.fixed_dictionaries({"name": names, "arguments": st.dictionaries(st.sampled_from("ab"), values)}), max_size=4
)


@given(calls_made, st.randoms(use_true_random=False))
def test_the_expected_calls_are_right_in_any_order(target: list[dict[str, object]], random: object) -> None:
    assert of_calls(target, *target) == of_calls(target, *target, in_order=True) == 1
    shuffled = list(target)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert of_calls(target, *shuffled) == 1
    assert 0 <= of_calls(target, *shuffled[1:], partial=True, unordered_lists=True) <= 1


def chosen(target: object, choices: dict[str, Likelihood], **options: object) -> Score:
    return build("likelihood", options, target).score(Answered(choices=choices), target)


def test_the_likeliest_choice_is_the_models_answer() -> None:
    choices = {" no": Likelihood(-2.0, 1), " certainly so": Likelihood(-3.0, 3)}
    plain, by_length = chosen(" no", choices), chosen(" no", choices, length="tokens")
    assert (plain.value, by_length.value) == (1, 0)
    assert plain.detail == "likeliest: ' no'; by length: ' certainly so'"
    assert chosen(1, choices, length="bytes").value == 1
    assert chosen(1, choices, length="characters").value == 1


def test_a_tie_is_no_answer_and_no_likelihood_no_score() -> None:
    tie = {"a": Likelihood(-1.0, 1), "b": Likelihood(-1.0, 1)}
    assert chosen("a", tie) == Score(0.0, "likeliest: a tie; by length: a tie")
    with pytest.raises(NoScoreError, match="two choices"):
        chosen("a", {})
    with pytest.raises(NoScoreError, match="none of the choices"):
        chosen("c", tie)
    with pytest.raises(ScorerError, match="or its index"):
        build("likelihood", {}, None)


def overlap(name: str, text: str, target: object, **options: object) -> float:
    return build(name, options, target).score(Answered(text=text), target).value


def test_overlap_is_what_the_libraries_say() -> None:
    import sacrebleu

    text, target = "the cat sat on a mat", "the cat sat on the mat"
    assert (
        overlap("bleu", text, target) == sacrebleu.sentence_bleu(text, [target], use_effective_order=True).score / 100
    )
    assert overlap("chrf", text, target) == sacrebleu.sentence_chrf(text, [target]).score / 100
    assert overlap("chrf", text, target, words=2) == sacrebleu.sentence_chrf(text, [target], word_order=2).score / 100
    assert overlap("rouge", text, target) == pytest.approx(5 / 6)
    assert overlap("rouge", "the cat", target, part="recall") == pytest.approx(2 / 6)
    assert overlap("rouge", "cats", ["dogs", "the cats"], variant="rouge1", part="precision") == 1
    assert overlap("rouge", text, target, threshold=0.8) == 1
    assert overlap("rouge", text, target, threshold=0.9) == 0


def test_a_target_that_the_measure_cannot_see_is_refused() -> None:
    with pytest.raises(ScorerError, match="use 'chrf'"):
        build("rouge", {}, "\N{CYRILLIC SMALL LETTER DE}\N{CYRILLIC SMALL LETTER A}")
    with pytest.raises(ScorerError, match="needs a text"):
        build("bleu", {}, 3)


words = st.lists(st.text(st.sampled_from("abcdefgh"), min_size=1, max_size=6), min_size=1, max_size=8).map(" ".join)


@settings(deadline=None)  # the libraries are imported by the first example
@given(words, words)
def test_overlap_is_a_share_and_the_target_itself_is_right(text: str, target: str) -> None:
    for name in ("rouge", "bleu", "chrf"):
        assert 0 <= overlap(name, text, target) <= 1
        assert overlap(name, target, target) == pytest.approx(1)
        assert overlap(name, f" {target.replace(' ', '  ')}\n", target) == pytest.approx(1)
        assert overlap(name, "", target) == 0


def test_a_text_is_scored_by_its_likelihood() -> None:
    scorer = build("perplexity", {}, "a text")
    found = scorer.score(Answered(choices={"a text": Likelihood(-4.0, 2)}), "a text")
    assert found.value == pytest.approx(math.exp(-2))
    assert found.detail == "perplexity 7.389 over 2 tokens"
    with pytest.raises(NoScoreError, match="no log-likelihood"):
        scorer.score(Answered(), "a text")
    with pytest.raises(ScorerError, match="whose likelihood"):
        build("perplexity", {}, None)
