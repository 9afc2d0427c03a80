"""API keys at a real worker: who is refused, when, in which words, and what of it reaches engines and records."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine
from router_harness import PATIENCE_S, RouterProcess, model, version

from serving.errors import ApiError
from serving.router.http1 import Request
from serving.router.keys import Keyring, check_model, credential_of, may_use
from serving.router.protocol import Applied, Publish
from serving.router.table import Key, Model, Table

ALICE, BOB, ROOT, LATE = "mya_alice", "mya_bob", "mya_root", "mya_late"
Engines = Callable[..., FakeEngine]


def key(secret: str, key_id: str, **terms: Any) -> Key:
    return Key(id=key_id, digest=hashlib.sha256(secret.encode()).digest(), **terms)


KEYS = (
    key(ALICE, "key_alice", slot=0),
    key(BOB, "key_bob", slot=1, models=("other",)),
    key(ROOT, "key_root", slot=2, scopes=("admin",)),
    key(LATE, "key_late", slot=3, expires_at=1.0),
)


def publish(router: RouterProcess, *models: Model, keys: tuple[Key, ...] = KEYS, required: bool = True) -> None:
    router.generation += 1
    named = {one.name: one for one in models}
    router.control.send(Publish(Table(generation=router.generation, models=named, keys=keys, keys_required=required)))
    assert router.control.wait(Applied).generation == router.generation


def assistant(engine: FakeEngine) -> Model:
    return model([version("v1", [engine.port])], {"v1": 10_000})


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def refusal(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers["x-request-id"]
    assert ("www-authenticate" in answer.headers) == (status == 401)
    return str(error["message"])


def test_without_keys_any_credential_is_taken_and_ignored(router: RouterProcess, fake_engine: Engines) -> None:
    publish(router, assistant(fake_engine()), keys=(), required=False)
    for headers in ({}, bearer("none"), {"x-api-key": "none"}, {"authorization": "Basic bm9uZQ=="}):
        assert router.chat(headers=headers).status_code == 200
    assert {record.key_id for record in router.records(4)} == {""}


@pytest.mark.parametrize("headers", [bearer(ALICE), {"authorization": f"bearer  {ALICE}"}, {"x-api-key": ALICE}])
def test_a_key_opens(router: RouterProcess, fake_engine: Engines, headers: dict[str, str]) -> None:
    publish(router, assistant(fake_engine()))
    assert router.chat(headers=headers).status_code == 200
    assert router.chat(headers=headers, stream=True).status_code == 200
    assert [record.key_id for record in router.records(2)] == ["key_alice", "key_alice"]


@pytest.mark.parametrize(
    ("headers", "status", "code", "said"),
    [
        ({}, 401, "missing_api_key", "Authorization: Bearer"),
        ({"authorization": "Bearer"}, 401, "missing_api_key", "Authorization: Bearer"),
        ({"authorization": ALICE}, 401, "missing_api_key", "Authorization: Bearer"),
        ({"authorization": f"Basic {ALICE}"}, 401, "missing_api_key", "Authorization: Bearer"),
        (bearer("mya_nobody"), 401, "invalid_api_key", "unknown or was revoked"),
        (bearer(ALICE + "x"), 401, "invalid_api_key", "unknown or was revoked"),
        (bearer("x" * 5000), 401, "invalid_api_key", "unknown or was revoked"),
        (bearer("mya_nobody") | {"x-api-key": ALICE}, 401, "invalid_api_key", "unknown or was revoked"),
        (bearer(LATE), 401, "invalid_api_key", "expired"),
        (bearer(ROOT), 403, "missing_scope", "scope inference"),
        (bearer(BOB), 403, "model_not_allowed", "other"),
    ],
)
def test_who_is_refused(
    router: RouterProcess, fake_engine: Engines, headers: dict[str, str], status: int, code: str, said: str
) -> None:
    engine = fake_engine()
    publish(router, assistant(engine))
    message = refusal(router.chat(headers=headers), status, code)
    assert said in message
    for secret in (ALICE, BOB, ROOT, LATE):
        assert secret not in message
    assert engine.stats()["requests"] == []
    (record,) = router.records(1)
    known = {ROOT: "key_root", BOB: "key_bob", LATE: "key_late"}
    shown = headers.get("authorization", "").removeprefix("Bearer ")
    assert (record.outcome, record.status, record.error) == ("rejected", status, code)
    assert record.key_id == known.get(shown, "")


def test_required_keys_shut_the_door_even_while_there_are_none(router: RouterProcess, fake_engine: Engines) -> None:
    publish(router, assistant(fake_engine()), keys=(), required=True)
    refusal(router.chat(), 401, "missing_api_key")
    refusal(router.chat(headers=bearer(ALICE)), 401, "invalid_api_key")


def test_health_needs_no_key_and_nothing_else_passes_for_it(router: RouterProcess, fake_engine: Engines) -> None:
    publish(router, assistant(fake_engine()))
    assert router.client.get("/health/live").status_code == 200
    assert router.client.get("/health/ready").status_code == 200
    absolute = head(router, b"GET http://example.org/health/live HTTP/1.1\r\nhost: a\r\n\r\n")
    assert absolute.startswith(b"HTTP/1.1 200")
    for target in ("/v1/models", "/v1/models/assistant", "/", "/health", "//health/live", "/Health/live"):
        refusal(router.client.get(target), 401, "missing_api_key")
    sneaky = (
        b"POST http://example.org/v1/chat/completions?x=/health/ HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
    )
    assert head(router, sneaky).startswith(b"HTTP/1.1 401")


def head(router: RouterProcess, data: bytes, *, wait_s: float = PATIENCE_S) -> bytes:
    """The first bytes of the answer to raw bytes."""
    with socket.create_connection(("127.0.0.1", router.port), timeout=wait_s) as client:
        client.sendall(data)
        return client.recv(4096)


def test_an_unknown_client_cannot_even_send_its_body(router: RouterProcess, fake_engine: Engines) -> None:
    publish(router, assistant(fake_engine()))
    start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 30000000\r\n"
    assert head(router, start + b"\r\n").startswith(b"HTTP/1.1 401")
    assert head(router, start + b"expect: 100-continue\r\n\r\n").startswith(b"HTTP/1.1 401")
    welcome = start + b"authorization: Bearer mya_alice\r\nexpect: 100-continue\r\n\r\n"
    assert head(router, welcome).startswith(b"HTTP/1.1 100")


def test_a_refusal_keeps_the_requests_id_and_shows_a_head_only_to_head(router: RouterProcess) -> None:
    publish(router, model([version("v1", [])], {"v1": 10_000}))
    answer = router.client.head("/v1/models", headers={"x-request-id": "mine-1"})
    assert (answer.status_code, answer.content, answer.headers["x-request-id"]) == (401, b"", "mine-1")
    assert [record.request_id for record in router.records(1)] == ["mine-1"]


def test_two_credentials_of_one_kind_are_a_mistake(router: RouterProcess, fake_engine: Engines) -> None:
    publish(router, assistant(fake_engine()))
    for name in ("authorization", "x-api-key"):
        value = "Bearer mya_alice" if name == "authorization" else "mya_alice"
        text = f"GET /v1/models HTTP/1.1\r\nhost: a\r\n{name}: {value}\r\n{name}: {value}\r\n\r\n"
        assert head(router, text.encode()).startswith(b"HTTP/1.1 400")


def test_the_list_of_models_is_what_the_key_may_use(router: RouterProcess, fake_engine: Engines) -> None:
    one, two = assistant(fake_engine()), model([version("v1", [])], {"v1": 10_000})
    other = Model(name="other", versions=two.versions, arms=two.arms, salt=two.salt)
    publish(router, one, other)

    def names(secret: str) -> list[str]:
        return [card["id"] for card in router.client.get("/v1/models", headers=bearer(secret)).json()["data"]]

    assert names(ALICE) == ["assistant", "assistant@v1", "other", "other@v1"]
    assert names(BOB) == ["other", "other@v1"]
    assert router.client.get("/v1/models/other@v1", headers=bearer(BOB)).status_code == 200
    hidden = router.client.get("/v1/models/assistant", headers=bearer(BOB))
    assert "assistant@" not in refusal(hidden, 404, "model_not_found")
    unknown = refusal(router.chat(model="nothing", headers=bearer(BOB)), 404, "model_not_found")
    assert "other" in unknown
    assert "assistant" not in unknown
    refusal(router.chat(model="assistant@v1", headers=bearer(BOB)), 403, "model_not_allowed")


def test_a_key_that_is_revoked_while_a_body_comes_opens_nothing(router: RouterProcess, fake_engine: Engines) -> None:
    engine = fake_engine()
    publish(router, assistant(engine))
    body = b'{"model":"assistant","messages":[{"role":"user","content":"one"}]}'
    start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer mya_alice\r\n"
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as client:
        client.sendall(start + b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % len(body))
        assert client.recv(100).startswith(b"HTTP/1.1 100"), "its head was taken"
        publish(router, assistant(engine), keys=KEYS[1:])
        client.sendall(body)
        assert client.recv(4096).startswith(b"HTTP/1.1 401")
    assert engine.stats()["requests"] == []


def test_a_stream_that_began_goes_on_when_its_key_is_revoked(router: RouterProcess, fake_engine: Engines) -> None:
    engine = fake_engine("--events", "20", "--gap", "0.02")
    publish(router, assistant(engine))
    body = {"model": "assistant", "stream": True, "messages": [{"role": "user", "content": "one"}]}
    with router.client.stream("POST", "/v1/chat/completions", json=body, headers=bearer(ALICE)) as answer:
        assert answer.status_code == 200
        publish(router, assistant(engine), keys=KEYS[1:])
        text = "".join(answer.iter_text())
    assert "[DONE]" in text
    refusal(router.chat(headers=bearer(ALICE)), 401, "invalid_api_key")


def test_a_key_expires_without_a_new_table(router: RouterProcess, fake_engine: Engines) -> None:
    served = assistant(fake_engine())
    expires_at = time.time() + 3.0
    publish(router, served, keys=(key("mya_soon", "key_soon", expires_at=expires_at),))
    assert router.chat(headers=bearer("mya_soon")).status_code == 200
    time.sleep(max(0.0, expires_at - time.time()) + 0.1)
    assert "expired" in refusal(router.chat(headers=bearer("mya_soon")), 401, "invalid_api_key")


def test_engines_see_no_credential_and_records_hold_none(router: RouterProcess, fake_engine: Engines) -> None:
    engine = fake_engine()
    publish(router, assistant(engine))
    headers = bearer(ALICE) | {"x-api-key": BOB, "proxy-authorization": "Basic c2VjcmV0", "cookie": "session=secret"}
    assert router.chat(headers=headers).status_code == 200
    (seen,) = engine.stats()["requests"]
    text = repr(seen).lower()
    for word in ("mya_", "authorization", "x-api-key", "cookie", "secret"):
        assert word not in text
    router.records(1)
    for path in (router.folder / "requests").iterdir():
        assert b"mya_" not in path.read_bytes()


def test_the_openai_library_understands_a_refusal(router: RouterProcess, fake_engine: Engines) -> None:
    openai = pytest.importorskip("openai")
    publish(router, assistant(fake_engine()))
    messages = [{"role": "user", "content": "one"}]
    for secret, kind, code in (
        ("mya_nobody", openai.AuthenticationError, "invalid_api_key"),
        (BOB, openai.PermissionDeniedError, "model_not_allowed"),
    ):
        with (
            openai.OpenAI(base_url=f"{router.url}/v1", api_key=secret, max_retries=0) as client,
            pytest.raises(kind) as refused,
        ):
            client.chat.completions.create(model="assistant", messages=messages)
        assert refused.value.code == code
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key=ALICE) as client:
        assert client.chat.completions.create(model="assistant", messages=messages).choices


# The decision itself


def request(target: bytes = b"/v1/models", **headers: str) -> Request:
    made = Request()
    made.target = target
    made.headers = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return made


def test_a_renewed_request_has_the_terms_of_the_new_table() -> None:
    asked = request(authorization=f"Bearer {ALICE}")
    assert Keyring(KEYS).admit(asked, 0.0) is None
    changed = key(ALICE, "key_alice", concurrency_max=3)
    assert Keyring([changed]).renew(asked, 0.0) is None
    assert asked.key is changed


def test_expiry_is_at_its_second() -> None:
    ring = Keyring([key(LATE, "key_late", expires_at=100.0)])
    assert ring.admit(request(x_api_key=LATE), 99.999) is None
    refused = ring.admit(request(x_api_key=LATE), 100.0)
    assert isinstance(refused, ApiError)
    assert refused.status == 401


def test_which_credential_counts() -> None:
    assert credential_of({}) is None
    assert credential_of({b"authorization": b"BEARER  a "}) == b"a"
    assert credential_of({b"x-api-key": b"b"}) == b"b"
    assert credential_of({b"authorization": b"Bearer a", b"x-api-key": b"b"}) == b"a"
    assert credential_of({b"authorization": b"Basic a", b"x-api-key": b"b"}) == b"b"


def test_models_that_a_key_may_use() -> None:
    everywhere, one = KEYS[0], KEYS[1]
    assert may_use(None, "x")
    assert may_use(everywhere, "x")
    assert may_use(one, "other")
    assert not may_use(one, "x")
    check_model(everywhere, "x")
    with pytest.raises(ApiError, match="may use other"):
        check_model(one, "x")
