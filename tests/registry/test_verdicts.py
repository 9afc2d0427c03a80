"""Verdicts of gates in the registry: written once, found by version, asked for by a required gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry.errors import ConflictError, NotFoundError
from registry.manifest import Artifact, Manifest
from registry.models import InvalidNameError
from registry.store import Registry
from registry.verdicts import GateVerdict, Verdicts


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "registry.db")
    for label, content in (("v1", "a"), ("v2", "b"), ("again", "b")):
        artifact = Artifact(sha256=content * 64, size_bytes=1, source="file:x", filename="x.gguf")
        opened.register("m", label, Manifest(engine="llama.cpp", artifacts=(artifact,)), author="me", at=1.0)
    yield opened
    opened.close()


def verdict(registry: Registry, baseline: str = "v1", candidate: str = "v2", **changes: object) -> GateVerdict:
    found = GateVerdict(
        model="m",
        policy="release",
        policy_digest="sha256:" + "0" * 64,
        baseline=baseline,
        baseline_digest=registry.version("m", baseline).digest,
        candidate=candidate,
        candidate_digest=registry.version("m", candidate).digest,
        verdict="pass",
        text="non-inferior",
        suites={"quickstart": "sha256:1"},
        evidence={"runs": ["a", "b"]},
        author="me",
        created_at=5.0,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_verdict_is_kept_as_it_was_written_and_audited(registry: Registry) -> None:
    verdicts = Verdicts(registry.engine)
    first = verdicts.record(verdict(registry))
    second = verdicts.record(verdict(registry, verdict="fail", created_at=6.0))
    assert first.id != second.id
    assert verdicts.newest("m") == verdicts.newest() == [second, first]
    assert verdicts.newest("m", candidate="again") == [second, first], "the same version under another label"
    assert verdicts.newest("m", candidate="v1") == []
    assert verdicts.newest("m", policy="other") == []
    entry = registry.audit(1)[0]
    assert (entry.action, entry.subject, entry.actor) == ("gate.record", "m@v2", "me")
    assert entry.after == {"id": second.id, "policy": "release", "verdict": "fail", "baseline": "v1"}


def test_a_verdict_about_something_else_is_refused(registry: Registry) -> None:
    verdicts = Verdicts(registry.engine)
    with pytest.raises(ConflictError, match="m@v2 is sha256:"):
        verdicts.record(verdict(registry, candidate_digest="sha256:other"))
    with pytest.raises(NotFoundError, match="known: again, v1, v2"):
        verdicts.record(replace(verdict(registry), candidate="v9"))
    with pytest.raises(NotFoundError, match="there is no such model"):
        verdicts.record(replace(verdict(registry), model="n"))
    with pytest.raises(InvalidNameError):
        verdicts.record(replace(verdict(registry), policy="a policy"))
    with pytest.raises(ValueError, match="'maybe' is none of pass"):
        verdicts.record(verdict(registry, verdict="maybe"))
    assert verdicts.newest() == []


def test_the_newest_verdict_decides_what_a_required_gate_lets_through(registry: Registry) -> None:
    verdicts = Verdicts(registry.engine)

    def lacking(candidate: str = "v2", policy: str = "release") -> str:
        return verdicts.lacking("m", policy, baseline="v1", candidate=candidate)

    assert lacking() == "the gate release was never run on it against v1"
    verdicts.record(verdict(registry))
    assert lacking() == lacking("again") == lacking("v1") == ""
    assert "never run" in lacking(policy="strict")
    verdicts.record(verdict(registry, verdict="inconclusive", created_at=6.0))
    assert lacking() == "the gate release against v1 says inconclusive"
    verdicts.record(verdict(registry, created_at=7.0))
    assert lacking() == ""
