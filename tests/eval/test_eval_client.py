"""What a server may send, byte by byte: read as an answer, or told apart as a failure."""

import asyncio
import json
import random

import httpx
import pytest

from eval.client import ATTEMPTS_MAX, Client
from eval.stream import Completion, PassingError
from eval.suite import Case, Message, Sampling, ScorerSpec

CASE = Case(id="a", messages=(Message("user", "Hello"),), scorer=ScorerSpec("exact"), target="x")
END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def complete(body: bytes) -> Completion:
    async def ask() -> Completion:
        async with httpx.AsyncClient(
            transport=httpx.MockTransport(lambda _: httpx.Response(200, content=body))
        ) as http:
            client = Client(
                http,
                "http://engine",
                "m",
                sampling=Sampling(),
                jitter=random.Random(0),
                sleep=lambda _: asyncio.sleep(0),
            )
            return await client.complete(CASE, 0)

    return asyncio.run(ask())


def content(text: str) -> bytes:
    event = json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)
    return f"data: {event}\n\n".encode()


@pytest.mark.parametrize("text", ["a\u2028b", "a\u0085b", "a\x1cb", "one\ntwo", "\U0001f600"])
def test_characters_that_end_lines_elsewhere_stay_in_the_answer(text: str) -> None:
    event = json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)
    assert complete(f"data: {event}\r\n\r\n".encode() + END).text == text


def test_a_character_cut_into_two_events_is_put_together() -> None:
    first, second = (f'data: {{"choices": [{{"delta": {{"content": "\\u{half}"}}}}]}}\n\n' for half in ("d83d", "de00"))
    assert complete(first.encode() + second.encode() + END).text == "\U0001f600"
    assert complete(first.encode() + END).text == "\N{REPLACEMENT CHARACTER}"


def test_absent_and_null_fields_are_read_as_nothing() -> None:
    body = b'data: {"choices": null, "error": null, "usage": null}\n\n' + content("yes")
    body += b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": null}}\n\n' + END
    found = complete(body)
    assert (found.text, found.prompt_tokens, found.completion_tokens, found.finish_reason) == ("yes", 4, 0, "stop")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (content("half an ans"), "cut before its end"),
        (b"data: 5\n\n" + END, "no event of a chat completion"),
        (b"data: {broken\n\n" + END, "no event of a chat completion"),
        (b'data: {"choices": [{"delta": "text"}]}\n\n' + END, "no event of a chat completion"),
        (b'data: {"error": {"message": "out of memory"}}\n\n' + END, "out of memory"),
    ],
)
def test_what_is_no_whole_answer_is_a_failure_that_may_pass(body: bytes, reason: str) -> None:
    assert ATTEMPTS_MAX > 1
    with pytest.raises(PassingError, match=reason):
        complete(body)
