"""Compiled modules are used where they are of the present sources, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import native


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one module, compiled."""
    for name in ("serving/router/hot.py", "serving/errors.py", *native._READ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("X = 1\n")
    monkeypatch.setattr(native, "ROOT", tmp_path)
    monkeypatch.delenv("MODELYARD_NATIVE", raising=False)
    (tmp_path / ".native" / native.digest() / "serving" / "router").mkdir(parents=True)
    return tmp_path


def test_what_was_compiled_from_these_sources_is_used(tree: Path) -> None:
    assert native.folder() == tree / ".native" / native.digest() / "serving" / "router"


@pytest.mark.parametrize("changed", ["serving/router/hot.py", "serving/router/new.py", "registry/usage.py"])
def test_a_changed_source_leaves_it_aside(tree: Path, changed: str) -> None:
    (tree / changed).write_text("X = 2\n")
    assert native.folder() is None


def test_it_can_be_switched_off(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_NATIVE", "0")
    assert native.folder() is None


def test_every_module_that_is_to_be_compiled_is_there() -> None:
    router = native.ROOT / "serving" / "router"
    assert [name for name in native.COMPILED if not (router / f"{name}.py").exists()] == []
