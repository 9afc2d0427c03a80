"""Plans: what a file changes and what it leaves alone, on made-up registries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from registry.config import ModelConfig
from registry.manifest import Artifact, Manifest, digest
from registry.models import BUCKETS, Route, Version, VersionRef
from registry.terminal import UserError
from serving.control.apply import rules_of
from serving.control.plan import Draft, Plan, plan
from serving.control.resolve import parents_first
from serving.control.snapshot import ModelSnapshot
from serving.router.split import allocate

SOURCE = "file:a.gguf"


@dataclass(frozen=True)
class Engine:
    id: str
    model: str
    label: str
    digest: str


def manifest(sha: str = "aa", **changes: Any) -> Manifest:
    artifact = Artifact(sha256=sha, size_bytes=1, source=SOURCE, filename="a.gguf")
    return Manifest(**({"engine": "llama.cpp", "artifacts": (artifact,)} | changes))


def config(*labels: str, **changes: Any) -> ModelConfig:
    versions = {label: {"artifact": SOURCE, "engine": "llama.cpp"} for label in labels}
    route = {"route": {labels[0]: BUCKETS}} if len(labels) > 1 else {}
    return ModelConfig.model_validate({"versions": versions} | route | changes)


def draft(label: str, made: Manifest | None = None, *, resolved: bool = True, replicas: int = 1) -> Draft:
    return Draft(VersionRef("m", label), made or manifest(), (SOURCE,), resolved, replicas)


def known(*labels: str, weights: dict[str, int] | None = None, **changes: Any) -> ModelSnapshot:
    versions = {label: Version("m", label, manifest(), digest(manifest()), "t", 1.0) for label in labels}
    route = Route("m", 3, weights, allocate(weights), "ab") if weights else None
    return ModelSnapshot("m", **({"versions": versions, "route": route} | changes))


def engine(label: str, made: Manifest | None = None) -> Engine:
    return Engine(f"m@{label}/0", "m", label, digest(made or manifest()))


def kinds(made: Plan) -> list[tuple[str, str]]:
    return [(step.kind, step.subject) for step in made.steps]


def test_everything_is_new_at_first() -> None:
    made = plan({"m": config("v1", aliases={"champion": "v1"})}, [draft("v1", resolved=False)], {}, [])
    assert kinds(made) == [
        ("fetch", "m@v1"),
        ("register", "m@v1"),
        ("set-route", "m"),
        ("set-alias", "m alias champion"),
        ("start", "m@v1/0"),
    ]
    assert made.changes == made.steps
    assert not made.refusals


def test_applying_the_same_file_again_changes_nothing() -> None:
    snapshot = {"m": known("v1", weights={"v1": BUCKETS}, aliases={"champion": "v1"})}
    made = plan({"m": config("v1", aliases={"champion": "v1"})}, [draft("v1")], snapshot, [engine("v1")])
    assert made.changes == ()
    assert not made.refusals


def test_a_route_and_an_alias_that_were_changed_by_hand_are_kept() -> None:
    snapshot = {"m": known("v1", "v2", weights={"v1": 5000, "v2": 5000}, aliases={"champion": "v2"})}
    file = config("v1", "v2", aliases={"champion": "v1"})
    made = plan({"m": file}, [draft("v1"), draft("v2")], snapshot, [engine("v1"), engine("v2")])
    assert made.changes == ()
    reasons = {step.kind: step.reason for step in made.steps}
    assert "v1=5000 v2=5000 (revision 3)" in reasons["keep-route"]
    assert "modelyard route set" in reasons["keep-route"]
    assert "modelyard alias set" in reasons["keep-alias"]


def test_sticky_and_fallback_belong_to_the_file() -> None:
    snapshot = {"m": known("v1", weights={"v1": BUCKETS})}
    made = plan({"m": config("v1", fallback=("v1",))}, [draft("v1")], snapshot, [engine("v1")])
    assert [step.kind for step in made.changes] == ["set-rules"]


def test_other_content_under_a_label_is_refused_with_both_digests_and_the_remedy() -> None:
    other = manifest("bb")
    made = plan({"m": config("v1")}, [draft("v1", other)], {"m": known("v1", weights={"v1": BUCKETS})}, [])
    (refusal,) = made.refusals
    assert digest(manifest()) in refusal.message
    assert digest(other) in refusal.message
    assert "new label" in refusal.message


def test_an_upgraded_engine_package_is_reported_not_refused() -> None:
    made = plan(
        {"m": config("v1")},
        [draft("v1", manifest(environment={"xllamacpp": "2"}))],
        {"m": known("v1", weights={"v1": BUCKETS})},
        [engine("v1")],
    )
    assert not made.refusals
    assert "now xllamacpp 2" in made.steps[0].reason


def test_what_was_not_fetched_is_compared_by_its_source() -> None:
    bare = manifest(artifacts=())
    snapshot = {"m": known("v1", weights={"v1": BUCKETS})}
    assert not plan({"m": config("v1")}, [draft("v1", bare, resolved=False)], snapshot, []).refusals
    changed = manifest(artifacts=(), engine_args={"n_ctx": 1})
    assert plan({"m": config("v1")}, [draft("v1", changed, resolved=False)], snapshot, []).refusals


def test_a_version_that_left_the_file_stops_without_traffic_and_is_refused_with_it() -> None:
    engines = [engine("v1"), engine("v2")]
    idle = {"m": known("v1", "v2", weights={"v1": BUCKETS, "v2": 0})}
    made = plan({"m": config("v1")}, [draft("v1")], idle, engines)
    assert [(step.kind, step.subject) for step in made.changes] == [("stop", "m@v2/0")]
    assert not made.refusals
    busy = {"m": known("v1", "v2", weights={"v1": 9000, "v2": 1000}, aliases={"next": "v2"})}
    (refusal,) = plan({"m": config("v1")}, [draft("v1")], busy, engines).refusals
    assert "1000 basis points" in refusal.message
    assert "alias next" in refusal.message


def test_a_model_that_left_the_file_is_served_no_longer() -> None:
    other = ModelConfig.model_validate({"versions": {"v1": {"engine": "external", "url": "http://x"}}})
    made = plan({"n": other}, [], {"m": known("v1", weights={"v1": BUCKETS})}, [engine("v1")])
    assert ("drop-model", "m") in kinds(made)
    assert ("stop", "m@v1/0") in kinds(made)
    assert not made.refusals


def test_engines_are_kept_restarted_or_stopped_by_what_they_run() -> None:
    snapshot = {"m": known("v1", weights={"v1": BUCKETS})}
    extra = Engine("m@v1/1", "m", "v1", digest(manifest()))
    made = plan({"m": config("v1")}, [draft("v1")], snapshot, [engine("v1"), extra])
    assert ("stop", "m@v1/1") in kinds(made)
    made = plan({"m": config("v1")}, [draft("v1")], snapshot, [engine("v1", manifest("cc"))])
    assert ("restart", "m@v1/0") in kinds(made)


def test_a_retired_label_cannot_be_served() -> None:
    retired = Version("m", "v1", manifest(), digest(manifest()), "t", 1.0, 2.0)
    snapshot = {"m": known(versions={"v1": retired})}
    (refusal,) = plan({"m": config("v1")}, [draft("v1")], snapshot, []).refusals
    assert "retired" in refusal.message


def derived(**parents: str) -> ModelConfig:
    versions: dict[str, Any] = {
        label: {"engine": "llama.cpp", "artifact": {"requantize": parent} if parent else SOURCE}
        for label, parent in parents.items()
    }
    return ModelConfig.model_validate({"versions": versions, "route": {next(iter(parents)): BUCKETS}})


def test_parents_come_before_what_is_derived_from_them() -> None:
    assert parents_first("m", derived(c="b", b="a", a="")) == ["a", "b", "c"]


def test_versions_derived_from_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="derived from each other"):
        parents_first("m", derived(a="", b="c", c="b"))


SEGMENT = {"beta": {"when": {"header": {"X-Beta": 1}}, "route": {"v2": BUCKETS}}}


def test_segments_and_shadows_follow_the_file() -> None:
    there = known("v1", "v2", weights={"v1": BUCKETS})
    file = config("v1", "v2", segments=SEGMENT, shadow={"v2": {"sample": 100}}, sticky=there.route.sticky)  # type: ignore[union-attr]
    made = plan({"m": file}, [draft("v1"), draft("v2")], {"m": there}, [engine("v1"), engine("v2")])
    (step,) = made.changes
    assert (step.kind, step.reason) == ("set-rules", "segments, shadow differ from the route in force")
    rules = rules_of(file, there.route)
    applied = replace(there.route, segments=rules["segments"], shadows=rules["shadows"])  # type: ignore[type-var]
    there = replace(there, route=applied)
    assert not plan({"m": file}, [draft("v1"), draft("v2")], {"m": there}, [engine("v1"), engine("v2")]).changes


def test_a_segment_that_ramps_moves_only_the_buckets_that_it_must() -> None:
    route = known("v1", "v2", weights={"v1": BUCKETS}).route
    shares = []
    for weight in (1000, 3000, 1000):
        file = config(
            "v1", "v2", segments={"beta": {"when": {"user": "a"}, "route": {"v1": BUCKETS - weight, "v2": weight}}}
        )
        route = replace(route, segments=rules_of(file, route)["segments"])  # type: ignore[type-var]
        shares.append(route.segments[0].allocation)
    assert shares[0] == shares[2]
    assert [span.stop for span in shares[1]] == [7000, BUCKETS]
