"""Tables from registry and engines: pure, so every property is checked on made-up ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from registry.keys import ApiKey, KeyTerms
from registry.manifest import Manifest, digest
from registry.models import BUCKETS, Condition, Route, RouteSegment, ShadowArm, Version
from serving.control.publish import Generations, ModelTraits, build_table, same_but_generation
from serving.control.snapshot import ModelSnapshot
from serving.engines.base import Capabilities
from serving.router.split import allocate
from serving.router.table import Arm, Limits, Match, Segment, Shadow, Table


@dataclass(frozen=True)
class Running:
    id: str
    model: str
    label: str
    state: str = "ready"
    host: str = "127.0.0.1"
    port: int = 9000
    served_names: tuple[str, ...] = ("*",)


def version(label: str, *, url: str = "", retired: bool = False, model: str = "m") -> Version:
    manifest = Manifest(engine="external" if url else "llama.cpp", url=url)
    return Version(model, label, manifest, digest(manifest), "t", 100.5, 1.0 if retired else None)


def model(*labels: str, weights: dict[str, int] | None = None, **changes: object) -> ModelSnapshot:
    versions = {label: version(label) for label in labels}
    route = Route("m", 1, weights, allocate(weights), "ab" * 16) if weights else None
    return ModelSnapshot("m", **({"versions": versions, "route": route} | changes))  # type: ignore[arg-type]


def build(snapshot: ModelSnapshot, *running: Running, **changes: object) -> Table:
    given_: dict[str, object] = {"traits": {"m": ModelTraits()}, "limits": Limits(), "generation": 7}
    return build_table({"m": snapshot}, running, **(given_ | changes))  # type: ignore[arg-type]


def test_a_version_has_its_own_replicas_in_the_order_of_their_ids_whatever_their_state() -> None:
    table = build(
        model("v1", "v2", weights={"v1": 9000, "v2": 1000}),
        Running("m@v1/1", "m", "v1", "starting"),
        Running("m@v1/0", "m", "v1"),
        Running("m@v2/0", "m", "v2", "draining"),
        Running("n@v1/0", "n", "v1"),
    )
    found = table.models["m"].versions
    assert [(one.id, one.state) for one in found["v1"].replicas] == [("m@v1/0", "ready"), ("m@v1/1", "down")]
    assert [(one.id, one.state) for one in found["v2"].replicas] == [("m@v2/0", "draining")]
    assert [arm.label for arm in table.models["m"].arms] == ["v1", "v2"]
    assert table.models["m"].created == 100
    assert table.generation == 7


def test_retired_versions_and_what_names_them_are_left_out() -> None:
    route = Route("m", 1, {"v1": BUCKETS}, allocate({"v1": BUCKETS}), "ab", fallback=("v2", "v1"))
    snapshot = model(
        versions={"v1": version("v1"), "v2": version("v2", retired=True)},
        aliases={"champion": "v1", "old": "v2"},
        route=route,
    )
    found = build(snapshot).models["m"]
    assert list(found.versions) == ["v1"]
    assert found.aliases == {"champion": "v1"}
    assert found.fallback == ("v1",)


def test_models_that_the_configuration_does_not_name_are_not_served() -> None:
    assert build(model("v1", weights={"v1": BUCKETS}), traits={}).models == {}
    assert build(model("v1"), traits={"other": ModelTraits()}).models == {}


def test_an_external_engine_keeps_its_path_its_host_and_its_key() -> None:
    snapshot = model(versions={"v1": version("v1", url="https://user@api.example:8443/openai")})
    running = Running("m@v1/0", "m", "v1", host="api.example", port=8443, served_names=("gpt",))
    table = build(
        snapshot,
        running,
        traits={"m": ModelTraits(authorizations={"v1": "Bearer k"})},
        capabilities={"m@v1/0": Capabilities()},
    )
    found = table.models["m"].versions["v1"]
    (replica,) = found.replicas
    assert (replica.base_path, replica.tls, replica.host_header) == ("/openai", True, "api.example:8443")
    assert replica.authorization == "Bearer k"
    assert found.served_names == ("gpt",)
    assert not found.stream_usage


weights = st.integers(0, BUCKETS).map(lambda n: {"v1": n, "v2": BUCKETS - n})
states = st.sampled_from(["ready", "starting", "backoff", "failed", "stopped", "draining", "something new"])


@given(weights, st.lists(st.tuples(st.sampled_from(["v1", "v2"]), states), max_size=6))
def test_arms_cover_every_bucket_by_their_weight_and_only_ready_engines_are_ready(
    share: dict[str, int], engines: list[tuple[str, str]]
) -> None:
    running = [Running(f"m@{label}/{index}", "m", label, state) for index, (label, state) in enumerate(engines)]
    table = build(model("v1", "v2", weights=share), *running)
    size = dict.fromkeys(share, 0)
    before = 0
    for arm in table.models["m"].arms:
        size[arm.label] += arm.upto - before
        before = arm.upto
    assert before == BUCKETS
    assert size == share
    ready = {one.id for found in table.models["m"].versions.values() for one in found.replicas if one.state == "ready"}
    assert ready == {one.id for one in running if one.state == "ready"}
    assert same_but_generation(table, build(model("v1", "v2", weights=share), *reversed(running), generation=9))


def test_keys_are_in_the_table_without_their_names() -> None:
    terms = KeyTerms(name="alice", models=("m",), expires_at=9.0, requests_per_minute=3, budget_period="day")
    key = ApiKey(id="key_1", digest=b"d" * 32, last4="abcd", slot=5, terms=terms, created_at=1.0, created_by="me")
    table = build_table({}, [], traits={}, limits=Limits(), generation=1, keys=[key], keys_required=True)
    (found,) = table.keys
    assert (found.id, found.digest, found.slot, found.models, found.expires_at) == ("key_1", b"d" * 32, 5, ("m",), 9.0)
    assert (found.requests_per_minute, found.budget_period, found.scopes) == (3, "day", ("inference",))
    assert table.keys_required
    assert "alice" not in repr(table)
    assert not build(model("v1")).keys_required


def test_generations_never_go_back(tmp_path: Path) -> None:
    first = Generations(tmp_path / "generation")
    assert [first.next(), first.next()] == [1, 2]
    second = Generations(tmp_path / "generation")
    assert second.next() == 3
    second.seen(10)
    assert second.next() == 11
    assert Generations(tmp_path / "generation").last == 11


def test_segments_and_shadows_are_published() -> None:
    when = (Condition("header", "x-beta", ("1",)), Condition("user", "", ("a", "b")))
    segment = RouteSegment("beta", when, {"v2": BUCKETS}, allocate({"v2": BUCKETS}))
    route = Route(
        "m",
        1,
        {"v1": BUCKETS},
        allocate({"v1": BUCKETS}),
        "ab",
        segments=(segment,),
        shadows=(ShadowArm("v2", 100, 3, 60.0), ShadowArm("gone", 100, 3, 60.0)),
    )
    found = build(model("v1", "v2", route=route)).models["m"]
    (made,) = found.segments
    assert made == Segment(
        name="beta",
        when=(Match("header", "x-beta", ("1",)), Match("user", "", ("a", "b"))),
        arms=(Arm(BUCKETS, "v2"),),
    )
    assert found.shadows == (Shadow(label="v2", sample=100, inflight_max=3, engine_seconds_per_hour=60.0),)
