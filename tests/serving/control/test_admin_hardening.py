"""What nobody can make a yard do: contact an address, write a header, take a page of a browser for an operator, tell a
credential. Everything here is a whole yard, and looks at every file that it leaves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.fixtures import FakeEngine, start_fake_engine
from yard_harness import CONFIG, RunningYard, until

from registry.config import ModelConfig, VersionConfig

ENGINE_KEY = "sk-engine-0123456789abcdef"
CLIENT_SECRET = "client-credential-0123456789"


class Trap:
    """A port at which nobody has any business: it counts who connects."""

    def __init__(self) -> None:
        self.contacts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.contacts += 1
            peer.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    started = start_fake_engine("--events", "2")
    yield started
    started.kill()
    assert started.process.stdout is not None
    started.process.stdout.close()


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine) -> Iterator[RunningYard]:
    text = CONFIG.format(workers=1, first=engine.url, second=engine.url)
    text = text.replace(f'v1: {{engine: external, url: "{engine.url}"}}', "").replace(
        "    versions:\n", f'    versions:\n      v1: {{engine: external, url: "{engine.url}", api_key_env: THE_KEY}}\n'
    )
    text = text.replace("drain_s: 5", "drain_s: 5, access_log: {sample: 10000}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THE_KEY", ENGINE_KEY)
        with RunningYard(tmp_path_factory.mktemp("yard"), text) as running:
            yield running


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.close()


def raw(port: int, data: bytes) -> bytes:
    """What comes back for these bytes until the other side closes, or for half a second."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=0.5) as client:
        client.sendall(data)
        try:
            while part := client.recv(65536):
                received += part
        except (TimeoutError, ConnectionResetError):
            pass
    return received


def ports(yard: RunningYard) -> tuple[int, int]:
    """The router's and the admin API's."""
    return httpx.URL(yard.info.url).port or 0, httpx.URL(yard.info.admin_url).port or 0


def test_nobody_can_make_the_yard_contact_an_address_that_the_configuration_does_not_name(
    yard: RunningYard, engine: FakeEngine, trap: Trap
) -> None:
    post, put, there = yard.admin.post, yard.admin.put, "/models/m/versions"
    for version in (
        {"engine": "external", "url": trap.url},
        {"engine": "external", "url": f"{trap.url}/v1/"},
        {"engine": "external", "url": f"{engine.url}.{trap.port}"},
        {"engine": "external", "url": engine.url, "engine_args": {"base_url": trap.url}},
        {"engine": "hosted", "litellm_model": "openai/x", "url": trap.url, "api_key_env": "THE_KEY"},
        {"engine": "hosted", "litellm_model": "openai/x", "engine_args": {"api_base": trap.url}},
        {"engine": "llama.cpp", "artifact": f"{trap.url}/model.gguf"},
        {"engine": "llama.cpp", "artifact": f"pypi:x @ {trap.url}==1/model.gguf"},
        {"engine": "llama.cpp", "artifact": f"pypi:--index-url={trap.url}==1/model.gguf"},
        {"engine": "llama.cpp", "artifact": f"pypi:x==1 --index-url {trap.url}/model.gguf"},
    ):
        answer = post(there, json={"label": "trap", "version": version})
        if answer.status_code in (200, 201):  # a definition may be kept, but nothing is started or asked by it
            assert version["engine"] != "external" or version["url"] == engine.url
            assert put("/models/m/route", json={"weights": {"trap": 10_000}}).status_code == 409
            assert put("/models/m/aliases/champion", json={"label": "trap"}).status_code == 200
            assert yard.chat("m@champion").status_code in (404, 503)
            put("/models/m/aliases/champion", json={"label": "v1"})
            assert post(f"{there}/trap/retire").status_code == 200
        else:
            assert answer.status_code in (400, 409, 422), answer.text
    text = yard.path.read_text().replace(engine.url, trap.url)
    for config in (text, text.replace("v2:", "v9:"), "models: {m: {versions: {v1: {engine: external, url: "):
        post("/apply", params={"dry_run": True}, json={"config": config, "path": trap.url})
    router, admin = ports(yard)
    body = b'{"model":"%b","messages":[]}' % trap.url.encode()
    for port in (router, admin):
        for head in (
            b"GET %b/v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n",
            b"POST %b/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-forwarded-host: %b\r\nx-original-url: %b\r\n",
            b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n",
        ):
            values = (trap.port,) * 2 if b"%d" in head else (trap.url.encode(),) * head.count(b"%b")
            raw(port, head % values + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert trap.contacts == 0
    assert yard.chat().status_code == 200


def test_a_redirect_of_an_engine_is_passed_on_and_not_followed(
    yard: RunningYard, engine: FakeEngine, trap: Trap
) -> None:
    head = f"HTTP/1.1 307 X\r\nlocation: {trap.url}/\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nno"
    engine.behave(raw=head.encode().hex())
    try:
        answer = yard.chat()
        assert answer.status_code == 307
        assert "location" not in answer.headers
    finally:
        engine.behave(raw="")
    assert trap.contacts == 0


NAMES = ("a\r\nx-evil: 1", "a\nb", "a b", "a\0", "é", "..", "a/b", "@", "", "x" * 65, "a%0d%0ab", "{}", "-a")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_write_a_header_or_a_path_is_none(yard: RunningYard, engine: FakeEngine, name: str) -> None:
    version = {"engine": "external", "url": engine.url}
    quoted = httpx.URL("http://x/").copy_with(params={"n": name}).query.decode()[2:].replace("+", "%20")
    answers = [
        yard.admin.post("/models/m/versions", json={"label": name, "version": version}),
        yard.admin.put("/models/m/aliases/champion", json={"label": name}),
        yard.admin.put("/models/m/route", json={"weights": {name: 10_000}}),
        yard.admin.put(f"/models/m/aliases/{quoted}", json={"label": "v1"}),
        yard.admin.post(f"/models/{quoted}/versions", json={"label": "v1", "version": version}),
        yard.admin.get(f"/models/{quoted}/versions"),
        yard.admin.get("/audit", params={"subject": name}),
        yard.chat(f"m@{name}") if name else yard.chat("m@"),
    ]
    for answer in answers[:5]:
        assert 400 <= answer.status_code < 500, (name, answer.request.url, answer.text)
    for answer in answers:
        assert answer.status_code < 500
        assert "x-evil" not in answer.headers
        assert answer.json() is not None  # one answer, well-formed
    labels = {one["label"] for one in yard.get("models", "m", "versions")}
    assert labels <= {"v1", "v2", "trap"}
    config = yard.path.read_text().replace("champion", f'"{name!r}"'.replace("'", ""))
    assert yard.admin.post("/apply", params={"dry_run": True}, json={"config": config}).status_code in (200, 400)


def test_what_a_caller_says_of_itself_is_bounded_and_stays_in_the_audit(yard: RunningYard) -> None:
    headers = {"x-modelyard-actor": "e" * 500, "x-request-id": "r" * 500}
    answer = yard.admin.put("/models/m/aliases/actor", json={"label": "v1"}, headers=headers)
    assert answer.status_code == 200
    assert len(yard.get("audit", subject="m@actor")[0]["actor"]) == 64
    assert "eee" not in str(answer.headers)


REBINDING = (
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example:8001",
    "127.0.0.1.nip.io",
    "evil.example:80@127.0.0.1.evil",
    "[::1].evil.example",
    "10.0.0.1",
    "0.0.0.0",
    "2130706433",
    "0x7f.1",
    "127.1",
    "localhost.",
    "xn--localhost",
    "",
)


def test_no_path_answers_to_another_hosts_name(yard: RunningYard) -> None:
    document = httpx.get(f"{yard.info.admin_url}/openapi.json", trust_env=False).json()
    _, port = ports(yard)
    paths = [*document["paths"], "/docs", "/openapi.json", "/nothing", "/metrics"]
    for host in REBINDING:
        for path in paths if host == REBINDING[0] else paths[:2]:
            for method in (b"GET", b"POST"):
                head = b"%b %b HTTP/1.1\r\nhost: %b\r\nauthorization: Bearer %b\r\nconnection: close\r\n\r\n"
                answer = raw(port, head % (method, path.encode(), host.encode(), yard.token.encode()))
                assert answer.split()[1] in (b"421", b"400"), (host, path, answer[:200])
    answer = raw(port, b"GET /metrics HTTP/1.1\r\nhost: evil.example\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
    assert answer.split()[1] == b"400"
    answer = raw(port, b"GET /metrics HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert answer.split()[1] in (b"400", b"421")


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://127.0.0.1.evil.example", "file://", "http://localhost.evil", "x"]
)
def test_no_other_origin_changes_anything_even_with_the_token(yard: RunningYard, origin: str) -> None:
    before = yard.get("audit", limit=1)
    for method, path in (
        ("PUT", "/models/m/route"),
        ("POST", "/apply"),
        ("POST", "/models/m/rollback"),
        ("POST", "/keys"),
    ):
        answer = yard.admin.request(method, path, json={}, headers={"origin": origin})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in answer.headers
    asked = yard.admin.options("/models/m/route", headers={"origin": origin, "access-control-request-method": "PUT"})
    assert "access-control-allow-origin" not in asked.headers
    assert yard.get("audit", limit=1) == before


def test_a_body_that_does_not_say_its_length_is_bounded_as_well(yard: RunningYard) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 65536

    answer = yard.admin.post("/apply", content=endless())
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    parts = iter([b'{"lab', b'el": "v1"}'])
    answer = yard.admin.put("/models/m/aliases/parts", content=parts, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["label"] == "v1"


def test_credentials_reach_nobody_whom_they_are_not_for(yard: RunningYard, engine: FakeEngine) -> None:
    given = {
        "authorization": f"Bearer {CLIENT_SECRET}",
        "x-api-key": CLIENT_SECRET,
        "api-key": CLIENT_SECRET,
        "x-goog-api-key": CLIENT_SECRET,
        "cookie": f"session={CLIENT_SECRET}",
        "proxy-authorization": f"Basic {CLIENT_SECRET}",
        "x-forwarded-authorization": CLIENT_SECRET,
        "openai-organization": CLIENT_SECRET,
        "referer": f"https://x/?key={CLIENT_SECRET}",
        "user-agent": CLIENT_SECRET,
    }
    answers: list[Any] = []
    for model in ("m@v1", "m@v2", "nobody"):
        for stream in (False, True):
            body = {"model": model, "messages": [], "stream": stream}
            answers.append(yard.api.post("/v1/chat/completions", json=body, headers=given))
    answers += [
        yard.api.get("/v1/models", headers=given),
        yard.api.get("/nothing", headers=given),
        yard.api.post("/v1/chat/completions", content=b"{", headers=given),
        httpx.get(f"{yard.info.admin_url}/metrics", headers=given, trust_env=False),
        httpx.put(f"{yard.info.admin_url}/admin/v1/models/m/route", json={}, headers=given, trust_env=False),
        *(yard.admin.get(path) for path in ("/status", "/audit", "/models/m/versions", "/models", "/cost")),
        httpx.get(f"{yard.info.admin_url}/openapi.json", trust_env=False),
    ]
    router, _ = ports(yard)
    userinfo = b"GET http://user:%b@h/v1/none HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % CLIENT_SECRET.encode()
    assert CLIENT_SECRET.encode() not in raw(router, userinfo)
    for answer in answers:
        for secret in (CLIENT_SECRET, ENGINE_KEY, yard.token):
            assert secret not in answer.text, answer.request.url
            assert secret not in str(answer.headers), answer.request.url
    engine.behave(status=401)  # its own words pass, our key for it does not
    assert ENGINE_KEY not in yard.chat("m@v1").text
    engine.behave(status=200)

    seen = engine.stats()["requests"]
    assert CLIENT_SECRET not in str(seen)
    with_key = [one for one in seen if dict(one["headers"]).get("authorization") == f"Bearer {ENGINE_KEY}"]
    assert len(with_key) >= 2, "v1 is asked with its own key"
    assert len(with_key) < len(seen), "v2 has none"

    until(lambda: "/v1/chat/completions" in (yard.state.root / "access.jsonl").read_text())
    for path in yard.state.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert CLIENT_SECRET.encode() not in content, path
            assert ENGINE_KEY.encode() not in content, path
            assert yard.token.encode() not in content or path.name == "admin.token", path
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert ENGINE_KEY.encode() not in process.read_bytes(), process
        except OSError:
            continue


@pytest.mark.parametrize(
    "url",
    ["http://h/a b", "http://h/a\r\nx-evil: 1", "http://h/\xe9", "http://h/\x7f", "http://u:p@h", "ftp://h", "//h"],
)
def test_an_address_that_could_write_into_a_request_is_refused_in_the_configuration(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        VersionConfig(engine="external", url=url)


def test_a_sticky_header_must_have_a_name_that_headers_can_have() -> None:
    version = VersionConfig(engine="external", url="http://h")
    with pytest.raises(ValueError, match="sticky"):
        ModelConfig(versions={"v1": version}, sticky=("header:\xe9\u4e00",))
