"""Pauses of routes in the registry: kept until they are ended, each change audited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import ConflictError, NotFoundError
from registry.manifest import Artifact, Manifest
from registry.models import BUCKETS, Pause, Span
from registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "registry.db")
    artifact = Artifact(sha256="a" * 64, size_bytes=1, source="file:x", filename="x.gguf")
    for model in ("m", "bare"):
        opened.register(model, "v1", Manifest(engine="llama.cpp", artifacts=(artifact,)), author="me", at=1.0)
    opened.set_route("m", {"v1": BUCKETS}, (Span(0, BUCKETS, "v1"),), actor="me", at=2.0)
    yield opened
    opened.close()


def test_a_pause_is_kept_until_it_is_ended(registry: Registry, tmp_path: Path) -> None:
    before = registry.changes
    made = registry.pause("m", " looks slow ", actor="ada", at=3.0)
    assert made == Pause("m", "looks slow", 3.0, "ada")
    assert registry.changes > before, "who follows the registry reads it again"
    with_another = Registry.open(tmp_path / "registry.db")
    try:
        assert with_another.pauses() == {"m": made}
    finally:
        with_another.close()
    again = registry.pause("m", actor="bob", at=4.0)
    assert registry.pauses() == {"m": again}
    assert registry.resume("m", actor="ada", at=5.0) == again
    assert registry.pauses() == {}
    ended, changed, first = registry.audit(3, "m")
    assert [one.action for one in (first, changed, ended)] == ["route.pause", "route.pause", "route.resume"]
    assert (first.before, first.after) == (None, {"reason": "looks slow", "revision": 1})
    assert (changed.before, changed.after) == ({"reason": "looks slow"}, {"reason": "", "revision": 1})
    assert (ended.actor, ended.before, ended.after) == ("ada", {"reason": "", "paused_by": "bob"}, None)


def test_what_cannot_be_paused_or_resumed_says_why(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="other"):
        registry.pause("other", actor="me", at=3.0)
    with pytest.raises(ConflictError, match="bare has no route"):
        registry.pause("bare", actor="me", at=3.0)
    with pytest.raises(ConflictError, match="not paused"):
        registry.resume("m", actor="me", at=3.0)
    for reason in ("a\nb", "x" * 201, "\x1b[31m"):
        with pytest.raises(ValueError, match="one line of at most 200"):
            registry.pause("m", reason, actor="me", at=3.0)
    assert registry.pauses() == {}
    assert not [one for one in registry.audit() if one.action.startswith("route.") and one.action != "route.set"]
