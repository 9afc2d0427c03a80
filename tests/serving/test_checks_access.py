"""What `modelyard doctor` says of addresses, keys, the token and the certificate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import make

from registry.keys import KeyTerms
from registry.state import StateDir
from registry.store import Registry
from serving.commands.check import Check
from serving.commands.checks_access import certificate, examine_access, keys, token
from serving.config import ServerConfig, TlsConfig
from serving.control.access import admin_token

PUBLIC = ServerConfig(host="0.0.0.0")


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state").create()


def test_a_yard_for_this_machine_needs_nothing(state: StateDir) -> None:
    (found,) = examine_access(state, ServerConfig(), None)
    assert (found.result, found.name) == ("ok", "access")
    assert not state.database.exists(), "looking makes nothing"


def test_a_public_address_needs_keys(state: StateDir) -> None:
    refused = keys(state, PUBLIC)
    assert refused.result == "fail"
    assert "0.0.0.0" in refused.detail
    assert "--require-keys" in refused.remedy
    assert keys(state, PUBLIC.model_copy(update={"require_keys": True})).result == "warn"
    registry = Registry.open(state.database)
    key, _ = registry.create_key(KeyTerms(), actor="me", at=1.0)
    registry.create_key(KeyTerms(expires_at=2.0), actor="me", at=1.0)
    active = keys(state, PUBLIC)
    assert (active.result, active.detail) == ("ok", "requests need an API key, of which 1 is in force")
    registry.revoke_key(key.id, actor="me", at=2.0)
    assert keys(state, PUBLIC).remedy == "run `modelyard keys create`"
    registry.close()


def test_a_database_from_before_there_were_keys_is_none_of_ours(state: StateDir) -> None:
    state.database.write_bytes(b"")
    assert keys(state, ServerConfig()).result == "ok"


def test_a_token_that_others_can_read(state: StateDir) -> None:
    assert list(token(state)) == []
    admin_token(state.admin_token)
    assert list(token(state)) == []
    state.admin_token.chmod(0o640)
    (found,) = token(state)
    assert (found.result, found.name) == ("warn", "admin token")


@pytest.mark.parametrize(
    ("days", "result", "said"),
    [(90, "ok", "for localhost, 127.0.0.1, valid for"), (3, "warn", "valid for"), (-1, "fail", "has expired")],
)
def test_a_certificate_is_looked_at_as_a_client_would(
    tmp_path: Path, program: Callable[[str], str], days: int, result: str, said: str
) -> None:
    make(program("openssl"), tmp_path, "yard", days=days)
    found = certificate(ServerConfig(tls=TlsConfig(certificate="yard.pem", key="yard.key")), tmp_path)
    assert (found.result, found.name) == (result, "certificate")
    assert said in found.detail
    assert bool(found.remedy) == (result != "ok")


def test_a_certificate_that_is_not_there(state: StateDir, tmp_path: Path) -> None:
    server = ServerConfig(tls=TlsConfig(certificate="none.pem", key="none.key"))
    found: list[Check] = list(examine_access(state, server, tmp_path / "yard.yaml"))
    assert [one.result for one in found] == ["ok", "fail"]
    assert "cannot be read" in found[1].detail
