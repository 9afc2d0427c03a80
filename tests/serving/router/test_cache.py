"""Kept answers: which requests qualify, the bound in bytes, age, and that nobody gets another's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.router.cache import ENTRY_BYTES, AnswerCache, Kept, key_of

CHAT = "/v1/chat/completions"


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": []} | fields).encode()


def kept(size: int, at: float = 0.0) -> Kept:
    return Kept(b"", b"x" * size, "v1", at)


@pytest.mark.parametrize(
    ("fields", "qualifies"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "n": 1}, True),
        ({"temperature": -0.0, "stream": True}, True),
        ({"temperature": 0, "n": None}, True),
        ({}, False),
        ({"temperature": None}, False),
        ({"temperature": False}, False),
        ({"temperature": "0"}, False),
        ({"temperature": 1e-9}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"metadata": {"temperature": 0}}, False),
    ],
)
def test_temperature_must_be_zero_and_said(fields: dict[str, object], qualifies: bool) -> None:
    assert (key_of(CHAT, body(**fields), "") is not None) == qualifies


def test_only_endpoints_that_answer_out_of_the_request_alone_qualify() -> None:
    assert key_of("/v1/messages", body(temperature=0), "")
    assert key_of("/v1/responses", body(temperature=0), "") is None
    assert key_of("/v1/embeddings", body(temperature=0), "") is None
    assert key_of(CHAT, b'{"temperature": 0', "") is None


@given(st.tuples(st.sampled_from((CHAT, "/v1/completions")), st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_bodies_endpoints_and_keys_tell_requests_apart(one: tuple[str, str, str], other: tuple[str, str]) -> None:
    endpoint, text, key = one
    first = key_of(endpoint, body(temperature=0, user=text), key)
    assert first == key_of(endpoint, body(temperature=0, user=text), key)
    second = key_of(CHAT, body(temperature=0, user=other[0]), other[1])
    assert (first == second) == (one == (CHAT, *other))


def test_another_spelling_of_the_same_request_is_another_request() -> None:
    assert key_of(CHAT, body(temperature=0), "") != key_of(CHAT, body(temperature=0.0), "")


@given(
    st.integers(0, 8000),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4000), st.booleans()), max_size=60),
)
def test_entries_never_take_more_than_their_bound(bytes_max: int, steps: list[tuple[int, int, bool]]) -> None:
    """Against a model: a dictionary of which the entries used longest ago go first."""
    cache = AnswerCache(bytes_max, 10.0)
    model: dict[int, int] = {}
    for number, size, reads in steps:
        key = bytes([number])
        if reads:
            found = cache.get(key, 1.0)
            assert (found is not None) == (number in model)
            if number in model:
                model[number] = model.pop(number)
            continue
        cache.put(key, kept(size))
        model.pop(number, None)
        if size + ENTRY_BYTES <= bytes_max:
            model[number] = size + ENTRY_BYTES
            while sum(model.values()) > bytes_max:
                model.pop(next(iter(model)))
        assert cache.size_bytes == sum(model.values()) <= bytes_max
        assert len(cache) == len(model)


def test_an_answer_grows_too_old() -> None:
    cache = AnswerCache(10_000, 60.0)
    cache.put(b"k", kept(10, at=100.0))
    assert cache.get(b"k", 160.0) == kept(10, at=100.0)
    assert cache.get(b"k", 160.1) is None
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_smaller_bounds_apply_at_once() -> None:
    cache = AnswerCache(10_000, 60.0)
    for number in range(4):
        cache.put(bytes([number]), kept(1000))
    cache.limit(2 * (1000 + ENTRY_BYTES), 5.0)
    assert [cache.get(bytes([number]), 1.0) is not None for number in range(4)] == [False, False, True, True]
    assert cache.get(bytes([3]), 6.0) is None
