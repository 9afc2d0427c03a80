"""What the soak's client takes for a right answer, and what for a wrong one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import soak_account as soak
from soak_client import Ask, Verdict, expected, judge


def answered(body: bytes, *, words: int = 3, stream: bool = True, status: int = 200, complete: bool = True) -> Ask:
    ask = Ask("soak-1", words, stream, began=100.0, ended=101.0, status=status, head_id="soak-1", complete=complete)
    ask.body += body
    return ask


def stream(words: int, *, finish: str | None = "stop", done: bool = True, error: bool = False) -> bytes:
    text = [
        {"choices": [{"delta": {"content": f"{' ' if n else ''}t{n}"}, "finish_reason": None}]} for n in range(words)
    ]
    events: list[object] = [*text]
    events += [{"choices": [{"delta": {}, "finish_reason": finish}]}] if finish else []
    events += [{"error": {"message": "cut"}}] if error else []
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


def whole(words: int, used: int) -> bytes:
    choice = {"message": {"content": expected(words)}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": used}}).encode()


@pytest.mark.parametrize(
    ("ask", "verdict"),
    [
        (answered(stream(3)), "right"),
        (answered(stream(2)), "wrong"),
        (answered(stream(4)), "wrong"),
        (answered(stream(3, finish=None)), "wrong"),
        (answered(stream(3, done=False)), "wrong"),
        (answered(stream(2, finish=None, error=True, done=False)), "told"),
        (answered(stream(3) + b"data: {oops\n\n"), "wrong"),
        (answered(stream(2), complete=False), "broken"),
        (answered(whole(3, 3), stream=False), "right"),
        (answered(whole(3, 4), stream=False), "wrong"),
        (answered(whole(2, 2), stream=False), "wrong"),
        (answered(b"", stream=False), "wrong"),
        (answered(b'{"error": {"message": "busy"}}', status=503), "told"),
        (answered(b'{"error": {"message": "who are you"}}', status=401), "wrong"),
        (answered(b"<html>", status=502), "wrong"),
    ],
)
def test_an_answer_is_right_to_the_last_word_or_it_is_not(ask: Ask, verdict: Verdict) -> None:
    assert judge(ask)[0] == verdict


def test_another_requests_answer_is_wrong() -> None:
    ask = answered(stream(3))
    ask.head_id = "soak-2"
    assert judge(ask)[0] == "wrong"


def test_only_a_killed_worker_excuses_a_broken_connection() -> None:
    ask = answered(b"", complete=False)
    assert soak.excused(ask, [100.5])
    assert soak.excused(ask, [97.0])
    assert not soak.excused(ask, [50.0, 200.0])


def test_records_are_held_against_what_clients_saw() -> None:
    tally = soak.Tally(asks=[answered(stream(3))])
    good = soak.Account(records=1, by_id={"soak-1": (1, "completed", 3, "engine")})
    assert soak.check_records(tally, good) == []
    for by_id, problem in (
        ({}, "no record"),
        ({"soak-1": (2, "completed", 3, "engine")}, "2 records"),
        ({"soak-1": (1, "completed", 2, "engine")}, "2 tokens"),
        ({"soak-1": (1, "completed", 3, "counted")}, "counted"),
        ({"soak-1": (1, "completed", 3, "engine"), "soak-9": (1, "completed", 1, "engine")}, "never asked"),
    ):
        (found,) = soak.check_records(tally, soak.Account(by_id=by_id))
        assert problem in found
    tally.kills.append(101.05)
    assert soak.check_records(tally, soak.Account()) == []


def test_growth_is_told_from_warming_up() -> None:
    assert soak.growth_mb([(n, 30.0 + min(n, 20)) for n in range(100)]) == 0.0
    assert soak.growth_mb([(n, 30.0 + n / 10) for n in range(100)]) == pytest.approx(4.0)
    assert soak.growth_mb([]) == 0.0


def test_metrics_are_summed_over_their_series() -> None:
    text = 'a_total{x="1"} 2.0\na_total{x="2"} 3.0\na_total_more 9\nb 1\n'
    assert soak.metric(text, "a_total") == 5.0
