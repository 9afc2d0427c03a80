"""Every endpoint through a real worker: bytes reach the engine as the client sent them, and back as it answered."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine, start_fake_engine
from router_harness import PATIENCE_S, RouterProcess, model, running_router, version

from registry.usage import RequestRecord
from serving.router.openai_wire import ENDPOINTS, FORMS

Start = Callable[..., FakeEngine]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
IMAGE = {"type": "image_url", "image_url": {"url": PIXEL}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "user", "content": [IMAGE, {"type": "text", "text": "ü"}]},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "4.50"},
            {"role": "user", "content": "and now?"},
        ],
        "tools": [TOOL],
        "tool_choice": "auto",
        "logprobs": True,
        "top_logprobs": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "seed": 12345678901234567890,
        "temperature": 1.0,
        "unknown_to_us": {"model": "assistant", "stream": True, "n": 1e-7},
    },
    "/v1/completions": {"prompt": [1, 2, 3], "logprobs": 2, "echo": True},
    "/v1/responses": {"input": "one two", "tools": [], "store": False},
    "/v1/embeddings": {"input": ["one two", "three"], "encoding_format": "base64", "dimensions": 2},
    "/v1/rerank": {"query": "one", "documents": ["a", "b"], "top_n": 1},
    "/v1/score": {"text_1": "one", "text_2": ["a", "b"]},
    "/v1/messages": {"messages": [{"role": "user", "content": "one two"}], "max_tokens": 4, "system": "s"},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "one two"}]},
    "/v1/audio/speech": {"input": "one", "voice": "alloy"},
    "/tokenize": {"content": "one two", "add_special": False},
    "/detokenize": {"tokens": [1, 2, 3]},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    """An engine without faults."""
    engine = start_fake_engine()
    yield engine
    engine.kill()
    assert engine.process.stdout is not None
    engine.process.stdout.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    """One worker for all tests of this module that need none of their own."""
    with running_router(tmp_path_factory.mktemp("worker")) as process:
        yield process


@pytest.fixture
def served(worker: RouterProcess, engine: FakeEngine) -> RouterProcess:
    """The worker with that engine behind it."""
    worker.serve(engine.port)
    return worker


def last_seen(engine: FakeEngine) -> dict[str, Any]:
    """The last request that reached the engine."""
    request: dict[str, Any] = engine.last()["requests"][-1]
    return request


def written(body: dict[str, Any]) -> bytes:
    """JSON as no encoder of ours would write it."""
    return json.dumps({"model": "assistant", **body}, indent=1, ensure_ascii=False).encode()


def record_of(router: RouterProcess, response: httpx.Response) -> RequestRecord:
    """The record of the request that was answered so."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for record in router.records():
            if record.request_id == response.headers["x-request-id"]:
                return record
        assert time.monotonic() < deadline, "no record"
        time.sleep(0.02)


def form(*fields: tuple[str, bytes], file: bytes = b"RIFF", boundary: bytes = b"----xYz", file_at: int = 0) -> bytes:
    """A multipart form with a file among its fields."""
    parts = [b'Content-Disposition: form-data; name="%b"\r\n\r\n%b' % (name.encode(), value) for name, value in fields]
    head = b'Content-Disposition: form-data; name="file"; filename="a; name=\\"model\\".wav"\r\nContent-Type: audio/wav'
    parts.insert(file_at, head + b"\r\n\r\n" + file)
    return b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts) + b"--%b--\r\n" % boundary


FORM_TYPE = "multipart/form-data; boundary=----xYz"


def post_form(router: RouterProcess, body: bytes, content_type: str = FORM_TYPE) -> httpx.Response:
    return router.client.post("/v1/audio/transcriptions", content=body, headers={"content-type": content_type})


def test_every_endpoint_is_tried() -> None:
    assert set(BODIES) | FORMS == ENDPOINTS


@pytest.mark.parametrize("path", BODIES)
def test_a_request_reaches_the_engine_byte_for_byte(served: RouterProcess, engine: FakeEngine, path: str) -> None:
    body = written(BODIES[path])
    headers = {"content-type": "application/json; charset=utf-8", "authorization": "Bearer secret"}
    through = served.client.post(f"{path}?beta=true&x=%2F", content=body, headers=headers)
    direct = httpx.post(f"{engine.url}{path}", content=body, trust_env=False)
    assert through.status_code == 200
    assert through.headers["content-type"] == direct.headers["content-type"]
    if path not in {"/v1/chat/completions", "/v1/completions"}:  # these count their answers
        assert through.content == direct.content
    seen = engine.last()
    assert [one["body_sha256"] for one in seen["requests"]] == [hashlib.sha256(body).hexdigest()] * 2
    assert seen["lines"][-2] == f"POST {path}?beta=true&x=%2F HTTP/1.1"
    sent = dict(seen["requests"][-2]["headers"])
    assert sent["content-type"] == headers["content-type"]
    assert "authorization" not in sent
    record = record_of(served, through)
    assert (record.outcome, record.endpoint, record.status) == ("completed", path, 200)


USED: dict[str, tuple[int, int, int, str]] = {
    "/v1/chat/completions": (4, 8, 0, "stop"),
    "/v1/responses": (2, 8, 0, "stop"),
    "/v1/embeddings": (3, 0, 0, ""),
    "/v1/messages": (2, 4, 1, "length"),
    "/v1/rerank": (0, 0, 0, ""),
    "/v1/messages/count_tokens": (0, 0, 0, ""),
}
"""Path -> prompt, completion and cached tokens, finish reason, as the account says them in the chat API's words."""


@pytest.mark.parametrize("path", USED)
def test_usage_is_counted_as_the_engine_says(served: RouterProcess, path: str) -> None:
    record = record_of(served, served.client.post(path, content=written(BODIES[path])))
    counted = (record.prompt_tokens, record.completion_tokens, record.cached_tokens, record.finish_reason)
    assert counted == USED[path]


@pytest.mark.parametrize("first", [True, False])
def test_usage_of_an_answer_of_many_megabytes_is_counted(
    router: RouterProcess, fake_engine: Start, first: bool
) -> None:
    usage, data = b'"usage":{"prompt_tokens":7,"total_tokens":7}', b'"data":[%b0.5]' % (b"0.12345678901," * 440_000)
    body = b"{%b}" % b",".join((usage, data) if first else (data, usage))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    engine = fake_engine()
    engine.behave(raw=(head + body).hex())
    router.serve(engine.port)
    response = router.client.post("/v1/embeddings", content=written(BODIES["/v1/embeddings"]))
    assert response.content == body
    record = record_of(router, response)
    assert (record.prompt_tokens, record.usage_source, record.response_bytes) == (7, "engine", len(body))


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("limit", [4, 50])
@pytest.mark.parametrize("pieces", [0, 7])
def test_typed_streams_pass_untouched_and_are_counted(
    served: RouterProcess, engine: FakeEngine, path: str, limit: int, pieces: int
) -> None:
    engine.behave(split_bytes=pieces)
    options = {"stream": True, "max_tokens" if path == "/v1/messages" else "max_output_tokens": limit}
    body = written({"input": "one two", "messages": [{"role": "user", "content": "one two"}], **options})
    through = served.client.post(path, content=body)
    assert through.content == httpx.post(f"{engine.url}{path}", content=body, trust_env=False).content
    record = record_of(served, through)
    assert (record.outcome, record.streamed, record.usage_source) == ("completed", True, "engine")
    assert (record.prompt_tokens, record.completion_tokens) == (2, min(limit, 8))
    assert record.cached_tokens == (path == "/v1/messages")
    assert (record.events, record.finish_reason) == (min(limit, 8), "length" if limit == 4 else "stop")
    assert record.first_token_s > 0


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/chat/completions"])
def test_a_cut_stream_says_so_in_its_apis_words(router: RouterProcess, fake_engine: Start, path: str) -> None:
    router.serve(fake_engine("--cut-after-events", "3").port)
    body = written({"input": "a", "messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 9})
    response = router.client.post(path, content=body)
    *_, last = response.text.strip().split("\n\n")
    data = json.loads(last.partition("data: ")[2])
    assert data["error"]["message"] == "The engine stopped in the middle of its answer."
    if path == "/v1/chat/completions":
        assert set(data) == {"error"}
    else:
        assert last.startswith("event: error\n")
        assert data["type"] == "error"
    if path == "/v1/messages":
        assert data["error"]["type"] == "api_error"
    record = record_of(router, response)
    assert (record.outcome, record.error, record.completion_tokens) == ("truncated", "engine_reset", 3)


@pytest.mark.parametrize("file_at", [0, 1, 2])
@pytest.mark.parametrize("size", [10, 300_000])
def test_a_form_is_routed_by_the_model_in_it(
    served: RouterProcess, engine: FakeEngine, file_at: int, size: int
) -> None:
    file = (
        bytes(range(256)) * (size // 256) + b'\r\n--\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n'
    )
    body = form(("model", b"assistant"), ("response_format", b"json"), file=file, file_at=file_at)
    response = post_form(served, body)
    assert response.status_code == 200, response.text
    assert response.json()["text"] == hashlib.sha256(body).hexdigest()
    assert dict(last_seen(engine)["headers"])["content-type"] == FORM_TYPE
    record = record_of(served, response)
    assert (record.endpoint, record.model, record.outcome) == ("/v1/audio/transcriptions", "assistant", "completed")
    assert (record.prompt_tokens, record.completion_tokens, record.request_bytes) == (9, 2, len(body))


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_form_names_the_model_as_the_engine_knows_it(served: RouterProcess, engine: FakeEngine, size: int) -> None:
    served.publish(model([version("v1", [engine.port], names=("whisper-large",))], {"v1": 10_000}))
    fields = ("language", b"en"), ("user", b"u"), ("stream", b"false")
    response = post_form(served, form(("model", b"assistant"), *fields, file=b"x" * size, file_at=2))
    renamed = form(("model", b"whisper-large"), *fields, file=b"x" * size, file_at=2)
    assert response.json()["text"] == hashlib.sha256(renamed).hexdigest()


MALFORMED = {
    "no model": (form(("language", b"en")), FORM_TYPE, "missing_model"),
    "two models": (form(("model", b"assistant"), ("model", b"other")), FORM_TYPE, "duplicate_field"),
    "no boundary": (form(("model", b"assistant")), "multipart/form-data", "invalid_form"),
    "another boundary": (form(("model", b"assistant")), "multipart/form-data; boundary=other", "invalid_form"),
    "a boundary that is none": (form(("model", b"a")), 'multipart/form-data; boundary="<>"', "invalid_form"),
    "no end": (form(("model", b"assistant"))[:-12], FORM_TYPE, "invalid_form"),
    "no head": (b"------xYz\r\nmodel=assistant\r\n------xYz--\r\n", FORM_TYPE, "invalid_form"),
    "not a form": (b'{"model": "assistant"}', "application/json", "invalid_form"),
    "nothing": (b"", FORM_TYPE, "invalid_form"),
    "a long name": (form(("model", b"a" * 5000)), FORM_TYPE, "invalid_value"),
    "no text": (form(("model", b"\xff\xfe")), FORM_TYPE, "invalid_value"),
    "too many parts": (form(*[("x", b"")] * 300, ("model", b"assistant")), FORM_TYPE, "invalid_form"),
    "an unknown model": (form(("model", b"nobody")), FORM_TYPE, "model_not_found"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_form_that_cannot_be_routed_is_refused(served: RouterProcess, engine: FakeEngine, name: str) -> None:
    before = engine.last()["seen"]
    body, content_type, code = MALFORMED[name]
    response = post_form(served, body, content_type)
    assert response.status_code == (404 if code == "model_not_found" else 400)
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["message"]
    assert engine.last()["seen"] == before
    assert record_of(served, response).outcome == "rejected"


def test_an_engine_that_lacks_an_endpoint_says_so_itself(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--status", "501")
    router.serve(engine.port)
    for path in ("/v1/rerank", "/v1/audio/speech"):
        response = router.client.post(path, content=written(BODIES[path]))
        assert (response.status_code, response.json()["error"]["message"]) == (501, "the fake engine was told to fail")
        assert record_of(router, response).outcome == "completed"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/chat/completions/", "Did you mean /v1/chat/completions?"),
        ("/chat/completions", "Did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "Did you mean /v1/chat/completions?"),
        ("/v1/tokenize", "Did you mean /tokenize?"),
        ("/v1/images/generations", ""),
        ("/", ""),
    ],
)
def test_an_unknown_path_is_not_found(worker: RouterProcess, path: str, said: str) -> None:
    worker.serve()
    response = worker.client.post(path, json={"model": "assistant"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "unknown_path")
    assert error["message"].endswith(said or f"{path!r}.")
    assert record_of(worker, response).endpoint == "other"


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_an_endpoint_takes_only_post(worker: RouterProcess, path: str) -> None:
    worker.serve()
    for method in ("GET", "PUT", "DELETE"):
        response = worker.client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b'{"model": "nobody", "messages": []}', 404, "not_found_error"),
        (b'{"model": 3}', 400, "invalid_request_error"),
        (b"{", 400, "invalid_request_error"),
        (b'{"model": "assistant"}', 503, "overloaded_error"),
    ],
)
def test_errors_on_the_messages_api_are_anthropics(worker: RouterProcess, body: bytes, status: int, kind: str) -> None:
    worker.serve()
    response = worker.client.post("/v1/messages?beta=true", content=body)
    error = response.json()
    assert (response.status_code, error["type"], error["error"]["type"]) == (status, "error", kind)
    assert error["error"]["message"]


@pytest.mark.parametrize("size", [100_000, 1_000_000])
@pytest.mark.parametrize("quotes", ["", '"', "\\"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_large_body_is_renamed_and_asked_for_usage_in_place(
    worker: RouterProcess, engine: FakeEngine, size: int, quotes: str, last: bool, stream: bool
) -> None:
    worker.publish(model([version("v1", [engine.port], names=("smol",))], {"v1": 10_000}))
    text = (("word " * 500 + quotes) * (size // 2500))[:size]
    named, rest = {"model": "assistant"}, {"messages": [{"role": "user", "content": text}], "stream": stream}
    sent = json.dumps({**rest, **named} if last else {**named, **rest}).encode()
    response = worker.client.post("/v1/chat/completions", content=sent)
    assert response.status_code == 200
    asked = b'{"stream_options":{"include_usage":true},' if stream else b"{"
    wanted = sent.replace(b'"model": "assistant"', b'"model": "smol"').replace(b"{", asked, 1)
    assert last_seen(engine)["body_sha256"] == hashlib.sha256(wanted).hexdigest()
    assert record_of(worker, response).prompt_tokens == len(text.split())
