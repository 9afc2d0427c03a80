"""Bodies and answers as the four APIs have them, whole, streamed, cut and damaged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.control.transcripts import ENDPOINTS, asked, said

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
JSON, SSE = "application/json", "text/event-stream; charset=utf-8"


def turns(endpoint: str, **body: Any) -> list[tuple[str, str]]:
    found = asked(endpoint, json.dumps({"model": "m", **body}).encode())
    assert found is not None
    return [(turn.role, turn.content) for turn in found.messages]


def test_requests_of_every_api() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert turns(
        CHAT,
        messages=[
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "5"},
        ],
    ) == [("system", "s"), ("user", "look\n[image_url]"), ("assistant", '[call f {"a":1}]'), ("tool", "5")]
    assert turns(TEXT, prompt="p") == [("user", "p")]
    assert turns(TEXT, prompt=["p", "q"]) == [("user", "p\nq")]
    assert turns(TEXT, prompt=[1, 2, 3]) == [("user", "[tokens]")]
    assert turns(RESPONSES, instructions="i", input="p") == [("system", "i"), ("user", "p")]
    assert turns(
        RESPONSES,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "p"}]},
            {"type": "function_call", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "output": "5"},
        ],
    ) == [("user", "p"), ("assistant", "[call f {}]"), ("tool", "5")]
    assert turns(
        MESSAGES,
        system=[{"type": "text", "text": "s"}],
        messages=[
            {"role": "user", "content": "p"},
            {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "5"}]}]},
        ],
    ) == [("system", "s"), ("user", "p"), ("assistant", '[call f {"a":1}]'), ("user", "5")]


def test_only_fields_that_shape_the_answer_are_kept() -> None:
    body = {"messages": [], "temperature": 0, "tools": [1], "user": "ann", "metadata": {"who": "ann"}, "seed": None}
    found = asked(CHAT, json.dumps(body).encode())
    assert found is not None
    assert found.request == {"temperature": 0, "tools": [1]}


def answer(endpoint: str, value: Any) -> tuple[str | None, list[Any], float | None]:
    found = said(endpoint, JSON, json.dumps(value).encode())
    return found.output, found.tool_calls, found.mean_logprob


def stream(endpoint: str, *values: Any, ending: str = "\n\n", cut: int = 0) -> tuple[str | None, list[Any]]:
    data = "".join(f"data: {json.dumps(value)}{ending}" for value in values) + f"data: [DONE]{ending}"
    found = said(endpoint, SSE, data.encode()[: len(data) - cut])
    return found.output, found.tool_calls


CALL = {"name": "f", "arguments": '{"a":1}'}


def test_whole_answers() -> None:
    message = {"content": "hi", "tool_calls": [{"function": CALL}]}
    logprobs = {"content": [{"logprob": -1.0}, {"logprob": -3.0}]}
    assert answer(CHAT, {"choices": [{"message": message, "logprobs": logprobs}]}) == ("hi", [CALL], -2.0)
    assert answer(CHAT, {"choices": [{"message": {"content": None, "refusal": "no"}}]}) == ("no", [], None)
    assert answer(TEXT, {"choices": [{"text": "hi"}, {"text": "x"}]}) == ("hi", [], None)
    output = [
        {"type": "reasoning"},
        {"type": "message", "content": [{"type": "output_text", "text": "hi"}]},
        {"type": "function_call", **CALL},
    ]
    assert answer(RESPONSES, {"output": output}) == ("hi", [CALL], None)
    content = [{"type": "text", "text": "hi"}, {"type": "tool_use", "name": "f", "input": {"a": 1}}]
    assert answer(MESSAGES, {"type": "message", "content": content}) == ("hi", [CALL], None)
    assert answer(CHAT, {"error": {}}) == (None, [], None)
    assert said("/v1/embeddings", JSON, b"{}").output is None


@pytest.mark.parametrize("ending", ["\n\n", "\r\n\r\n"])
def test_streamed_answers(ending: str) -> None:
    def delta(**fields: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": fields}]}

    def part(index: int, name: str | None, arguments: str) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, "function": {"name": name, "arguments": arguments}}])

    other = {"choices": [{"index": 1, "delta": {"content": "not this"}}]}
    events = [
        delta(role="assistant"),
        delta(content="h"),
        other,
        delta(content="i"),
        part(0, "f", '{"a"'),
        part(0, None, ":1}"),
    ]
    assert stream(CHAT, *events, ending=ending) == ("hi", [CALL])
    assert stream(TEXT, {"choices": [{"text": "h"}]}, {"choices": [{"text": "i"}]}, ending=ending) == ("hi", [])
    texts = [{"type": "response.output_text.delta", "delta": text} for text in "hi"]
    done = {"type": "response.output_item.done", "output_index": 1, "item": {"type": "function_call", **CALL}}
    assert stream(RESPONSES, *texts, done, ending=ending) == ("hi", [CALL])
    blocks = [
        {"type": "message_start", "message": {}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'}},
    ]
    assert stream(MESSAGES, *blocks, ending=ending) == ("hi", [CALL])


def test_a_stream_that_was_cut_says_what_it_said_up_to_there() -> None:
    events = [{"choices": [{"delta": {"content": word}}]} for word in ("one ", "two ", "three")]
    assert stream(CHAT, *events, cut=30) == ("one two ", [])


@given(st.sampled_from(sorted(ENDPOINTS)), st.sampled_from([JSON, SSE]), st.binary(max_size=200))
def test_bytes_of_any_kind_are_read_or_not(endpoint: str, content_type: str, data: bytes) -> None:
    asked(endpoint, data)
    said(endpoint, content_type, data)


NAMES = (
    "messages prompt input role content text type choices message delta tool_calls function name arguments index "
    "output item response content_block system partial_json logprobs"
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(ENDPOINTS)), st.lists(VALUES, max_size=4))
def test_json_of_any_shape_is_read_or_not(endpoint: str, values: list[Any]) -> None:
    for value in values:
        asked(endpoint, json.dumps(value).encode())
        said(endpoint, JSON, json.dumps(value).encode())
    stream(endpoint, *values)
