"""Reading requests and streams in passing: the pure parts, whatever the bytes and however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ApiError
from serving.router.bodies import outgoing
from serving.router.openai_wire import peek, read_answer
from serving.router.protocol import Applied, Ask, Drain, Failure, Framer, decode_down, decode_up, encode
from serving.router.sse import Scanner

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
extras = st.dictionaries(
    st.text(max_size=8).filter(lambda key: key not in ("model", "stream", "user", "stream_options")),
    json_values,
    max_size=5,
)


@given(extras, st.booleans(), st.sampled_from([None, {}, {"include_usage": False}, {"other": 1}, "absent"]))
def test_asking_for_usage_changes_nothing_else(extra: dict, pretty: bool, options: Any) -> None:
    value = {"model": "assistant", "stream": True, **extra}
    if options != "absent":
        value["stream_options"] = options
    body = json.dumps(value, indent=2 if pretty else None).encode()
    seen = peek(body)
    assert not seen.wants_usage
    asked = json.loads(b"".join(outgoing(body, seen, name=None, usage=True)))
    assert asked.pop("stream_options") == {**(options if isinstance(options, dict) else {}), "include_usage": True}
    value.pop("stream_options", None)
    assert asked == value


@given(extras, st.text(min_size=1, max_size=10), st.text(min_size=1, max_size=10))
def test_renaming_changes_the_model_and_nothing_else(extra: dict, old: str, new: str) -> None:
    value = {"a": {"model": old}, "model": old, **extra}
    for body in (json.dumps(value).encode(), json.dumps({"model": old, **extra}).encode()):
        renamed = b"".join(outgoing(body, peek(body), name=new, usage=False))
        assert json.loads(renamed) == {**json.loads(body), "model": new}


@given(st.binary(max_size=300))
def test_any_bytes_are_peeked_at_or_refused(body: bytes) -> None:
    refusal: ApiError | None = None
    try:
        assert peek(body).model
    except ApiError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status == 400
        assert json.loads(refusal.body())["error"]["message"] == refusal.message


@given(st.binary(max_size=300))
def test_any_answer_is_read_or_left_alone(body: bytes) -> None:
    answer = read_answer(body)
    assert answer is None or answer.finish_reason is not None


def stream_of(texts: list[str], usage: dict | None, separator: bytes, spaces: bool) -> tuple[bytes, bytes]:
    """A chat stream's bytes, and the same without the chunk that carries only usage."""
    separators = (", ", ": ") if spaces else (",", ":")

    def event(value: Any) -> bytes:
        return b"data: " + json.dumps(value, separators=separators).encode() + separator

    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    parts = [event(role)]
    parts += [event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}) for text in texts]
    parts.append(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    done = b"data: [DONE]" + separator
    hidden = b"".join([*parts, done])
    shown = b"".join([*parts, *([event({"choices": [], "usage": usage})] if usage else []), done])
    return shown, hidden


texts = st.lists(
    st.text(min_size=1, max_size=12) | st.sampled_from(['"usage":{', "[DONE]", "data: x\n\n", '"error"', "event: a"]),
    max_size=8,
)


@given(texts, st.booleans(), st.booleans(), st.sampled_from([b"\n\n", b"\r\n\r\n"]), st.booleans(), st.data())
def test_a_stream_cut_anywhere_is_counted_exactly(
    pieces: list[str], hide: bool, with_usage: bool, separator: bytes, spaces: bool, data: st.DataObject
) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": len(pieces)} if with_usage else None
    shown, hidden = stream_of(pieces, usage, separator, spaces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(shown)), max_size=12)))
    scanner = Scanner(hide_usage=hide)
    out = b""
    for start, stop in zip([0, *cuts], [*cuts, len(shown)], strict=True):
        if start < stop:
            out += scanner.feed(shown[start:stop])
    out += scanner.rest()
    assert out == (hidden if hide else shown)
    assert scanner.content_events == len(pieces)
    assert scanner.started == bool(pieces)
    assert (scanner.finish_reason, scanner.done, scanner.error) == ("stop", True, False)
    assert (scanner.usage.completion if scanner.usage else None) == (len(pieces) if with_usage else None)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_any_bytes_go_through_the_scanner_unchanged(pieces: list[bytes]) -> None:
    scanner = Scanner(hide_usage=False)
    out = b"".join(scanner.feed(piece) for piece in pieces if piece) + scanner.rest()
    assert out == b"".join(pieces)


@pytest.mark.parametrize(
    ("events", "prompt", "completion"),
    [
        (
            [
                {"type": "response.created", "response": {"status": "in_progress"}},
                {"type": "response.output_text.delta", "delta": "hi"},
                {"type": "response.completed", "response": {"usage": {"input_tokens": 4, "output_tokens": 2}}},
            ],
            4,
            2,
        ),
        (
            [
                {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 0}}},
                {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
                {"type": "message_stop"},
            ],
            5,
            3,
        ),
    ],
)
def test_typed_streams_are_understood(events: list[dict], prompt: int, completion: int) -> None:
    scanner = Scanner(hide_usage=False)
    for event in events:
        scanner.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    assert scanner.usage is not None
    assert (scanner.usage.prompt, scanner.usage.completion) == (prompt, completion)
    assert (scanner.started, scanner.ended, scanner.content_events) == (True, True, 1)


def test_messages_survive_any_cut() -> None:
    messages = [Applied(7), Failure(1.5, "assistant@v1/0", "reset")]
    data = b"".join(encode(message) for message in messages)
    for cut in range(len(data)):
        framer = Framer()
        payloads = framer.feed(data[:cut]) + framer.feed(data[cut:])
        assert [decode_up(payload) for payload in payloads] == messages
    assert decode_down(Framer().feed(encode(Drain(2.0)))[0]) == Drain(2.0)
    assert decode_down(Framer().feed(encode(Ask()))[0]) == Ask()
    with pytest.raises(ValueError, match="claims"):
        Framer().feed(b"\xff\xff\xff\xff")
