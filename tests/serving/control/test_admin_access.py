"""Who may change a yard: the admin token, keys of scope admin, public addresses; and keys over the whole yard."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines.fixtures import start_fake_engine
from yard_harness import CONFIG, RunningYard, until

from registry.certificates import is_loopback
from registry.state import ADMIN_TOKEN_VARIABLE, StateDir, YardInfo
from registry.terminal import UserError
from serving.commands.client import AdminClient
from serving.config import ServerConfig, parse
from serving.control.access import Access, admin_token, check_public
from serving.control.ui import Options
from serving.errors import ApiError
from serving.router.table import Key

Headers = dict[str, str]
REVOKED_UNDER_LOAD = 4
"""Clients that ask all the time while their key is revoked."""


@pytest.fixture(scope="module")
def engines() -> Iterator[list[str]]:
    started = [start_fake_engine("--events", "2") for _ in range(2)]
    yield [engine.url for engine in started]
    for engine in started:
        engine.kill()
        assert engine.process.stdout is not None
        engine.process.stdout.close()


@pytest.fixture
def text(engines: list[str]) -> str:
    return CONFIG.format(workers=2, first=engines[0], second=engines[1])


@pytest.fixture
def yard(tmp_path: Path, text: str) -> Iterator[RunningYard]:
    with RunningYard(tmp_path, text) as running:
        yield running


def bearer(secret: str) -> Headers:
    return {"authorization": f"Bearer {secret}"}


def ask(yard: RunningYard, secret: str = "", **changes: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "one two"}]} | changes
    return yard.api.post("/v1/chat/completions", json=body, headers=bearer(secret) if secret else {})


def create(yard: RunningYard, **terms: Any) -> dict[str, Any]:
    answer = yard.admin.post("/keys", json=terms)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    assert found["waiting_for"] == []
    return found


def code_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["code"])


# Changes


def test_reading_needs_no_credential_and_changing_does(yard: RunningYard) -> None:
    with httpx.Client(base_url=f"{yard.info.admin_url}/admin/v1", trust_env=False) as stranger:
        for path in ("/status", "/models", "/keys", "/audit", "/cost"):
            assert stranger.get(path).status_code == 200
        schema = stranger.get(f"{yard.info.admin_url}/openapi.json").json()
        changes = [
            (method, path)
            for path, calls in schema["paths"].items()
            for method in calls
            if method not in ("get", "head")
        ]
        assert len(changes) >= 7
        for method, path in changes:
            assert schema["paths"][path][method]["security"] == [{"token": []}]
            answer = stranger.request(method, f"{yard.info.admin_url}{path}", json={})
            assert code_of(answer, 401) == "missing_admin_token"
            assert answer.headers["www-authenticate"] == "Bearer"
            message = answer.json()["error"]["message"]
            assert "admin.token" in message
            assert ADMIN_TOKEN_VARIABLE in message
        assert "security" not in schema["paths"]["/admin/v1/status"]["get"]
        for wrong in ("x", yard.token[:-1], yard.token + "x", "mya_nobody", "\xe9"):
            headers = {b"authorization": f"Bearer {wrong}".encode("latin-1")}
            answer = stranger.post("/keys", json={}, headers=headers)
            assert code_of(answer, 401) == "invalid_admin_token"
        assert code_of(stranger.post("/keys", json={}, headers={"authorization": f"Basic {yard.token}"}), 401)
    assert yard.get("keys") == []
    assert yard.get("audit", subject="m")[0]["action"] in ("route.set", "route.rules")


def test_a_key_of_scope_admin_may_change_things_and_the_audit_says_so(yard: RunningYard) -> None:
    admin = create(yard, name="ci", scopes=["admin"])
    user = create(yard, name="alice")
    put = {"url": "/models/m/aliases/champion", "json": {"label": "v2"}}
    with httpx.Client(base_url=f"{yard.info.admin_url}/admin/v1", trust_env=False) as client:
        assert code_of(client.put(**put, headers=bearer(user["secret"])), 403) == "missing_scope"  # type: ignore[arg-type]
        said = bearer(admin["secret"]) | {"x-modelyard-actor": "eve"}
        assert client.put(**put, headers=said).status_code == 200  # type: ignore[arg-type]
        assert yard.get("audit", subject="m@champion")[0]["actor"] == f"eve with {admin['key']['id']}"
        assert yard.admin.post(f"/keys/{admin['key']['id']}/revoke").status_code == 200
        assert code_of(client.put(**put, headers=said), 401) == "invalid_admin_token"  # type: ignore[arg-type]
    assert ask(yard, admin["secret"]).status_code == 401
    assert ask(yard, user["secret"]).status_code == 200


def test_the_token_is_made_once_and_for_its_owner_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "admin.token"
    token = admin_token(path)
    assert len(token) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert admin_token(path) == token
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "modelyard.access"):
        assert admin_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "could be read by others" in caplog.text
    assert token not in caplog.text
    path.write_text("torn")
    assert admin_token(path) != token
    assert [one.name for one in tmp_path.iterdir()] == ["admin.token"]


def test_the_token_outlives_a_restart(tmp_path: Path, text: str) -> None:
    with RunningYard(tmp_path, text) as first:
        token = first.token
    with RunningYard(tmp_path, text) as second:
        assert second.token == token
        assert second.admin.post("/keys", json={}).status_code == 201


# Public addresses


def test_a_public_admin_api_answers_nothing_but_health_without_a_credential(tmp_path: Path, text: str) -> None:
    public = text.replace("admin_port: 0", "admin_host: 0.0.0.0, admin_port: 0, require_keys: true")
    with RunningYard(tmp_path, public) as yard:
        with httpx.Client(base_url=yard.info.admin_url, trust_env=False) as stranger:
            assert stranger.get("/health").status_code == 200
            for path in (
                "/metrics",
                "/openapi.json",
                "/docs",
                "/admin/v1/status",
                "/admin/v1/keys",
                "/health/",
                "/nothing",
            ):
                assert code_of(stranger.get(path), 401) == "missing_admin_token"
            for credential in (yard.token, create(yard, scopes=["admin"])["secret"]):
                for path in ("/metrics", "/admin/v1/status"):
                    assert stranger.get(path, headers=bearer(credential)).status_code == 200
            user = create(yard)["secret"]
            assert code_of(stranger.get("/admin/v1/status", headers=bearer(user)), 403) == "missing_scope"
        client = AdminClient.find(None, yard.state.root)
        assert client.get("status")["url"] == yard.info.url
        assert code_of(ask(yard), 401) == "missing_api_key"
        assert ask(yard, user).status_code == 200


@pytest.mark.parametrize(("place", "what"), [("host", "router"), ("admin_host", "admin API")])
def test_a_public_address_without_keys_is_refused(tmp_path: Path, text: str, place: str, what: str) -> None:
    public = text.replace("{port: 0", f'{{{place}: "0.0.0.0", port: 0')
    with pytest.raises(UserError, match="--require-keys") as refused, RunningYard(tmp_path, public):
        raise AssertionError("it is up")
    assert str(refused.value).startswith(f"the {what} would listen beyond this machine, on 0.0.0.0")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "state" / "yard.json").exists()


def test_a_public_address_is_allowed_with_keys_or_by_force(tmp_path: Path, text: str) -> None:
    options = Options(host="0.0.0.0", allow_public_without_keys=True)
    with RunningYard(tmp_path, text, options) as forced:
        assert ask(forced).status_code == 200
        secret = create(forced)["secret"]
    with RunningYard(tmp_path, text, Options(host="0.0.0.0")) as keyed:
        assert ask(keyed, secret).status_code == 200
        assert code_of(ask(keyed), 401) == "missing_api_key"
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with RunningYard(fresh, text, Options(host="0.0.0.0", require_keys=True)) as locked:
        assert locked.api.get("/health/ready").status_code == 200
        assert code_of(ask(locked), 401) == "missing_api_key"
        assert ask(locked, create(locked)["secret"]).status_code == 200


def test_an_apply_cannot_open_a_public_door(tmp_path: Path, text: str) -> None:
    public = text.replace("{port: 0", '{host: "0.0.0.0", require_keys: true, port: 0')
    with RunningYard(tmp_path, public) as yard:
        opened = public.replace("require_keys: true, ", "")
        answer = yard.admin.post("/apply", json={"config": opened, "path": str(yard.path)})
        assert answer.status_code == 400
        assert "--require-keys" in answer.json()["error"]["message"]
        assert code_of(ask(yard), 401) == "missing_api_key"


def test_an_apply_can_require_keys_and_cease_to(yard: RunningYard, text: str) -> None:
    def apply(config: str) -> None:
        assert yard.admin.post("/apply", json={"config": config, "path": str(yard.path)}).status_code == 200

    apply(text.replace("{port: 0", "{require_keys: true, port: 0"))
    assert code_of(ask(yard), 401) == "missing_api_key"
    apply(text)
    assert ask(yard).status_code == 200


# Keys over the whole yard


def test_a_key_opens_from_the_answer_that_made_it_to_the_answer_that_revoked_it(yard: RunningYard) -> None:
    assert ask(yard).status_code == 200
    made = create(yard, name="alice", models=["m"], expires_in_s=3600, requests_per_minute=600)
    assert made["key"]["state"] == "active"
    assert made["key"]["key"].endswith(made["secret"][-4:])
    for _ in range(8):  # over both workers
        assert ask(yard, made["secret"]).status_code == 200
        assert code_of(ask(yard), 401) == "missing_api_key"
    (listed,) = yard.get("keys")
    assert listed == made["key"]
    assert 3590 < listed["expires_at"] - listed["created_at"] < 3610
    revoked = yard.admin.post(f"/keys/{listed['id']}/revoke")
    assert revoked.json()["key"]["state"] == "revoked"
    for _ in range(8):
        assert code_of(ask(yard, made["secret"]), 401) == "invalid_api_key"
        assert code_of(ask(yard), 401) == "missing_api_key", "revoking the last key opens no door"
    again = yard.admin.post(f"/keys/{listed['id']}/revoke").json()
    assert again["key"]["revoked_at"] == revoked.json()["key"]["revoked_at"]
    assert code_of(yard.admin.post("/keys/key_none/revoke"), 404) == "not_found"


def test_no_request_that_begins_after_the_revocation_is_answered(yard: RunningYard) -> None:
    """By the order of events, under load on both workers: not by how long anything took."""
    made = create(yard)
    revoked = threading.Event()
    wrong: list[int] = []
    served = [0] * REVOKED_UNDER_LOAD

    def load(index: int) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "one"}]}
        with httpx.Client(base_url=yard.info.url, trust_env=False, headers=bearer(made["secret"])) as client:
            late = 0
            while late < 20:
                is_late = revoked.is_set()  # read before the request is sent
                status = client.post("/v1/chat/completions", json=body).status_code
                late += is_late
                served[index] += status == 200
                if is_late and status != 401:
                    wrong.append(status)

    threads = [threading.Thread(target=load, args=(index,)) for index in range(REVOKED_UNDER_LOAD)]
    for thread in threads:
        thread.start()
    until(lambda: min(served) >= 5)
    assert yard.admin.post(f"/keys/{made['key']['id']}/revoke").status_code == 200
    revoked.set()
    for thread in threads:
        thread.join(30)
    assert wrong == []


@pytest.mark.parametrize(
    "terms",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": ["inference", "inference"]},
        {"models": ["not a name"]},
        {"models": ["unknown"]},
        {"expires_in_s": 0},
        {"expires_in_s": 1e300},
        {"requests_per_minute": -1},
        {"tokens_per_minute": 2**80},
        {"name": "a\x00b"},
        {"name": "\ud800"},
        {"priority": "urgent"},
        {"slot": 3},
    ],
)
def test_unusable_terms_make_no_key(yard: RunningYard, terms: dict[str, Any]) -> None:
    import json

    headers = {"content-type": "application/json"}
    answer = yard.admin.post("/keys", content=json.dumps(terms), headers=headers)
    assert answer.status_code in (400, 404, 422), answer.text
    assert yard.get("keys") == []
    assert ask(yard).status_code == 200


def test_no_file_and_no_answer_holds_a_key_or_the_token(tmp_path: Path, text: str) -> None:
    with RunningYard(tmp_path, text.replace("{port: 0", "{access_log: {}, port: 0")) as yard:
        _look_everywhere(yard)


def _look_everywhere(yard: RunningYard) -> None:
    made = create(yard, name="alice", scopes=["inference", "admin"])
    secret = made["secret"]
    assert ask(yard, secret).status_code == 200
    assert ask(yard, secret + "x").status_code == 401
    assert ask(yard, secret, model="nothing").status_code == 404
    yard.admin.post("/models/m/rollback", headers=bearer(secret))
    yard.admin.post("/models/m/rollback", headers=bearer(secret + "x"))
    yard.admin.post(f"/keys/{secret}/revoke")
    status = yard.get("status")
    shown = [yard.get("keys"), yard.get("audit"), status, yard.admin.get(f"{yard.info.admin_url}/metrics").text]
    yard.wait(yard.yard.parts.accounts.step())
    log = until(lambda: (path := yard.state.root / "access.jsonl").exists() and path.read_text())
    assert made["key"]["id"] in log
    for word in (secret, yard.token):
        assert word not in repr(shown)
        for folder, _, names in os.walk(yard.state.root):
            for name in names:
                path = Path(folder) / name
                if path != yard.state.admin_token and path.is_file():
                    assert word.encode() not in path.read_bytes(), path


# Decisions


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_public(ServerConfig(host=host, admin_host=host), has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "127.0.0.1.example.org"])
def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)
    for server in (ServerConfig(host=host), ServerConfig(admin_host=host)):
        with pytest.raises(UserError, match="modelyard keys create"):
            check_public(server, has_keys=False)
        check_public(server, has_keys=True)
        check_public(server.model_copy(update={"require_keys": True}), has_keys=False)
        check_public(server.model_copy(update={"allow_public_without_keys": True}), has_keys=False)


def test_what_needs_a_credential() -> None:
    loopback, public = (Access("t" * 40, tuple, host=host) for host in ("127.0.0.1", "10.0.0.1"))
    for method in ("GET", "HEAD", "OPTIONS"):
        assert not loopback.needs_credential(method, "/admin/v1/status")
        assert public.needs_credential(method, "/admin/v1/status")
        assert not public.needs_credential(method, "/health")
    for method in ("POST", "PUT", "DELETE", "PATCH", "BREW"):
        assert loopback.needs_credential(method, "/admin/v1/status")


def test_an_expired_admin_key_opens_nothing() -> None:
    import hashlib

    key = Key(id="key_1", digest=hashlib.sha256(b"mya_x").digest(), scopes=("admin",), expires_at=100.0)
    now = [99.0]
    access = Access("t" * 40, lambda: [key], host="127.0.0.1", clock=lambda: now[0])
    headers = {b"authorization": "Bearer mya_x"}
    assert access.check("POST", "/x", headers) == "key_1"
    now[0] = 100.0
    with pytest.raises(ApiError) as refused:
        access.check("POST", "/x", headers)
    assert refused.value.status == 401


# The command line's side


def test_the_token_of_a_directory_goes_to_its_own_yard_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path).create()
    monkeypatch.delenv(ADMIN_TOKEN_VARIABLE, raising=False)
    state.write_yard(YardInfo(1, "http://127.0.0.1:8000", "http://127.0.0.1:8001", "", 0.0))
    assert state.token_for("http://127.0.0.1:8001") == ""
    token = admin_token(state.admin_token)
    assert state.token_for("http://127.0.0.1:8001/") == token
    assert state.token_for("http://127.0.0.1:8002") == ""
    assert state.token_for("http://evil.example:8001") == ""
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, " remote ")
    assert state.token_for("http://evil.example:8001") == "remote"
    assert state.token_for("http://127.0.0.1:8001") == token


def test_config_has_what_access_needs() -> None:
    config = parse("server: {require_keys: true}\nmodels: {m: {versions: {v1: {engine: external, url: 'http://x'}}}}\n")
    assert config.server.require_keys
