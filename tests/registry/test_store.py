"""The registry on a real SQLite file: labels, aliases, routes, rollback, audit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import ConflictError, NotFoundError
from registry.manifest import Artifact, Manifest, digest
from registry.models import BUCKETS, Condition, InvalidNameError, RouteSegment, ShadowArm, Span, VersionRef
from registry.store import Registry


def manifest(content: str = "a", **fields: object) -> Manifest:
    artifact = Artifact(sha256=content * 64, size_bytes=1, source="file:x", filename="x.gguf")
    return Manifest(engine="llama.cpp", artifacts=(artifact,), **fields)  # type: ignore[arg-type]


def spans(weights: dict[str, int]) -> tuple[Span, ...]:
    result, start = [], 0
    for label, weight in weights.items():
        if weight:
            result.append(Span(start, start + weight, label))
            start += weight
    return tuple(result)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "registry.db")
    yield opened
    opened.close()


@pytest.fixture
def two(registry: Registry) -> Registry:
    registry.register("assistant", "v1", manifest("a"), author="me", at=1.0)
    registry.register("assistant", "v2", manifest("b"), author="me", at=2.0)
    return registry


def set_route(registry: Registry, weights: dict[str, int], **fields: object) -> int:
    return registry.set_route("assistant", weights, spans(weights), actor="me", at=3.0, **fields).revision  # type: ignore[arg-type]


def test_a_version_comes_back_as_it_was_registered(registry: Registry) -> None:
    content = manifest(engine_args={"n_parallel": 4}, sampling={"temperature": 0.2}, licence="Apache-2.0")
    made = registry.register("assistant", "v1", content, author="me", at=1.5)
    assert made.digest == digest(content)
    assert registry.version("assistant", "v1") == made
    assert registry.versions() == registry.versions("assistant") == [made]
    assert registry.models() == ["assistant"]


def test_the_same_definition_again_is_what_is_there(two: Registry) -> None:
    again = two.register("assistant", "v1", manifest("a", environment={"xllamacpp": "9"}), author="you", at=9.0)
    assert again == two.version("assistant", "v1")
    assert (again.author, again.created_at) == ("me", 1.0)
    assert [entry.action for entry in two.audit()] == ["version.register"] * 2


def test_a_taken_label_with_another_definition_is_refused(two: Registry) -> None:
    with pytest.raises(ConflictError, match="another definition") as caught:
        two.register("assistant", "v1", manifest("c"), author="me", at=3.0)
    assert digest(manifest("a")) in str(caught.value)
    assert digest(manifest("c")) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "x" * 65, "ü", "a@b"])
def test_names_that_cannot_be_used_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidNameError):
        registry.register(name, "v1", manifest(), author="me", at=1.0)
    with pytest.raises(InvalidNameError):
        registry.register("assistant", name, manifest(), author="me", at=1.0)
    assert registry.models() == []


def test_what_is_not_there_is_named_with_what_is(two: Registry) -> None:
    with pytest.raises(NotFoundError, match="assistant has no version 'v9': known: v1, v2"):
        two.version("assistant", "v9")
    with pytest.raises(NotFoundError, match="no model 'other': known: assistant"):
        two.versions("other")
    with pytest.raises(NotFoundError, match="assistant@LABEL"):
        two.resolve(VersionRef("assistant"))
    for call in (two.aliases, two.route_history, two.rollback_target):
        with pytest.raises(NotFoundError):
            call("other")
    assert two.route("other") is None


def test_an_alias_moves_and_resolves(two: Registry) -> None:
    two.set_alias("assistant", "champion", "v1", actor="me", at=3.0)
    moved = two.set_alias("assistant", "champion", "v2", actor="you", at=4.0)
    assert two.aliases() == two.aliases("assistant") == [moved]
    assert two.resolve(VersionRef.parse("assistant@champion")).label == "v2"
    assert two.resolve(VersionRef.parse("assistant@v1")).label == "v1"
    entry = two.audit(limit=1)[0]
    assert (entry.action, entry.subject, entry.actor) == ("alias.set", "assistant@champion", "you")
    assert (entry.before, entry.after) == ({"label": "v1"}, {"label": "v2"})
    assert two.set_alias("assistant", "champion", "v2", actor="x", at=5.0) == moved
    assert two.audit(limit=1)[0].id == entry.id


def test_alias_and_label_cannot_share_a_name(two: Registry) -> None:
    with pytest.raises(ConflictError):
        two.set_alias("assistant", "v2", "v1", actor="me", at=3.0)
    two.set_alias("assistant", "champion", "v1", actor="me", at=3.0)
    with pytest.raises(ConflictError):
        two.register("assistant", "champion", manifest("c"), author="me", at=4.0)
    with pytest.raises(NotFoundError):
        two.set_alias("assistant", "challenger", "v9", actor="me", at=4.0)


def test_a_route_keeps_its_salt_its_order_and_what_was_not_given(two: Registry) -> None:
    set_route(two, {"v2": 9000, "v1": 1000}, sticky=("header:x-user",), fallback=("v2",))
    first = two.route("assistant")
    assert first is not None
    assert list(first.weights) == ["v2", "v1"]
    assert first.allocation == (Span(0, 9000, "v2"), Span(9000, BUCKETS, "v1"))
    assert set_route(two, {"v1": BUCKETS}) == 2
    second = two.route("assistant")
    assert second is not None
    assert (second.salt, second.sticky, second.fallback) == (first.salt, ("header:x-user",), ("v2",))
    assert len(bytes.fromhex(first.salt)) == 16
    assert two.routes() == {"assistant": second}
    assert two.route_history("assistant") == [second, first]
    assert two.route_history("assistant", limit=1) == [second]
    assert set_route(two, {"v1": BUCKETS}, fallback=(), sticky=()) == 3
    third = two.route("assistant")
    assert third is not None
    assert (third.sticky, third.fallback) == ((), ())


def test_the_default_sticky_sources_apply_to_a_first_route(two: Registry) -> None:
    set_route(two, {"v1": BUCKETS})
    route = two.route("assistant")
    assert route is not None
    assert route.sticky == ("header:x-session-id", "body:user")


def test_a_route_to_what_cannot_serve_is_refused(two: Registry) -> None:
    with pytest.raises(NotFoundError, match="known: v1, v2"):
        set_route(two, {"v9": BUCKETS})
    with pytest.raises(NotFoundError):
        set_route(two, {"v1": BUCKETS}, fallback=("v9",))
    with pytest.raises(ValueError, match="sum to 9000"):
        set_route(two, {"v1": 9000})
    with pytest.raises(ValueError, match="allocation"):
        two.set_route("assistant", {"v1": BUCKETS}, (Span(0, 5, "v1"),), actor="me", at=1.0)
    with pytest.raises(NotFoundError, match="no revision 7"):
        set_route(two, {"v1": BUCKETS}, restores=7)
    two.retire("assistant", "v2", actor="me", at=3.0)
    with pytest.raises(NotFoundError, match="v2 is retired: known: v1"):
        set_route(two, {"v1": 5000, "v2": 5000})
    assert two.route("assistant") is None
    assert set_route(two, {"v1": BUCKETS, "v2": 0}) == 1


def test_a_version_in_use_is_not_retired(two: Registry) -> None:
    set_route(two, {"v1": 9000, "v2": 1000})
    with pytest.raises(ConflictError, match="1000 basis points"):
        two.retire("assistant", "v2", actor="me", at=4.0)
    set_route(two, {"v1": BUCKETS, "v2": 0}, fallback=("v2",))
    with pytest.raises(ConflictError, match="fallback"):
        two.retire("assistant", "v2", actor="me", at=4.0)
    set_route(two, {"v1": BUCKETS}, fallback=())
    two.set_alias("assistant", "challenger", "v2", actor="me", at=4.0)
    with pytest.raises(ConflictError, match="challenger"):
        two.retire("assistant", "v2", actor="me", at=4.0)
    two.set_alias("assistant", "challenger", "v1", actor="me", at=4.0)
    assert two.retire("assistant", "v2", actor="me", at=5.0).retired_at == 5.0
    assert two.retire("assistant", "v2", actor="me", at=6.0).retired_at == 5.0
    assert two.version("assistant", "v2").retired_at == 5.0
    with pytest.raises(NotFoundError):
        two.retire("assistant", "v9", actor="me", at=6.0)


def target(registry: Registry) -> int | None:
    route = registry.rollback_target("assistant")
    return None if route is None else route.revision


def test_rollback_goes_back_step_by_step_and_never_to_and_fro(two: Registry) -> None:
    two.register("assistant", "v3", manifest("c"), author="me", at=3.0)
    assert target(two) is None
    set_route(two, {"v1": BUCKETS})  # 1
    assert target(two) is None
    set_route(two, {"v1": 5000, "v2": 5000})  # 2
    set_route(two, {"v1": 5000, "v2": 5000, "v3": 0})  # 3, the same traffic
    set_route(two, {"v3": BUCKETS})  # 4
    assert target(two) == 3
    set_route(two, {"v1": 5000, "v2": 5000}, restores=3, action="route.rollback")  # 5
    assert target(two) == 1
    set_route(two, {"v1": BUCKETS}, restores=1, action="route.rollback")  # 6
    assert target(two) is None
    set_route(two, {"v2": BUCKETS})  # 7: from v1 on
    assert target(two) == 6
    set_route(two, {"v1": BUCKETS}, restores=6)  # 8
    assert target(two) is None
    assert two.audit(limit=1, subject="assistant")[0].after["restores"] == 6  # type: ignore[index]


def test_the_audit_holds_every_change_newest_first(two: Registry) -> None:
    set_route(two, {"v1": BUCKETS})
    set_route(two, {"v2": BUCKETS}, action="route.rollback", restores=1)
    two.retire("assistant", "v1", actor="me", at=5.0)
    two.record("config.apply", "yard", actor="me", at=6.0, after={"digest": "x"})
    entries = two.audit()
    assert [entry.action for entry in entries] == [
        "config.apply",
        "version.retire",
        "route.rollback",
        "route.set",
        "version.register",
        "version.register",
    ]
    assert entries[2].before is not None
    assert entries[2].before["weights"] == {"v1": BUCKETS}
    assert entries[5].before is None
    assert [entry.action for entry in two.audit(subject="assistant@v1")] == ["version.retire", "version.register"]


def test_threads_and_connections_make_distinct_revisions(two: Registry, tmp_path: Path) -> None:
    other = Registry.open(tmp_path / "registry.db")
    made: list[int] = []

    def work(registry: Registry) -> None:
        made.extend(set_route(registry, {"v1": BUCKETS}) for _ in range(10))

    threads = [threading.Thread(target=work, args=(registry,)) for registry in (two, two, other, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(made) == list(range(1, 41))


BETA = RouteSegment(
    "beta", (Condition("header", "x-beta", ("1", "yes")),), {"v2": 4000, "v1": 6000}, spans({"v2": 4000, "v1": 6000})
)
COPIES = ShadowArm("v2", sample=500, inflight_max=2, engine_seconds_per_hour=60.0)


def test_segments_and_shadows_come_back_and_outlive_other_changes(two: Registry) -> None:
    set_route(two, {"v1": BUCKETS}, segments=(BETA,), shadows=(COPIES,))
    set_route(two, {"v1": 9000, "v2": 1000})
    set_route(two, {"v1": BUCKETS}, restores=1, action="route.rollback")
    for route in two.route_history("assistant"):
        assert (route.segments, route.shadows) == ((BETA,), (COPIES,))
        assert list(route.segments[0].weights) == ["v2", "v1"], "the first one is the stable arm"
    set_route(two, {"v1": BUCKETS}, segments=(), shadows=(), action="route.rules")
    head = two.route("assistant")
    assert head is not None
    assert (head.segments, head.shadows) == ((), ())


def test_rules_are_in_the_audit(two: Registry) -> None:
    set_route(two, {"v1": BUCKETS})
    set_route(two, {"v1": BUCKETS}, segments=(BETA,), shadows=(COPIES,), action="route.rules")
    entry = two.audit(1)[0]
    assert entry.action == "route.rules"
    assert entry.before is not None
    assert entry.after is not None
    assert "segments" not in entry.before
    assert entry.after["segments"] == [
        {"name": "beta", "when": [["header", "x-beta", ["1", "yes"]]], "weights": [["v2", 4000], ["v1", 6000]]}
    ]
    assert entry.after["shadows"][0]["label"] == "v2"


@pytest.mark.parametrize(
    ("rules", "words"), [({"segments": (BETA,)}, "segment beta"), ({"shadows": (COPIES,)}, "shadow")]
)
def test_what_a_segment_or_a_shadow_names_cannot_be_retired(
    two: Registry, rules: dict[str, object], words: str
) -> None:
    set_route(two, {"v1": BUCKETS}, **rules)
    with pytest.raises(ConflictError, match=words):
        two.retire("assistant", "v2", actor="me", at=4.0)
    set_route(two, {"v1": BUCKETS}, segments=(), shadows=())
    two.retire("assistant", "v2", actor="me", at=4.0)
    with pytest.raises(NotFoundError, match="retired"):
        set_route(two, {"v1": BUCKETS}, **rules)


def test_a_segment_must_divide_every_bucket(two: Registry) -> None:
    short = RouteSegment("beta", BETA.when, {"v2": BUCKETS}, (Span(0, 5000, "v2"),))
    with pytest.raises(ValueError, match="allocation"):
        set_route(two, {"v1": BUCKETS}, segments=(short,))
    with pytest.raises(InvalidNameError):
        set_route(two, {"v1": BUCKETS}, segments=(RouteSegment("a b", BETA.when, BETA.weights, BETA.allocation),))
