"""What is measured of a request, by examples whose values are known and by properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.features import FEATURES, compression, features, json_state, last_user_turn, repetition, token_classes
from registry.samples import Turn

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Sum 1 and 2"},
    {"role": "assistant", "content": "3"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And ÄB?"}, {"type": "image_url", "image_url": {"url": "x"}}],
    },
]


def test_a_conversation_and_its_answer() -> None:
    found = features(
        CONVERSATION,
        "I'm sorry, I cannot help with that.",
        finish_reason="stop",
        prompt_tokens=20,
        completion_tokens=9,
        tool_calls=0,
        mean_logprob=-0.5,
        language=lambda text: "de" if "Ä" in text else "en",
    )
    assert found["input_turns"] == 4
    assert found["input_characters"] == 9 + 11 + 1 + 7
    assert found["input_language"] == "de"
    assert found["output_language"] == "en"
    assert (found["output_refusal"], found["output_finish"], found["output_json"]) == ("refused", "stop", "none")
    assert (found["input_tokens"], found["output_tokens"], found["output_logprob"]) == (20, 9, -0.5)
    assert set(found) <= set(FEATURES)
    for name, value in found.items():
        assert isinstance(value, str) == (FEATURES[name].scale == "category")


def test_the_same_of_stored_turns_and_of_a_plain_prompt() -> None:
    turns = [Turn(role="user", content="Sum 1 and 2")]
    assert features(turns, "3") == features([{"role": "user", "content": "Sum 1 and 2"}], "3")
    assert features("Sum 1 and 2", "3") == features(turns, "3")


def test_what_is_not_known_is_left_out() -> None:
    assert features(None, None) == {}
    assert features(None, None, finish_reason="length") == {"output_finish": "length"}
    assert "input_digits" not in features([{"role": "user", "content": ""}], None)
    assert last_user_turn([{"role": "system", "content": "x"}]) == ""


def test_token_classes_are_shares_of_visible_characters() -> None:
    found = token_classes("AB c1 2! é")
    assert found["digits"] == pytest.approx(2 / 7)
    assert found["punctuation"] == pytest.approx(1 / 7)
    assert found["uppercase"] == pytest.approx(2 / 4)
    assert found["non_ascii"] == pytest.approx(1 / 7)
    assert found["code"] == 0


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("```python\nprint(1)\n```", 1.0),
        ("def add(a, b):\n    return a + b\n", 0.4),
        ("SELECT name FROM people WHERE age = 3;", 1.0),
        ("for (int i = 0; i < 3; i++) {\n  go();\n}", 0.9),
    ],
)
def test_code_is_told_from_prose(text: str, least: float) -> None:
    assert token_classes(text)["code"] >= least
    assert token_classes("Please return the book to the class; it is for you.\nThanks (a lot).")["code"] == 0


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ('{"a": 1}', "valid"),
        ("```json\n[1, 2]\n```", "valid"),
        ('{"a": 1', "invalid"),
        ("[citation needed]", "invalid"),
        ("The answer is {}.", "none"),
        ("3", "none"),
    ],
)
def test_json_state(text: str, state: str) -> None:
    assert json_state(text) == state


def test_repetition_and_compression_see_loops() -> None:
    loop = "I am a robot and " * 50
    prose = "The quick brown fox jumps over the lazy dog while seven wizards quietly mix a potion."
    assert repetition(loop) > 0.9
    assert repetition(prose) == 0
    assert compression(loop) < 0.2 < compression(prose)


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_has_features_in_their_range(prompt: str, output: str) -> None:
    found = features(prompt, output, language=lambda text: "und")
    assert set(found) <= set(FEATURES)
    for name in ("digits", "code", "punctuation", "uppercase", "non_ascii"):
        assert 0 <= float(found.get(f"input_{name}", 0)) <= 1
    for name in ("repetition", "compression"):
        assert 0 <= float(found.get(f"output_{name}", 0)) <= 1
