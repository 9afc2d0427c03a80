"""`modelyard keys`, public addresses and HTTPS from the command line, against whole yards as processes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from certificates import make, put
from engines.fixtures import FakeEngine, start_fake_engine
from stack import Stack, external, files_in, stack, until

from registry.certificates import trusting
from registry.state import StateDir
from registry.terminal import UserError
from serving.commands.keys import span_s

pytestmark = pytest.mark.system
SECRET = re.compile(r"mya_[A-Za-z0-9_-]{43}")


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    started = start_fake_engine("--events", "4")
    yield started
    started.kill()
    assert started.process.stdout is not None
    started.process.stdout.close()


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("keys"), external({"v1": engine.url}, {"v1": 10_000})) as made:
        yield made.up()


def ask(yard: Stack, secret: str) -> int:
    body = {"model": "assistant", "messages": [{"role": "user", "content": "one"}]}
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.post(
        f"{yard.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=30
    ).status_code


def test_a_key_is_shown_once_and_listed_by_its_end(yard: Stack) -> None:
    made = yard.cli("keys", "create", "--name", "alice", "--model", "assistant", "--expires-in", "30d")
    secret = made.stdout.strip()
    assert SECRET.fullmatch(secret), "standard output is the key and nothing else"
    assert re.search(r"^key_[0-9a-f]{12} \(alice\) opens the model assistant until ", made.stderr)
    assert "not shown again" in made.stderr
    assert ask(yard, secret) == 200
    assert ask(yard, "none") == 401
    listed = yard.cli("keys", "list").stdout
    for word in ("alice", "active", f"mya_…{secret[-4:]}", "inference", "assistant"):
        assert word in listed
    assert secret not in listed
    assert secret not in yard.cli("keys", "list", "--json").stdout
    assert secret not in yard.cli("audit").stdout


def test_terms_are_in_the_list_in_words(yard: Stack) -> None:
    terms = ("--requests-per-minute", "60", "--tokens-per-minute", "10000", "--concurrency", "4")
    budget = ("--budget-tokens", "1000000", "--budget-engine-seconds", "90.5", "--budget-period", "day")
    scopes = ("--scope", "inference", "--scope", "admin", "--priority", "batch")
    made = yard.json("keys", "create", "--name", "n", *terms, *budget, *scopes)
    assert SECRET.fullmatch(made["secret"])
    (found,) = [one for one in yard.json("keys", "list") if one["id"] == made["key"]["id"]]
    assert found == made["key"]
    assert (found["requests_per_minute"], found["tokens_per_minute"], found["concurrency_max"]) == (60, 10_000, 4)
    assert (found["budget_tokens"], found["budget_engine_s"], found["budget_period"]) == (1_000_000, 90.5, "day")
    assert (found["scopes"], found["priority"], found["expires_at"]) == (["inference", "admin"], "batch", None)
    listed = yard.cli("keys", "list").stdout
    for words in ("60 requests/min", "4 at a time", "1,000,000 tokens a day", "90.5 engine seconds a day", "batch"):
        assert words in listed


def test_a_revoked_key_is_refused_when_the_command_ends(yard: Stack) -> None:
    made = yard.json("keys", "create", "--name", "bob")
    assert ask(yard, made["secret"]) == 200
    assert "(bob) is revoked" in yard.cli("keys", "revoke", made["key"]["id"]).stdout
    assert ask(yard, made["secret"]) == 401
    assert yard.json("keys", "revoke", made["key"]["id"])["key"]["state"] == "revoked"
    entries = yard.json("audit", made["key"]["id"])
    assert [entry["action"] for entry in entries] == ["key.revoke", "key.create"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("revoke", "key_nothing"), "keys list"),
        (("create", "--scope", "root"), "inference"),
        (("create", "--model", "asistant"), "known: assistant"),
        (("create", "--expires-in", "soon"), "30d"),
        (("create", "--priority", "urgent"), "batch"),
        (("create", "--concurrency", "-1"), "concurrency"),
    ],
)
def test_mistakes_are_one_sentence_and_make_nothing(yard: Stack, arguments: tuple[str, ...], said: str) -> None:
    before = yard.json("keys", "list")
    failed = yard.cli("keys", *arguments, check=2)
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr
    assert yard.json("keys", "list") == before


def test_from_elsewhere_the_token_comes_by_the_environment(yard: Stack, tmp_path: Path) -> None:
    elsewhere = ("--admin-url", yard.admin_url, "--state-dir", str(tmp_path))
    refused = yard.cli("keys", "create", *elsewhere, check=2)
    assert "MODELYARD_ADMIN_TOKEN" in refused.stderr
    assert yard.cli("keys", "list", *elsewhere).returncode == 0
    token = (yard.state / "admin.token").read_text().strip()
    os.environ["MODELYARD_ADMIN_TOKEN"] = token
    try:
        assert SECRET.search(yard.cli("keys", "create", *elsewhere).stdout)
    finally:
        del os.environ["MODELYARD_ADMIN_TOKEN"]
    for path, data in files_in(yard.state).items():
        assert path.name == "admin.token" or token.encode() not in data, path
    assert token not in yard.log.read_text()
    assert not SECRET.search(yard.log.read_text())


def test_up_refuses_a_public_address_without_keys(tmp_path: Path, engine: FakeEngine) -> None:
    with stack(tmp_path, external({"v1": engine.url}, {"v1": 10_000})) as made:
        process = made.spawn("--host", "0.0.0.0")
        assert process.wait(90) == 2
        said = made.log.read_text().strip()
        assert said.startswith("modelyard: the router would listen beyond this machine, on 0.0.0.0")
        assert "--require-keys" in said
        assert "\n" not in said
        made.log.unlink()
        made.up("--host", "0.0.0.0", "--require-keys")
        assert ask(made, "none") == 401
        assert ask(made, made.cli("keys", "create").stdout.strip()) == 200


def test_keys_hold_while_the_control_plane_is_gone_and_after(tmp_path: Path, engine: FakeEngine) -> None:
    with stack(tmp_path, external({"v1": engine.url}, {"v1": 10_000})) as made:
        first, second = made.up().json("keys", "create"), made.json("keys", "create")
        made.cli("keys", "revoke", second["key"]["id"])
        made.kill_control()
        expected = {first["secret"]: 200, second["secret"]: 401, "none": 401}
        assert {one: ask(made, one) for one in expected} == expected
        made.up()
        assert {one: ask(made, one) for one in expected} == expected
        made.cli("keys", "revoke", first["key"]["id"])
        assert ask(made, first["secret"]) == 401


def test_a_yard_speaks_https_and_its_commands_trust_it(
    tmp_path: Path, engine: FakeEngine, program: Callable[[str], str]
) -> None:
    pair = make(program("openssl"), tmp_path / "made", "yard")
    other = make(program("openssl"), tmp_path / "made", "other", kind="rsa")
    server = json.dumps({"tls": {"certificate": "tls/cert.pem", "key": "tls/cert.key"}})
    with stack(tmp_path, external({"v1": engine.url}, {"v1": 10_000}, server=server)) as made:
        assert made.spawn().wait(90) == 4
        assert f"the TLS certificate {tmp_path / 'tls' / 'cert.pem'} cannot be read" in made.log.read_text()
        (tmp_path / "tls").mkdir()
        place = (tmp_path / "tls" / "cert.pem", tmp_path / "tls" / "cert.key")
        put((pair[0], other[1]), place)
        assert made.spawn().wait(90) == 2
        assert "does not belong to the certificate" in made.log.read_text()
        put(pair, place)
        made.spawn()
        url = f"https://127.0.0.1:{made.port}"
        with httpx.Client(base_url=url, verify=trusting(place[0], url), trust_env=False, timeout=30) as client:
            until(lambda: client.get("/health/ready").status_code == 200)
            until(lambda: made.cli("status", check=None).returncode == 0)
            assert made.json("status")["url"] == url
            info = StateDir(made.state).read_yard()
            assert info is not None
            assert info.certificate == str(place[0])
            _evaluates(made)
            place[1].write_text("broken")
            until(lambda: any("certificate in use stays" in one for one in made.json("status")["problems"]))
            assert "certificate in use stays" in (made.state / "yard.log").read_text()
            assert client.get("/health/ready").status_code == 200
        assert made.stop() == 0


def _evaluates(yard: Stack) -> None:
    """The evaluation's client finds the yard by its state directory and recognises its certificate."""
    from eval import endpoint

    found = endpoint.find(None, None, StateDir(yard.state))
    endpoint.check_alive(found)
    assert endpoint.resolve(found, "assistant@v1").digest.startswith("sha256:")
    assert yard.cli("doctor").returncode in (0, 4)


@pytest.mark.parametrize(("text", "expected"), [("30d", 2_592_000), ("12h", 43_200), ("1.5m", 90), ("2w", 1_209_600)])
def test_spans(text: str, expected: float) -> None:
    assert span_s(text) == expected


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1 d", "0h", "1mo"])
def test_no_spans(text: str) -> None:
    with pytest.raises(UserError):
        span_s(text)
