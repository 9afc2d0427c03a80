"""The split: shares, stickiness, and that a ramp never moves a key back."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.models import BUCKETS, Allocation
from serving.router.split import allocate, arm_of, arms_of, bucket_of, sticky_hash

SALT = b"5a17"
KEYS = [f"conversation-{number}".encode() for number in range(20_000)]


def owners(allocation: Allocation) -> list[str]:
    arms = arms_of(allocation)
    return [arm_of(arms, bucket) for bucket in range(BUCKETS)]


@st.composite
def weights(draw: st.DrawFn) -> dict[str, int]:
    labels = draw(st.lists(st.sampled_from(["v1", "v2", "v3", "v4", "v5"]), min_size=1, max_size=5, unique=True))
    cuts = sorted(draw(st.lists(st.integers(0, BUCKETS), min_size=len(labels) - 1, max_size=len(labels) - 1)))
    bounds = [0, *cuts, BUCKETS]
    return {label: bounds[i + 1] - bounds[i] for i, label in enumerate(labels)}


def test_90_to_10_over_20_000_keys_is_within_half_a_point() -> None:
    arms = arms_of(allocate({"v1": 9000, "v2": 1000}))
    share = sum(arm_of(arms, bucket_of(sticky_hash(key, SALT))) == "v2" for key in KEYS) / len(KEYS)
    assert abs(share - 0.10) <= 0.005


def test_ramping_10_25_50_moves_no_key_back() -> None:
    allocation = allocate({"v1": 9000, "v2": 1000})
    challenged: set[bytes] = set()
    for weight in (1000, 2500, 5000):
        allocation = allocate({"v1": BUCKETS - weight, "v2": weight}, allocation)
        arms = arms_of(allocation)
        now = {key for key in KEYS if arm_of(arms, bucket_of(sticky_hash(key, SALT))) == "v2"}
        assert challenged <= now
        challenged = now


def test_a_key_has_the_same_bucket_in_another_process() -> None:
    code = "from serving.router.split import *; print([bucket_of(sticky_hash(b'k%d' % n, b'5a17')) for n in range(50)])"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(again) == [bucket_of(sticky_hash(b"k%d" % n, SALT)) for n in range(50)]


@given(weights(), weights(), weights())
def test_every_allocation_is_exact_and_moves_as_little_as_can_be(a: dict, b: dict, c: dict) -> None:
    allocation: Allocation = ()
    before: list[str] = [""] * BUCKETS
    for wanted in (a, b, c):
        allocation = allocate(wanted, allocation)
        after = owners(allocation)
        assert {label: after.count(label) for label in wanted} == wanted
        assert [span.start for span in allocation] == [0, *[span.stop for span in allocation[:-1]]]
        if before[0]:
            moved = sum(x != y for x, y in zip(before, after, strict=True))
            grown = sum(max(0, weight - before.count(label)) for label, weight in wanted.items())
            assert moved == grown
        before = after


@given(st.lists(st.integers(0, BUCKETS), min_size=1, max_size=6))
def test_between_two_versions_only_the_weights_matter(ramp: list[int]) -> None:
    allocation: Allocation = ()
    for weight in ramp:
        allocation = allocate({"v1": BUCKETS - weight, "v2": weight}, allocation)
    assert owners(allocation) == owners(allocate({"v1": BUCKETS - ramp[-1], "v2": ramp[-1]}))


@pytest.mark.parametrize("bad", [{"v1": 9000}, {"v1": 10_001, "v2": -1}, {}, {"v 1": 10_000}])
def test_weights_that_make_no_route_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"weight|name"):
        allocate(bad)


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=64))
def test_sticky_hashes_are_positive_and_fit_63_bits(key: bytes, salt: bytes) -> None:
    assert 0 < sticky_hash(key, salt) < 2**63
