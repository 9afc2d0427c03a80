"""API keys on a real SQLite file: made once, kept as digests, revoked for good; their slots; their audit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import ConflictError, NotFoundError
from registry.keys import PREFIX, SLOT_REST_S, SLOTS, KeyTerms, digest_of, free_slot
from registry.manifest import Artifact, Manifest
from registry.store import Registry

DAY = 86_400.0


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "registry.db")
    artifact = Artifact(sha256="a" * 64, size_bytes=1, source="file:x", filename="x.gguf")
    opened.register("assistant", "v1", Manifest(engine="llama.cpp", artifacts=(artifact,)), author="me", at=1.0)
    yield opened
    opened.close()


def test_a_key_comes_back_as_it_was_made_but_for_the_key_itself(registry: Registry) -> None:
    terms = KeyTerms(
        name="alice's notebook",
        scopes=("inference", "admin"),
        models=("assistant",),
        expires_at=100 * DAY,
        priority="batch",
        requests_per_minute=60,
        tokens_per_minute=10_000,
        concurrency_max=4,
        budget_tokens=2**40,
        budget_engine_s=3600.5,
        budget_period="day",
    )
    assert not registry.has_keys()
    key, secret = registry.create_key(terms, actor="me", at=2.0)
    assert registry.api_keys() == registry.keys_in_force() == [key]
    assert registry.has_keys()
    assert key.terms == terms
    assert secret.startswith(PREFIX)
    assert len(secret) >= len(PREFIX) + 43, "32 bytes in base64"
    assert key.digest == hashlib.sha256(secret.encode()).digest() == digest_of(secret)
    assert key.shown == f"mya_…{secret[-4:]}"
    assert (key.created_at, key.created_by, key.revoked_at) == (2.0, "me", None)


def test_no_file_of_the_database_has_the_key(registry: Registry, tmp_path: Path) -> None:
    key, secret = registry.create_key(KeyTerms(name="n"), actor="me", at=2.0)
    registry.revoke_key(key.id, actor="me", at=3.0)
    entries = registry.audit()
    registry.close()
    assert secret not in repr(entries)
    assert digest_of(secret).hex() not in repr(entries)
    for path in tmp_path.iterdir():
        assert secret.encode() not in path.read_bytes()


def test_changes_are_audited_by_id(registry: Registry) -> None:
    key, _ = registry.create_key(KeyTerms(name="bob", models=("assistant",)), actor="eve", at=2.0)
    registry.revoke_key(key.id, actor="mallory", at=3.0)
    revoked, created = registry.audit(subject=key.id)
    assert (created.action, created.actor) == ("key.create", "eve")
    assert created.after == {"name": "bob", "scopes": ["inference"], "models": ["assistant"]}
    assert (revoked.action, revoked.actor, revoked.before) == ("key.revoke", "mallory", created.after)


def test_a_revoked_key_stays_revoked_since_the_first_time(registry: Registry) -> None:
    key, _ = registry.create_key(KeyTerms(), actor="me", at=2.0)
    assert registry.revoke_key(key.id, actor="me", at=3.0).revoked_at == 3.0
    assert registry.revoke_key(key.id, actor="me", at=9.0).revoked_at == 3.0
    assert [one.revoked_at for one in registry.api_keys()] == [3.0]
    assert registry.keys_in_force() == []
    assert registry.has_keys()
    assert len(registry.audit(subject=key.id)) == 2
    with pytest.raises(NotFoundError, match="keys list"):
        registry.revoke_key("key_none", actor="me", at=3.0)


def test_states() -> None:
    registry = Registry.open("sqlite://")
    key, _ = registry.create_key(KeyTerms(expires_at=10.0), actor="me", at=2.0)
    assert [key.state(now) for now in (9.9, 10.0)] == ["active", "expired"]
    assert registry.revoke_key(key.id, actor="me", at=3.0).state(1e12) == "revoked"
    assert KeyTerms().expires_at == 0.0
    assert registry.create_key(KeyTerms(), actor="me", at=2.0)[0].state(1e12) == "active"
    registry.close()


def test_the_smallest_slot_that_has_rested_is_given(registry: Registry) -> None:
    def make(at: float) -> int:
        return registry.create_key(KeyTerms(), actor="me", at=at)[0].slot

    assert [make(1.0) for _ in range(3)] == [0, 1, 2]
    second = registry.api_keys()[1]
    registry.revoke_key(next(one.id for one in registry.api_keys() if one.slot == 1), actor="me", at=10.0)
    assert make(10.0 + SLOT_REST_S - 1) == 3, "a worker may still count the revoked key's requests there"
    assert make(10.0 + SLOT_REST_S) == 1
    assert second.created_at == 1.0


@given(st.sets(st.integers(0, SLOTS - 1)))
def test_a_free_slot_is_free_and_none_smaller_is(taken: set[int]) -> None:
    slot = free_slot(taken)
    assert slot not in taken
    assert set(range(slot)) <= taken


def test_there_are_so_many_and_no_more() -> None:
    with pytest.raises(ConflictError, match="revoke keys"):
        free_slot(set(range(SLOTS)))


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (KeyTerms(scopes=()), "at least one scope"),
        (KeyTerms(scopes=("inference", "inference")), "none twice"),
        (KeyTerms(scopes=("root",)), "known are inference, admin"),
        (KeyTerms(priority="urgent"), "known are interactive, batch"),
        (KeyTerms(budget_period="year"), "known are day, month, total"),  # type: ignore[arg-type]
        (KeyTerms(requests_per_minute=-1), "cannot be negative"),
        (KeyTerms(name="a\nb"), "printable"),
        (KeyTerms(name="x" * 65), "at most 64"),
    ],
)
def test_unusable_terms_are_refused(registry: Registry, terms: KeyTerms, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        registry.create_key(terms, actor="me", at=1.0)
    assert registry.api_keys() == []


def test_a_key_is_for_models_that_there_are(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="known: assistant"):
        registry.create_key(KeyTerms(models=("asistant",)), actor="me", at=1.0)
    assert registry.api_keys() == []
