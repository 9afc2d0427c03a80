"""Segments of a route and the choice of replicas, in a real worker against fake engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engines.fixtures import FakeEngine
from router_harness import RouterProcess, model, standstill, until, version

from registry.models import BUCKETS
from serving.router.split import allocate, arms_of, bucket_of, sticky_hash
from serving.router.table import Match, Segment

Start = Callable[..., FakeEngine]
LONG = "You are a careful assistant who answers in one sentence. " * 40


def segment(name: str, weights: dict[str, int], *when: Match) -> Segment:
    return Segment(name=name, when=when, arms=arms_of(allocate(weights)))


BETA = segment("beta", {"v2": BUCKETS}, Match("header", "x-beta", ("1", "on")))
GOLD = segment("gold", {"v2": BUCKETS}, Match("metadata", "tier", ("gold",)), Match("user", "", ("ann", "bob")))


def answered_by(router: RouterProcess, **body: Any) -> str:
    response = router.chat(**body)
    assert response.status_code == 200
    return response.headers["x-modelyard-version"].rpartition("@")[2]


def test_a_segment_sends_its_requests_to_its_own_arms(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine()
    versions = [version("v1", [one.port]), version("v2", [two.port])]
    router.publish(model(versions, {"v1": BUCKETS, "v2": 0}, segments=(BETA, GOLD)))
    assert answered_by(router) == "v1"
    assert answered_by(router, headers={"x-beta": "1"}) == "v2"
    assert answered_by(router, headers={"X-Beta": "on"}) == "v2"
    assert answered_by(router, headers={"x-beta": "no"}) == "v1"
    assert answered_by(router, user="ann", metadata={"tier": "gold"}) == "v2"
    assert answered_by(router, user="ann", metadata={"tier": "tin"}) == "v1"
    assert answered_by(router, user="eve", metadata={"tier": "gold"}) == "v1"
    assert answered_by(router, model="assistant@v1", headers={"x-beta": "1"}) == "v1", "a pinned version is pinned"
    records = router.records(8)
    assert [record.segment for record in records] == ["", "beta", "beta", "", "gold", "", "", ""]
    assert [record.assigned for record in records] == ["v1", "v2", "v2", "v1", "v2", "v1", "v1", "v1"]


def test_a_flag_is_flipped_by_a_new_table(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine()
    versions = [version("v1", [one.port]), version("v2", [two.port])]
    for segments, wanted in (((), "v1"), ((BETA,), "v2"), ((), "v1")):
        router.publish(model(versions, {"v1": BUCKETS, "v2": 0}, segments=segments))
        assert answered_by(router, headers={"x-beta": "1"}) == wanted


def test_a_sticky_key_keeps_its_bucket_within_a_segment(router: RouterProcess, fake_engine: Start) -> None:
    one, two = fake_engine(), fake_engine()
    half = segment("half", {"v1": 5000, "v2": 5000}, Match("header", "x-beta", ("1",)))
    versions = [version("v1", [one.port]), version("v2", [two.port])]
    router.publish(model(versions, {"v1": 9000, "v2": 1000}, segments=(half,)))
    for number in range(24):
        bucket = bucket_of(sticky_hash(f"s{number}".encode(), b"5a17"))
        outside = answered_by(router, headers={"x-session-id": f"s{number}"})
        inside = answered_by(router, headers={"x-session-id": f"s{number}", "x-beta": "1"})
        assert outside == ("v2" if bucket >= 9000 else "v1")
        assert inside == ("v2" if bucket >= 5000 else "v1")
    records = router.records(48)
    assert {record.bucket for record in records if not record.segment} == {
        record.bucket for record in records if record.segment
    }


def test_a_segment_whose_arm_is_down_falls_back(router: RouterProcess, fake_engine: Start) -> None:
    one = fake_engine()
    router.publish(
        model([version("v1", [one.port]), version("v2", [])], {"v1": BUCKETS}, segments=(BETA,), fallback=("v1",))
    )
    assert answered_by(router, headers={"x-beta": "1"}) == "v1"
    (record,) = router.records(1)
    assert (record.segment, record.assigned, record.version) == ("beta", "v2", "v1")


def conversation(number: int, turns: int) -> list[dict[str, str]]:
    """The messages of a conversation's turn: all turns of one begin alike, and all conversations with the same text."""
    found = [{"role": "system", "content": LONG}]
    for turn in range(turns):
        found += [{"role": "user", "content": f"{number} {turn} " * 90}, {"role": "assistant", "content": "t0 " * 30}]
    return found[:-1]


def replicas_of(router: RouterProcess, count: int) -> list[str]:
    return [record.replica for record in router.records(count)]


def test_a_conversation_stays_with_its_replica(router: RouterProcess, fake_engine: Start) -> None:
    engines = [fake_engine() for _ in range(3)]
    router.publish(model([version("v1", [engine.port for engine in engines])], {"v1": BUCKETS}))
    for turn in range(1, 5):
        for number in range(6):
            assert router.chat(messages=conversation(number, turn)).status_code == 200
    found = replicas_of(router, 24)
    for number in range(6):
        assert len(set(found[number::6])) == 1, "a conversation left its replica"


def test_affinity_yields_to_load(router: RouterProcess, fake_engine: Start) -> None:
    """Twelve requests with one beginning at once: no replica is given more than 1.25 times the mean, and one."""
    engines = [fake_engine() for _ in range(2)]
    router.publish(model([version("v1", [engine.port for engine in engines])], {"v1": BUCKETS}))
    with ThreadPoolExecutor(12) as pool:
        with standstill(*engines):
            futures = [pool.submit(router.chat, messages=conversation(1, 1)) for _ in range(12)]
            until(lambda: sum(router.control.stats().inflight.values()) == 12)
        answers = [future.result() for future in futures]
    assert {answer.status_code for answer in answers} == {200}
    counts = Counter(replicas_of(router, 12))
    assert max(counts.values()) <= 8


def test_without_affinity_replicas_share_by_load_alone(router: RouterProcess, fake_engine: Start) -> None:
    engines = [fake_engine() for _ in range(2)]
    router.publish(model([version("v1", [engine.port for engine in engines])], {"v1": BUCKETS}, affinity=False))
    for _ in range(40):
        router.chat(messages=conversation(1, 1))
    assert len(set(replicas_of(router, 40))) == 2
