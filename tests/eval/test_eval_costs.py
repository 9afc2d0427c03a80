"""What a run cost: its part of the yard's books, per basis; shares of busy time; cost per right answer."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import assessment, costs, performance
from eval.costs import Books
from eval.results import Run, RunInfo, RunKey, Sample, Spent, Subject
from eval.suite import Sampling


def statement(v1: tuple[int, float], v2: tuple[int, float], idle: float) -> dict[str, Any]:
    """(requests, busy seconds) of two versions at 3,600 EUR per hour: a second costs 1 EUR."""
    lines = [
        {"kind": "version", "version": f"m@{label}", "outcome": outcome, "nano": round(seconds * 1e9 / 2)}
        for label, (_, seconds) in (("v1", v1), ("v2", v2))
        for outcome in ("completed", "failed")
    ]
    rest = [{"kind": "idle", "version": "", "outcome": "", "nano": round(idle * 1e9)}]
    bill = {"device": "cpu", "method": "inflight", "currency": "EUR"}
    return {
        "bills": [
            bill | {"basis": "busy", "lines": lines},
            bill | {"basis": "allocated", "lines": lines + rest},
        ],
        "usage": [
            {"version": f"m@{label}", "requests": {"completed": count - 1, "failed": 1}}
            for label, (count, _) in (("v1", v1), ("v2", v2))
        ],
    }


def test_a_run_costs_its_part_of_what_its_version_did_meanwhile() -> None:
    before = Books.parse(statement((10, 100.0), (5, 50.0), 7.0))
    after = Books.parse(statement((60, 140.0), (15, 60.0), 27.0))
    assert before is not None
    assert after is not None
    busy, allocated = costs.of_sitting(before, after, "m@v1", requests=25, answered=20)
    assert (busy.basis, busy.currency, busy.answered) == ("busy", "EUR", 20)
    assert busy.amount == pytest.approx(20.0), "half of 40 s: the version had 50 requests"
    assert "the run had 50% of the requests" in busy.method
    assert allocated.amount == pytest.approx(20.0 + 0.5 * 20.0 * 40 / 50), "and of 20 s idle, by use of the device"
    (whole, _) = costs.of_sitting(before, after, "m@v1", requests=50, answered=50)
    assert (whole.amount, ";" in whole.method) == (pytest.approx(40.0), False)
    assert costs.of_sitting(before, after, "m@v9", requests=5, answered=5) == []
    assert costs.of_sitting(before, before, "m@v1", requests=5, answered=5) == []
    assert Books.parse(None) is None


def test_methods_that_divide_an_hour_anew_are_left_out() -> None:
    said = statement((60, 140.0), (15, 60.0), 27.0)
    by_tokens = [bill | {"method": "tokens"} for bill in said["bills"]]
    assert Books.parse(said | {"bills": said["bills"] + by_tokens}) == Books.parse(said)


def test_sittings_add_up_by_basis() -> None:
    def spent(amount: float, method: str = "books") -> Spent:
        return Spent(basis="busy", method=method, currency="EUR", amount=amount, answered=10)

    (total,) = costs.added([spent(1.0)], [spent(2.0, "books; the run had 50% of the requests")])
    assert (total.amount, total.answered, total.per_1k_requests) == (3.0, 20, 150.0)
    assert (
        len(costs.added([spent(1.0)], [Spent(basis="energy", method="m", currency="EUR", amount=1, answered=1)])) == 2
    )


def test_the_books_are_waited_for_until_they_have_the_last_requests() -> None:
    counts = itertools.chain([3, 6, 9], itertools.repeat(10))

    def look() -> Books | None:
        return Books.parse(statement((next(counts) + 1, 1.0), (1, 1.0), 0.0))

    before = Books.parse(statement((1, 1.0), (1, 1.0), 0.0))
    assert before is not None
    clock = itertools.count()
    found = costs.read_after(look, "m@v1", before, 9, clock=lambda: 0.1 * next(clock), sleep=lambda _: None)
    assert found is not None
    assert found.requests["m@v1"] == 10
    late = costs.read_after(look, "m@v1", before, 99, clock=lambda: next(clock), sleep=lambda _: None)
    assert late is not None, "what is there is taken when time is up"


Span = tuple[float, float]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)).map(lambda one: (one[0], one[0] + one[1])), max_size=30))
def test_shares_of_busy_time_sum_to_it(spans: list[Span]) -> None:
    shares = performance.busy_shares(spans)
    assert sum(shares) == pytest.approx(performance.busy_seconds(spans), abs=1e-6)
    for share, (start, stop) in zip(shares, spans, strict=True):
        assert -1e-9 <= share <= stop - start + 1e-9


def test_requests_at_once_share_the_time() -> None:
    assert performance.busy_shares([(0.0, 4.0), (2.0, 4.0), (10.0, 11.0)]) == [3.0, 1.0, 1.0]


def sample(case: str, score: float | None, **fields: Any) -> Sample:
    return Sample(case=case, repeat=0, scorer="exact", prompt="p", prompt_digest="d", target="", target_digest="t",
                  score=score, **fields)  # fmt: skip


def test_cost_per_correct_answer_is_of_what_was_paid_for(tmp_path: Path) -> None:
    """Ten answers at 2 EUR, four of them right, two half right: 0.4 EUR each. What the cache gave is not counted."""
    run = Run(tmp_path)
    key = RunKey(suite_digest="s", identity="i", sampling=Sampling(), seed=0, repeats=1)
    spent = [Spent(basis="busy", method="books", currency="EUR", amount=2.0, answered=10)]
    run.write_info(
        RunInfo(key=key, suite="s", suite_version=1, suite_source="", planned=12, started_at=0.0, costs=spent,
                subject=Subject(ref="m", model="m", url="u"))
    )  # fmt: skip
    scores = [1.0] * 4 + [0.5] * 2 + [0.0] * 4
    samples = [sample(f"c{i}", score) for i, score in enumerate(scores)]
    cached = [sample("k", 1.0, cached=True), sample("f", None, error="400")]
    (cost,) = assessment.run_costs(run, [*samples, *cached])
    assert (cost.total, cost.per_1k_requests, cost.per_correct) == (2.0, 200.0, pytest.approx(0.4))
    wrong = [sample(f"c{i}", 0.0) for i in range(10)]
    assert assessment.run_costs(run, wrong)[0].per_correct is None
    assert costs.asked([*samples, *cached], 0.0) == (10, 10)
    assert costs.asked([sample("a", 1.0, turns='["x","y"]', attempts=2, started_at=5.0)], 1.0) == (4, 1)


def test_ratios_are_paired_and_leave_out_the_cache() -> None:
    rng = random.Random(1)

    def run(factor: float, cached: int) -> dict[tuple[str, int], Sample]:
        rows = [
            sample(f"c{i}", 1.0, ttft_s=0.1 * factor, latency_s=factor * (0.5 + 0.5 * rng.random()), started_at=2.0 * i,
                   completion_tokens=10, cached=i < cached)
            for i in range(30)
        ]  # fmt: skip
        return {row.id: row for row in rows}

    import numpy as np

    found = {one.name: one for one in assessment.ratios(run(1, 0), run(2, 10), 0.05, np.random.default_rng(1))}
    assert {one.n for one in found.values()} == {20}
    assert found["time to first token"].ratio == pytest.approx(2)
    assert found["output tokens"].ratio == 1
    assert 1.5 < found["latency"].interval.low < 2 < found["latency"].interval.high < 2.6
    assert found["engine time"].ratio == pytest.approx(found["latency"].ratio), (
        "one after another: all of it is its own"
    )
    assert assessment.ratios(run(1, 0), run(2, 28), 0.05, np.random.default_rng(1)) == []
