"""The verdict on a window: its error rates by simulation, its steps one by one, and the samples it blames."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monitoring.features import FEATURES
from monitoring.live_drift import check
from monitoring.windows import Drift, FeatureDrift, Policy, Row, needed_for, thinned, worst


def rows(
    rng: np.random.Generator,
    n: int,
    *,
    longer: float = 0.0,
    refusals: float = 0.03,
    liked: float = 0.8,
    name: str = "c",
) -> list[Row]:
    """Traffic with skewed lengths (`longer` in standard deviations of the log), refusals and feedback."""
    lengths = np.round(rng.lognormal(4 + longer * 0.8, 0.8, size=n))
    turns = rng.integers(1, 5, size=n)
    refused = rng.random(n) < refusals
    reasons = rng.choice(["stop", "length", "tool_calls"], p=[0.85, 0.12, 0.03], size=n)
    scores = np.where(rng.random(n) < liked, 1.0, -1.0)
    return [
        Row(
            id=f"{name}{index}",
            version="v1",
            at=1000.0 + index,
            features={
                "input_characters": float(lengths[index]),
                "input_turns": float(turns[index]),
                "output_refusal": "refused" if refused[index] else "answered",
                "output_finish": str(reasons[index]),
            },
            feedback=float(scores[index]),
        )
        for index in range(n)
    ]


def look(one: list[Row], two: list[Row], rng: np.random.Generator, **policy: float) -> Drift:
    return check("m", "v1", one, two, Policy(**{"resamples": 199, **policy}), rng, at=5.0)  # type: ignore[arg-type]


def by_name(found: Drift) -> dict[str, FeatureDrift]:
    return {one.feature: one for one in found.features}


def test_windows_without_drift_are_rarely_called_drifted() -> None:
    """500 windows of five features: something is significant in at most 5% (q), and almost nothing is large enough."""
    rng = np.random.default_rng(1)
    runs, significant, called = 500, 0, 0
    for _ in range(runs):
        found = look(rows(rng, 120), rows(rng, 120), rng, samples_min=100, resamples=99)
        significant += any(one.q is not None and one.q <= 0.05 for one in found.features)
        called += found.verdict in ("watch", "act")
    assert significant / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert called / runs <= 0.03


@pytest.mark.parametrize(("n", "power"), [(200, 0.85), (600, 1.0)])
def test_a_shift_of_a_standard_deviation_is_act(n: int, power: float) -> None:
    """PSI 1: act at every size; half of it (PSI .25) is at least watch."""
    rng = np.random.default_rng(2)
    runs = 4000 // n
    large = [look(rows(rng, n), rows(rng, n, longer=1.0), rng) for _ in range(runs)]
    assert all(found.verdict == "act" and found.kinds["data"] == "act" for found in large)
    assert all(found.kinds["output"] in ("none", "inconclusive") for found in large)
    half = [look(rows(rng, n), rows(rng, n, longer=0.5), rng) for _ in range(runs)]
    assert sum(found.kinds["data"] in ("watch", "act") for found in half) / runs >= power


def test_many_samples_make_a_trifle_significant_and_still_none() -> None:
    rng = np.random.default_rng(3)
    found = by_name(look(rows(rng, 2000), rows(rng, 2000, longer=0.2), rng))["input_characters"]
    assert found.q is not None
    assert found.q <= 0.05
    assert found.verdict == "none"
    assert found.effect is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.04 <= found.high  # the true PSI
    assert found.effect == pytest.approx(0.04, abs=0.03)


def test_refusals_are_output_drift() -> None:
    rng = np.random.default_rng(4)
    found = look(rows(rng, 400, name="r"), rows(rng, 400, refusals=0.25), rng)
    assert (found.verdict, found.kinds["output"], found.kinds["data"]) == ("act", "act", "none")
    feature = by_name(found)["output_refusal"]
    assert found.features[0] is feature
    assert feature.moves[0].current - feature.moves[0].reference == pytest.approx(
        0.22 if feature.moves[0].name == "refused" else -0.22, abs=0.06
    )
    assert len(found.samples) == 5
    assert all(one.why == ["output_refusal refused"] and one.id.startswith("c") for one in found.samples)
    assert found.samples[0].score == pytest.approx(math.log(0.25 / 0.03), abs=0.6)


def test_feedback_that_fell_is_concept_drift_and_better_feedback_is_no_alarm() -> None:
    rng = np.random.default_rng(5)
    worse = look(rows(rng, 400), rows(rng, 400, liked=0.45), rng)
    assert worse.kinds == {"concept": "act", "data": "none", "output": "none"}
    statistics = by_name(worse)["feedback"].statistics
    assert statistics["mean_difference_low"] < -0.7 < statistics["mean_difference_high"] < 0
    better = look(rows(rng, 400, liked=0.45), rows(rng, 400), rng)
    assert better.verdict == better.kinds["concept"] == "watch"


def test_too_few_are_inconclusive_and_say_how_many_more() -> None:
    rng = np.random.default_rng(6)
    found = look(rows(rng, 300), rows(rng, 150, longer=2.0), rng)
    assert (found.verdict, found.needed) == ("inconclusive", 50)
    assert by_name(found)["feedback"].verdict != "inconclusive"  # it needs fewer
    nothing = look(rows(rng, 300), [], rng)
    assert (nothing.verdict, nothing.needed, nothing.features) == ("inconclusive", 200, [])
    small = look(rows(rng, 60), rows(rng, 60), rng, samples_min=50)
    lengths = by_name(small)["input_characters"]
    assert lengths.verdict == "inconclusive"
    more, more_reference = needed_for(0.1, 10, 60, 60)
    assert (lengths.needed, lengths.needed_reference) == (more, more_reference)
    assert more == more_reference == 80


def test_as_many_more_as_were_asked_for_suffice() -> None:
    for reference, current in ((60, 60), (60, 1000), (400, 30), (130, 5)):
        more, more_reference = needed_for(0.1, 10, reference, current)
        noise = 1.645 * math.sqrt(18) * (1 / (reference + more_reference) + 1 / (current + more))
        assert noise <= 0.1
        assert noise > 0.08 or (more, more_reference) == (0, 0)


def test_turns_of_one_conversation_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(7)

    def conversations(shift: float) -> list[Row]:
        found = []
        for index in range(10):
            base = rng.normal(shift, 1.0)
            for _ in range(30):
                features: dict[str, float | str] = {"input_characters": base + rng.normal(0, 0.2)}
                found.append(Row(id="x", version="v1", unit=f"{shift}-{index}", features=features))
        return found

    verdicts = [look(conversations(0.0), conversations(0.0), rng).verdict for _ in range(20)]
    assert verdicts.count("act") + verdicts.count("watch") <= 3


def test_embeddings_say_that_a_topic_is_new() -> None:
    rng = np.random.default_rng(8)

    def topical(n: int, new: float, name: str) -> list[Row]:
        vectors = rng.normal(size=(n, 32)) / 6
        fresh = rng.random(n) < new
        vectors[fresh, 3] += 1.0
        return [
            Row(
                id=f"{name}{'new' if fresh[i] else ''}{i}",
                version="v1",
                vectors={"input_embedding": vectors[i].tolist()},
            )
            for i in range(n)
        ]

    found = look(topical(120, 0.0, "r"), topical(120, 0.6, "c"), rng, samples_min=100, vectors_max=120)
    assert found.kinds == {"data": "act"}
    (feature,) = found.features
    assert feature.statistics["auc"] > 0.7
    assert feature.statistics["auc_p"] == pytest.approx(0.01)
    assert all("new" in one.id for one in found.samples)
    same = look(topical(120, 0.3, "r"), topical(120, 0.3, "c"), rng, samples_min=100, vectors_max=120)
    assert same.verdict == "none"


def test_the_same_seed_gives_the_same_figures() -> None:
    rng = np.random.default_rng(9)
    one, two = rows(rng, 200), rows(rng, 200, longer=0.3)
    first, again = (look(one, two, np.random.default_rng(1)) for _ in range(2))
    assert first == again
    assert {feature.feature for feature in first.features} <= set(FEATURES)


def test_parts_and_severity() -> None:
    every = [Row(id=str(index), version="v1") for index in range(50)]
    some = thinned(every, 10, seed=1)
    assert len(some) == 10
    assert [int(row.id) for row in some] == sorted(int(row.id) for row in some)
    assert thinned(every, 10, seed=1) == some != thinned(every, 10, seed=2)
    assert worst(["none", "watch", "inconclusive"]) == "watch"
    assert worst(["inconclusive", "none"]) == "none"
    assert worst([]) == "inconclusive"
