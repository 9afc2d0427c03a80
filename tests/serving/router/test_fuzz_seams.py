"""Whatever bytes come, in whatever pieces: the parsers' seams hold. The seeds are fixed; a failure prints its input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from fuzz_seams import Answers, Bench, bench, pieces_of, take
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from registry.usage import MAGIC, CorruptSegmentError, RequestRecord, frame, scan
from serving.errors import ApiError
from serving.router import bodies, forms, openai_wire
from serving.router.protocol import MESSAGE_BYTES_MAX, Ask, Framer, decode_down, decode_up, encode
from serving.router.sse import Scanner

FUZZ = settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
cuts = st.lists(st.integers(0, 4000), max_size=12)
BODY = b'{"model":"assistant","messages":[]}'


@pytest.fixture(scope="module")
def table() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


# --- requests: a grammar of what is nearly right ---

oddities = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"\x0b",
        b"\xff",
        b"0\r\n\r\n",
        b"\r\n\r\n",
        b";",
        b"GET / HTTP/1.1",
    ]
)
methods = st.sampled_from([b"GET", b"POST", b"OPTIONS", b"CONNECT", b"PRI", b"get", b"PUT", b"\x16\x03"])
targets = st.sampled_from(
    [
        b"/v1/models",
        b"/health/live",
        b"/v1/chat/completions",
        b"/",
        b"*",
        b"http://h/v1/models",
        b"a:80",
        b"//",
        b"/\xc3",
    ]
)
versions = st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"RTSP/1.0"])
headers = st.sampled_from(
    [
        b"content-length: 35",
        b"content-length: 0",
        b"content-length: 99999999999",
        b"content-length: x",
        b"transfer-encoding: chunked",
        b"transfer-encoding: identity",
        b"connection: close",
        b"connection: upgrade",
        b"upgrade: h2c",
        b"expect: 100-continue",
        b"host: y",
        b"x-request-id: a",
        b"a:",
        b"x-session-id: \xff",
        b"cookie: b",
    ]
)
contents = st.sampled_from(
    [b"", BODY, BODY, b"23\r\n" + BODY + b"\r\n0\r\n\r\n", b"0\r\n\r\n", b"z", b"0\r\nhost: t\r\n\r\n"]
)
WHOLE = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 35\r\n\r\n" + BODY


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, mostly right."""
    lines = [
        b" ".join((draw(methods), draw(targets), draw(versions))),
        b"host: x",
        *draw(st.lists(headers, max_size=4)),
    ]
    return b"\r\n".join([*lines, b"", b""]) + draw(contents)


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Several in a row, with something put in, taken out or changed."""
    data = b"".join(draw(st.lists(whole, min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data = data[:at] + draw(oddities) + data[at:]
            case 1:
                data = data[:at] + data[at + draw(st.integers(1, 8)) :]
            case 2:
                data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]
            case _:
                data = data[:at] + data[max(0, at - 20) : at] + data[at:]
    return data


def told(sent: bytes) -> bytes:
    """What was sent; of a 400 at its end only that it is one. A head with two faults is refused by the one that the
    parser tells of first, and it tells of a header when it has seen the beginning of the next one in the same piece."""
    last = max((found.start() for found in re.finditer(rb"HTTP/1\.1 \d{3} ", sent)), default=0)
    return sent[: last + 13] if sent.startswith(b"HTTP/1.1 400 ", last) else sent


@FUZZ
@given(data=st.one_of(mutated(st.one_of(requests(), st.just(WHOLE))), st.binary(max_size=200)), cuts=cuts)
@example(data=b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\no\r\n\r\n", cuts=[35])
@example(data=b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 60, cuts=[])
@example(data=b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 500, cuts=[7])
@example(
    data=b"POST http://h HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}",
    cuts=[50],
)
def test_any_bytes_of_a_client_get_well_formed_answers_and_splits_change_nothing(
    table: Bench, data: bytes, cuts: list[int]
) -> None:
    sent, over, _ = table.converse([data])
    answers = Answers().feed(sent)
    assert answers.complete == len(answers.statuses)
    assert len(answers.statuses) <= data.count(b"\r\n\r\n") + 1
    assert answers.statuses.count(400) + answers.statuses.count(431) <= len(answers.statuses)
    again, over_again, _ = table.converse(pieces_of(data, cuts))
    assert (told(again), over_again) == (told(sent), over)
    assert table.router.stats(0, 0.0).connections == 0


def test_every_answer_of_the_fuzzing_was_accounted_for_once(table: Bench) -> None:
    before = table.records()
    sent, _, _ = table.converse([WHOLE * 5 + b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n" + b"nonsense\r\n\r\n"])
    assert Answers().feed(sent).statuses == [503] * 5 + [200, 400]
    assert table.records() - before == 6  # health is nobody's work


# --- answers ---

statuses = st.sampled_from(
    [b"200 OK", b"200 OK", b"100 X", b"101 X", b"204 X", b"304 X", b"099 X", b"600 X", b"503", b"20"]
)
answer_headers = st.sampled_from(
    [
        b"content-length: 2",
        b"content-length: 5",
        b"content-length: -1",
        b"transfer-encoding: chunked",
        b"transfer-encoding: gzip",
        b"connection: close",
        b"keep-alive: timeout=5",
        b"keep-alive: timeout=99999999999999999999",
        b"upgrade: h2c",
        b"connection: upgrade",
        b"a:",
        b"content-type: text/event-stream",
    ]
)
answer_bodies = st.sampled_from(
    [b"", b"ok", b"ok", b"2\r\nok\r\n0\r\n\r\n", b"2;x\r\nok\r\n0\r\nt: u\r\n\r\n", b"0\r\n\r\n", b"okmore"]
)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """One answer, mostly right."""
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"]))
    lines = [version + b" " + draw(statuses), *draw(st.lists(answer_headers, max_size=3))]
    return b"\r\n".join([*lines, b"", b""]) + draw(answer_bodies)


@FUZZ
@given(data=st.one_of(mutated(responses()), st.binary(max_size=200)), cuts=cuts)
def test_any_bytes_of_an_engine_end_exactly_once_and_splits_change_nothing(
    loop: asyncio.AbstractEventLoop, data: bytes, cuts: list[int]
) -> None:
    whole, _ = take(loop, [data] if data else [])
    assert len(whole.heads) <= 1
    split, _ = take(loop, [piece for piece in pieces_of(data, cuts) if piece])
    assert (split.heads, split.end) == (whole.heads, whole.end)
    if whole.end == "end":
        assert split.body == whole.body
    if whole.heads:
        assert 200 <= whole.heads[0][0] < 600


# --- streams ---

chunks = st.sampled_from(
    [
        b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}',
        b'data: {"choices":[{"delta":{"content":"a"}}]}',
        b'data: {"choices":[{"delta":{"content":"\\"usage\\": [DONE]"}}]}',
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}',
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}',
        b'data: {"error":{"message":"x","code":500}}',
        b"data: [DONE]",
        b": ping",
        b"event: ping\ndata: {}",
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"b"}}',
        b'data: {"type":"response.output_text.delta","delta":"c"}',
        b"data: \xff",
        b"data: " + b"[" * 2000,
        b"",
    ]
)
STREAM = [
    b'data: {"choices":[{"delta":{"role":"assistant","content":null},"finish_reason":null}]}',
    *[b'data: {"choices":[{"delta":{"content":" w%d"},"finish_reason":null}]}' % n for n in range(9)],
    b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}',
    b"data: [DONE]",
]


def scanned(pieces: list[bytes], *, hide: bool) -> tuple[Scanner, bytes]:
    scanner = Scanner(hide_usage=hide)
    out = b"".join(scanner.feed(piece) for piece in pieces if piece)
    return scanner, out + scanner.rest()


@FUZZ
@given(cuts=cuts, separator=st.sampled_from([b"\n\n", b"\r\n\r\n"]), hide=st.booleans())
def test_a_stream_says_the_same_however_it_is_cut(cuts: list[int], separator: bytes, hide: bool) -> None:
    data = separator.join([*STREAM, b""])
    scanner, out = scanned(pieces_of(data, cuts), hide=hide)
    assert out == (separator.join([*STREAM[:-2], STREAM[-1], b""]) if hide else data)
    assert scanner.usage is not None
    assert (scanner.usage.prompt, scanner.usage.completion) == (3, 9)
    assert (scanner.content_events, scanner.finish_reason, scanner.done, scanner.error) == (9, "length", True, False)


@FUZZ
@given(data=st.one_of(st.binary(max_size=400), st.lists(chunks, max_size=12).map(b"\n\n".join)), cuts=cuts)
def test_any_bytes_pass_a_scanner_but_what_it_keeps_back(data: bytes, cuts: list[int]) -> None:
    _, whole = scanned([data], hide=False)
    scanner, out = scanned(pieces_of(data, cuts), hide=False)
    assert out == whole or (scanner.error_event and len(out) <= len(data))
    if b"error" not in data:
        assert out == data
    scanned(pieces_of(data, cuts), hide=True)


# --- JSON, messages, segments ---

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("model", "stream", "user", "stream_options", "messages", "usage", "choices", "prompt_tokens", "finish_reason")
objects = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5).map(msgspec.json.encode)


fields = st.sampled_from(
    [
        b'"model":"assistant"',
        b'"model" : "assistant"',
        b'"mod\\u0065l":"assistant"',
        b'"model":"ass\\u0069stant"',
        b'"stream":true',
        b'"stream_options":{}',
        b'"stream_options":null',
        b'"stream_options":{"include_usage":false,"model":"assistant"}',
        b'"a":{"model":"assistant"}',
        b'"a":"\\"model\\":\\"assistant\\""',
        b'"a":1e400',
        b'"a":-0.0e-400',
        b'"a":123456789012345678901234567890',
        b'"a":"\xff"',
        b'"a":"\\ud800"',
        b'"a":"' + b"w" * 70_000 + b'"',
        b'"a":"' + b"w" * 70_000 + b'\xff"',
        b'"user":"u"',
        b'"a":' + b"[" * 500 + b"]" * 500,
        b'"":0',
    ]
)
nearly = st.lists(fields, max_size=5, unique_by=lambda field: field[:5]).map(
    lambda found: b" {" + b",".join(found) + b"}"
)


def models_in(body: bytes) -> int:
    """How many keys of the object are `model`, however they are written."""
    return sum(key == "model" for key, _ in json.loads(body.decode(errors="replace"), object_pairs_hook=list))


@FUZZ
@given(body=st.one_of(st.binary(max_size=100), objects, nearly, nearly, objects.map(lambda b: b[:-1])))
@example(body=b'{"model":"\\ud800"}')
@example(body=b'{"model":"assistant","mod\\u0065l":"assistant"}')
@example(body=b'{"a":' * 50_000)
@example(body=b'{"model":"' + b"m" * 100_000)
def test_a_body_is_understood_or_refused_and_nothing_else(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        seen = openai_wire.peek(body)
        same = bodies.outgoing(body, seen, name=None, usage=False)
        assert b"".join(same) == body
        for name in (None, "other"):
            out = b"".join(bodies.outgoing(body, seen, name=name, usage=True))
            if out != body:  # else an engine will find that it is no JSON
                again = openai_wire.peek(out)
                assert again.wants_usage
                # A second key that says the same may stay: it leads an engine nowhere but to the public name.
                assert again.model == (name or seen.model) or (models_in(body) > 1 and again.model == seen.model)
            else:
                with pytest.raises((msgspec.MsgspecError, UnicodeError, RecursionError)):
                    msgspec.json.decode(body)


form = st.sampled_from(
    [
        b"--b\r\n",
        b"--b--\r\n",
        b"\r\n--b\r\n",
        b"\r\n--b--",
        b'content-disposition: form-data; name="model"\r\n\r\nassistant',
        b'content-disposition: form-data; name="file"; filename="a"\r\ncontent-type: a/b\r\n\r\n\0\xff--b',
        b'content-disposition: form-data; name="stream"\r\n\r\ntrue',
        b"\r\n",
        b"x",
    ]
)
kinds = st.sampled_from(
    [b"multipart/form-data; boundary=b", b'multipart/form-data; boundary="b"', b"text/plain", b"multipart/form-data"]
)


@FUZZ
@given(parts=st.lists(form, max_size=10), kind=st.one_of(kinds, st.binary(max_size=30)))
def test_a_form_is_understood_or_refused_and_nothing_else(parts: list[bytes], kind: bytes) -> None:
    body = b"".join(parts)
    with contextlib.suppress(ApiError):
        seen = forms.peek(body, kind)
        renamed = b"".join(bodies.outgoing(body, seen, name="other", usage=False))
        assert forms.peek(renamed, kind).model == "other"
        assert len(renamed) - len("other") == len(body) - len(str(seen.model).encode())


@FUZZ
@given(
    body=st.one_of(st.binary(max_size=100), objects),
    tokens=st.one_of(st.integers(), st.integers(-5, 2**70)),
    reason=st.text(max_size=200),
)
def test_no_answer_of_an_engine_makes_a_record_that_cannot_be_written(body: bytes, tokens: int, reason: str) -> None:
    said = {"usage": {"prompt_tokens": tokens, "completion_tokens": tokens}, "choices": [{"finish_reason": reason}]}
    for text in (
        body,
        msgspec.json.encode(said) if -(2**63) <= tokens < 2**64 else b'{"usage":{"total_tokens":%d}}' % tokens,
    ):
        answer = openai_wire.read_answer(text)
        openai_wire.find_usage(text)
        openai_wire.is_context_error(text)
        if answer is None or answer.usage is None:
            continue
        record = RequestRecord("r", 0.0, 0.0, "other", "", "", "", "completed", 200)
        record.prompt_tokens, record.completion_tokens = answer.usage.prompt, answer.usage.completion
        record.cached_tokens, record.finish_reason = answer.usage.cached, answer.finish_reason[:64]
        assert min(record.prompt_tokens, record.completion_tokens, record.cached_tokens) >= 0
        (back,), _ = scan(MAGIC + frame(record), from_start=True)
        assert back.prompt_tokens == record.prompt_tokens


@FUZZ
@given(data=st.binary(max_size=200), cuts=cuts)
@example(data=struct.pack("<I", MESSAGE_BYTES_MAX + 1), cuts=[])
def test_a_framer_cuts_the_same_messages_however_they_come(data: bytes, cuts: list[int]) -> None:
    def frames(pieces: list[bytes]) -> list[bytes]:
        framer, found = Framer(), []
        with contextlib.suppress(ValueError):
            for piece in pieces:
                found += framer.feed(piece)
        return found

    message = encode(Ask())
    assert frames(pieces_of(message * 3, cuts)) == [message[4:]] * 3
    with contextlib.suppress(ValueError):
        Framer().feed(message + data)  # nothing else is ever raised
    if not any(data[3::4]):  # no claim beyond the limit
        assert len(frames(pieces_of(data, cuts))) == len(frames([data]))
    for decode in (decode_up, decode_down):
        with contextlib.suppress(msgspec.MsgspecError):
            decode(data)


RECORD = RequestRecord("r", 1.0, 0.5, "/v1/chat/completions", "m", "v1", "m@v1/0", "completed", 200)


@FUZZ
@given(tail=st.binary(max_size=80), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=2))
def test_a_damaged_segment_gives_its_whole_records_or_says_so(tail: bytes, flips: list[tuple[int, int]]) -> None:
    data = bytearray(MAGIC + frame(RECORD) + frame(RECORD, RECORD) + tail)
    for place, change in flips:
        data[place % len(data)] ^= change
    with contextlib.suppress(CorruptSegmentError):
        records, used = scan(bytes(data), from_start=True)
        assert used <= len(data)
        assert len(records) <= 3 + len(tail)
        assert flips or records[:3] == [RECORD] * 3
