"""Looking at large bodies without reading them, and at forms: the pure parts, whatever the bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ApiError
from serving.router import forms
from serving.router.bodies import outgoing
from serving.router.openai_wire import (
    LEAP_BYTES_MIN,
    LONG_STRING_BYTES,
    find_usage,
    nearest_path,
    peek,
    without_long_strings,
)

awkward = st.text(alphabet='a"\\\n{}[]:,é', max_size=30)
long_texts = st.builds(lambda text, times: text * times, awkward, st.integers(0, 400)) | st.just("x" * 300_000)
values = st.recursive(
    long_texts | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(awkward, inner, max_size=3),
    max_leaves=8,
)


def shortened(value: Any) -> Any:
    """The value with every long string emptied; its length is that of its JSON."""
    if isinstance(value, str):
        return "" if len(json.dumps(value, ensure_ascii=False).encode()) - 1 > LONG_STRING_BYTES else value
    if isinstance(value, list):
        return [shortened(one) for one in value]
    if isinstance(value, dict):
        return {shortened(key): shortened(one) for key, one in value.items()}
    return value


@given(st.dictionaries(awkward, values, max_size=4))
def test_a_body_without_its_long_strings_is_otherwise_the_same(value: dict[str, Any]) -> None:
    found = without_long_strings(json.dumps(value, ensure_ascii=False).encode())
    assert found is None or json.loads(found) == shortened(value)


@given(st.binary(max_size=400))
def test_any_bytes_are_leapt_over_or_left(body: bytes) -> None:
    found = without_long_strings(body)
    assert found is None or found == body


@given(st.dictionaries(awkward, values, max_size=3), st.booleans(), st.booleans(), st.text(max_size=5))
def test_a_large_body_is_seen_as_a_small_one_is(value: dict[str, Any], last: bool, stream: bool, user: str) -> None:
    padding = {"padding": "x" * LEAP_BYTES_MIN}
    fields = {"model": "assistant", "stream": stream, "user": user}
    body = {**value, **padding, **fields} if last else {**fields, **value, **padding}
    seen = peek(json.dumps(body).encode())
    assert (seen.model, seen.stream, seen.user) == ("assistant", stream, user)


def test_a_long_user_is_not_lost() -> None:
    body = {"model": "assistant", "user": "u" * 10_000, "padding": "x" * LEAP_BYTES_MIN}
    assert peek(json.dumps(body).encode()).user == "u" * 10_000


@given(st.dictionaries(awkward, values, max_size=3), st.booleans(), st.booleans(), st.booleans())
def test_edits_of_a_large_body_change_nothing_else(
    value: dict[str, Any], last: bool, nested: bool, usage: bool
) -> None:
    padding: dict[str, Any] = {"padding": "x" * 70_000, '"model': "old", "b": {"model": "old"} if nested else {}}
    body = {**value, **padding, "model": "old"} if last else {"model": "old", **value, **padding}
    text = json.dumps(body).encode()
    parts = outgoing(text, peek(text), name="new", usage=usage)
    wanted = {**body, "model": "new"} | ({"stream_options": {"include_usage": True}} if usage else {})
    assert json.loads(b"".join(parts)) == wanted


@given(st.binary(max_size=300), st.sampled_from([b"b", b"----W3", b"'()+_,-./:=?"]), st.booleans())
def test_any_form_is_read_or_refused(noise: bytes, boundary: bytes, framed: bool) -> None:
    body = b"--%b\r\n%b\r\n--%b--" % (boundary, noise, boundary) if framed else noise
    seen, status = None, 200
    try:
        seen = forms.peek(body, b'multipart/form-data; charset=utf-8; boundary="%b"' % boundary)
    except ApiError as error:
        status = error.status
    assert status in {200, 400}
    assert seen is None or body[seen.model_from : seen.model_to].decode() == seen.model


@given(
    st.lists(st.tuples(st.sampled_from(["prompt", "language", "x"]), st.binary(max_size=40)), max_size=5),
    st.integers(0, 5),
    st.text(min_size=1, max_size=20).filter(lambda name: "\r\n--zz" not in name),
)
def test_the_model_is_found_wherever_it_stands(fields: list[tuple[str, bytes]], at: int, name: str) -> None:
    parts = [(key, value) for key, value in fields if b"\r\n--zz" not in value]
    parts.insert(at, ("model", name.encode()))
    body = b"".join(
        b'--zz\r\ncontent-disposition: form-data; NAME="%b"\r\n\r\n%b\r\n' % (key.encode(), value)
        for key, value in parts
    )
    seen = forms.peek(body + b"--zz--\r\n", b"multipart/form-data; boundary=zz")
    assert seen.model == name


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (b'0.5]],"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":1},"total_tokens":3}}', 3),
        (b'0.5]],"usage" : {"total_tokens":4}, "model":"m"}', 4),
        (b'0.5]],"usage":null}', None),
        (b'"usage":{"prompt_tokens":', None),
        (b"", None),
    ],
)
def test_usage_is_found_in_an_answers_end(text: bytes, prompt: int | None) -> None:
    usage = find_usage(text)
    assert (usage.prompt if usage else None) == prompt


@given(st.text(max_size=40))
def test_a_path_is_near_to_one_or_none(path: str) -> None:
    assert nearest_path(path) == "" or nearest_path(path).startswith("/")
