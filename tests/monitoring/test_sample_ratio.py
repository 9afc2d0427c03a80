"""The check on a route's split: exact under a sound split at every look, and quick where it is broken."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from monitoring_records import record

from monitoring.sample_ratio import ModelRoute, Round, Routing, Splits
from serving.router.split import allocate, arm_of, arms_of, bucket_of, sticky_hash

EVEN = {"v1": 0.5, "v2": 0.5}
SKEWED = {"v1": 0.9, "v2": 0.1}


def smallest_p(shares: dict[str, float], true: dict[str, float], units: int, rng: random.Random) -> tuple[float, int]:
    """The smallest p of one experiment looked at after every unit, and the units until p < 0.001 (or all)."""
    one = Round(shares)
    arms = rng.choices(list(true), list(true.values()), k=units)
    for n, arm in enumerate(arms):
        one.add(n + 1, arm)
        if one.p < 0.001:
            return one.p, n + 1
    return one.p, units


def test_the_expected_ratio_is_exactly_one_from_the_first_unit_on() -> None:
    """Every sequence of a few units, weighted by its probability: the mean of e is 1, so Ville's inequality holds."""
    for shares in (EVEN, SKEWED, {"a": 0.2, "b": 0.3, "c": 0.5}):
        for n in range(1, 7):
            mean = 0.0
            for arms in product(shares, repeat=n):
                one = Round(shares)
                for unit, arm in enumerate(arms):
                    one.add(unit + 1, arm)
                mean += math.prod(shares[arm] for arm in arms) * one.e
            assert mean == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("shares", [EVEN, SKEWED], ids=["even", "skewed"])
def test_a_sound_split_looked_at_after_every_unit_alarms_less_than_alpha(shares: dict[str, float]) -> None:
    rng = random.Random(1)
    runs, alpha = 2000, 0.05
    alarms = sum(smallest_p(shares, shares, 250, rng)[0] <= alpha for _ in range(runs))
    assert alarms <= runs * alpha + 3 * math.sqrt(runs * alpha * (1 - alpha))


@pytest.mark.parametrize(
    ("shares", "true", "within"),
    [
        (EVEN, {"v1": 0.7, "v2": 0.3}, 300),
        (EVEN, {"v1": 0.53, "v2": 0.47}, 10_000),
        (SKEWED, {"v1": 0.94, "v2": 0.06}, 2_500),
    ],
)
def test_a_broken_split_is_found(shares: dict[str, float], true: dict[str, float], within: int) -> None:
    found = [smallest_p(shares, true, within, random.Random(seed)) for seed in range(20)]
    assert sum(p < 0.001 for p, _ in found) >= 18


def test_the_routers_own_split_is_sound() -> None:
    arms = arms_of(allocate({"v1": 9000, "v2": 1000}, allocate({"v1": 5000, "v2": 5000})))
    one = Round(SKEWED)
    for n in range(20_000):
        unit = sticky_hash(f"session-{n}".encode(), b"salt")
        one.add(unit, arm_of(arms, bucket_of(unit)))
    assert one.p > 0.01
    assert sum(one.units.values()) == 20_000


def routed(revision: int = 1, generation: int = 5, shares: dict[str, float] | None = None) -> Routing:
    return Routing(generation, {"assistant": ModelRoute(revision, shares or EVEN)})


def test_only_assignments_of_the_present_route_are_counted_each_unit_once() -> None:
    now = routed()
    splits = Splits(lambda: now)
    told = {"generation": 5, "bucket": 3}
    splits.count(
        [
            record(**told, sticky=1, assigned="v1"),
            record(**told, sticky=1, assigned="v1"),
            record(**told, sticky=2, assigned="v1", version="v2", outcome="failed"),  # by the arm, whoever answered
            record(**told, sticky=3, assigned="v2", outcome="cancelled"),
            record(**told, sticky=0, assigned="v2"),
            record(**told, sticky=4, assigned="v2", pinned=True),
            record(**told, sticky=5, assigned="v2", segment="beta"),
            record(**told, sticky=6, assigned="v2", shadow_of="r"),
            record(**told, sticky=7, assigned="", outcome="rejected"),
            record(generation=4, sticky=8, assigned="v2"),
            record(**told, sticky=9, assigned="v2", model="other"),
        ]
    )
    (split,) = splits.state()
    assert split.units == {"v1": 2, "v2": 1}
    assert split.p > 0.9


def test_a_change_of_the_route_begins_anew() -> None:
    now = routed()
    splits = Splits(lambda: now)
    splits.count([record(generation=5, sticky=n, assigned="v1") for n in range(1, 41)])
    assert splits.state()[0].p < 0.001
    now = routed(revision=2, generation=6, shares=SKEWED)
    splits.count([record(generation=5, sticky=90, assigned="v1"), record(generation=6, sticky=91, assigned="v1")])
    assert (splits.state()[0].p, splits.state()[0].units) == (1.0, {"v1": 1, "v2": 0})
    now = Routing(7, {})
    assert splits.state() == []


def test_an_arm_without_buckets_can_get_nobody() -> None:
    splits = Splits(lambda: routed(shares={"v1": 1.0}))
    splits.count([record(generation=5, sticky=1, assigned="v1"), record(generation=5, sticky=2, assigned="v2")])
    assert (splits.state()[0].p, splits.state()[0].units) == (0.0, {"v1": 1, "v2": 1})


def test_memory_is_bounded_and_a_mismatch_is_still_told_in_the_next_round() -> None:
    splits = Splits(routed, units_max=100)
    splits.count([record(generation=5, sticky=n, assigned="v1") for n in range(1, 121)])
    split = splits.state()[0]
    assert split.units == {"v1": 20, "v2": 0}
    assert split.p < 1e-6
    arms = ("v1", "v2")
    splits.count([record(generation=5, sticky=n, assigned=arms[n % 2]) for n in range(200, 400)])
    assert splits.state()[0].p > 0.001
