"""A model's gate: never above its bound, strict between classes but for ageing, nobody lost, whatever happens when."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_counters import shared

from serving.errors import ApiError
from serving.router.admission import (
    BATCH,
    HEAD,
    INFLIGHT,
    INTERACTIVE,
    PATIENCE_S,
    SHADOW,
    WAITING,
    Gate,
    Ticket,
    priority_of,
)
from serving.router.counters import Counters
from serving.router.table import Admission

START = 1000.0
Number = int


def gate(counters: Counters | None = None, **bounds: Any) -> Gate[Number]:
    config = Admission(**{"inflight_max": 1, "queue_max": 100, "queue_timeout_s": 10.0} | bounds)
    return Gate("assistant", (counters or Counters.private()).model("assistant"), config)


def gates(workers: int, **bounds: Any) -> list[Gate[Number]]:
    return [gate(counters, **bounds) for counters in shared(workers)]


def ticket(answer: Ticket[Number] | ApiError) -> Ticket[Number]:
    assert isinstance(answer, Ticket), answer
    return answer


class Yard:
    """Gates of several workers, and what their shell would do: call `next` after every change, and now and then."""

    def __init__(self, workers: int, **bounds: Any) -> None:
        self.gates = gates(workers, **bounds)
        self.bound = self.gates[0].config.inflight_max
        self.queue_max = self.gates[0].config.queue_max
        self.now = START
        self.numbers = itertools.count()
        self.waiting: list[Ticket[Number]] = []
        self.running: list[Ticket[Number]] = []
        self.order: list[Ticket[Number]] = []

    def look(self, at: Gate[Number]) -> None:
        while (admitted := at.next(self.now)) is not None:
            self.waiting.remove(admitted)
            assert all(not (one.gate is at and one.due < admitted.due) for one in self.waiting)
            same = [one for one in self.waiting if one.gate is at and one.priority == admitted.priority]
            assert all(one.arrived >= admitted.arrived for one in same)
            self.running.append(admitted)
            self.order.append(admitted)
        self.check()

    def enter(self, worker: int, priority: int) -> None:
        at = self.gates[worker % len(self.gates)]
        answer = at.enter(self.now, priority, next(self.numbers))
        if isinstance(answer, ApiError):
            assert (answer.status, answer.code) == (429, "queue_full")
            assert answer.retry_after_s >= 1
            assert len(self.waiting) == self.queue_max
        else:
            (self.running if answer.admitted else self.waiting).append(answer)
            self.order += [answer] if answer.admitted else []
        self.check()

    def leave(self, which: int) -> None:
        if self.running:
            gone = self.running.pop(which % len(self.running))
            gone.gate.leave(self.now)
            self.look(gone.gate)

    def cancel(self, which: int) -> None:
        if self.waiting:
            gone = self.waiting.pop(which % len(self.waiting))
            gone.gate.cancel(gone)
            self.look(gone.gate)

    def expire(self) -> None:
        for at in self.gates:
            over = at.expired(self.now)
            assert set(over) == {one for one in self.waiting if one.gate is at and one.arrived <= self.now - 10.0}
            self.waiting = [one for one in self.waiting if one not in over]
            self.look(at)

    def check(self) -> None:
        assert len(self.running) <= self.bound
        assert len(self.waiting) <= self.queue_max
        cells = self.gates[0]._cells
        assert cells.running(INFLIGHT) == len(self.running)
        assert cells.running(WAITING) == len(self.waiting)
        for at in self.gates:
            mine = [one.due for one in self.waiting if one.gate is at]
            assert at._cells.own(HEAD) == min(mine, default=0.0)
            assert at.waiting == len(mine)


STEPS = st.lists(
    st.tuples(st.sampled_from("eeelcxt"), st.integers(0, 7), st.integers(0, 2), st.floats(0.0, 3.0)), max_size=100
)


@settings(max_examples=300)
@given(STEPS, st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
def test_bounds_hold_order_holds_and_nobody_is_lost(
    steps: list[tuple[str, int, int, float]], workers: int, bound: int, queue_max: int
) -> None:
    yard = Yard(workers, inflight_max=bound, queue_max=queue_max)
    for what, which, priority, later_s in steps:
        match what:
            case "e":
                yard.enter(which, priority)
            case "l":
                yard.leave(which)
            case "c":
                yard.cancel(which)
            case "x":
                yard.expire()
            case "t":
                yard.now += later_s
    # Work is conserved: once every worker has looked, somebody waits only where there is no room.
    for _ in range(2 * len(yard.gates)):
        for at in yard.gates:
            yard.look(at)
        yard.now += PATIENCE_S
    assert not yard.waiting or len(yard.running) == bound
    while yard.running or yard.waiting:
        if yard.running:
            yard.leave(0)
        yard.now += PATIENCE_S
        for at in yard.gates:
            yard.look(at)
    assert all(at._cells.running(cell) == 0 for at in yard.gates for cell in (INFLIGHT, WAITING))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40), st.integers(1, 3))
def test_classes_are_served_strictly_and_each_in_the_order_of_arrival_over_all_workers(
    arrivals: list[tuple[int, int]], workers: int
) -> None:
    yard = Yard(workers)
    yard.enter(0, INTERACTIVE)
    for worker, priority in arrivals:
        yard.now += 0.001
        yard.enter(worker, priority)
    came = list(yard.waiting)
    yard.order.clear()
    while yard.running:
        yard.leave(0)
        for at in yard.gates:
            yard.look(at)
    assert yard.order == sorted(came, key=lambda one: (one.priority, one.arrived))


def test_a_batch_request_that_has_waited_for_half_the_timeout_goes_before_those_that_come_then() -> None:
    yard = Yard(1)
    yard.enter(0, INTERACTIVE)
    yard.enter(0, BATCH)
    yard.enter(0, SHADOW)
    batch, shadow = yard.waiting
    for _ in range(12):
        yard.now += 0.5
        yard.enter(0, INTERACTIVE)
        yard.leave(0)
    assert batch in yard.order
    assert yard.order[yard.order.index(batch) + 1].arrived > batch.due
    assert yard.order[yard.order.index(batch) - 1].arrived <= batch.due
    assert shadow in yard.waiting


def test_urgent_work_takes_the_place_of_what_came_last_in_a_full_queue() -> None:
    one = gate(queue_max=3)
    assert ticket(one.enter(START, BATCH, 0)).admitted
    waiting = [ticket(one.enter(START, priority, 1)) for priority in (BATCH, SHADOW, BATCH)]
    assert isinstance(one.enter(START, INTERACTIVE, 2), ApiError)
    assert one.displace(INTERACTIVE) is waiting[1]
    assert ticket(one.enter(START, INTERACTIVE, 2)).admitted is False
    assert one.displace(BATCH) is None
    assert one.displace(INTERACTIVE) is waiting[2]
    assert one.displace(INTERACTIVE) is waiting[0]
    assert one.displace(INTERACTIVE) is None
    assert one.lengths() == (1, 0, 0)


def test_without_a_queue_what_finds_no_room_is_refused() -> None:
    one = gate(queue_max=0)
    assert ticket(one.enter(START, INTERACTIVE, 0)).admitted
    assert isinstance(one.enter(START, INTERACTIVE, 1), ApiError)


def test_a_worker_that_hangs_holds_up_the_others_once_and_briefly() -> None:
    here, hangs = gates(2)
    first = ticket(here.enter(START, INTERACTIVE, 0))
    ticket(hangs.enter(START + 0.1, INTERACTIVE, 1))
    mine = [ticket(here.enter(START + 0.2 + n / 100, INTERACTIVE, 2)) for n in range(3)]
    now = START + 1.0
    first.gate.leave(now)
    assert here.next(now) is None  # left to the other one
    assert here.next(now + 0.9 * PATIENCE_S) is None
    assert here.next(now + 1.1 * PATIENCE_S) is mine[0]
    here.leave(now + 2.0)
    assert here.next(now + 2.0) is mine[1]  # it still hangs: not again
    hangs.cancel(next(iter(hangs._queues[INTERACTIVE])))
    ticket(hangs.enter(START + 0.205, INTERACTIVE, 1))
    here.leave(now + 3.0)
    assert here.next(now + 3.0) is None  # it does not hang any more
    assert hangs.next(now + 3.0) is not None


def test_what_a_dead_worker_held_and_left_waiting_does_not_count() -> None:
    alive, dead = shared(2)
    here, gone = gate(alive), gate(dead)
    assert ticket(gone.enter(START, INTERACTIVE, 0)).admitted
    assert not ticket(gone.enter(START, INTERACTIVE, 1)).admitted
    assert not ticket(here.enter(START, INTERACTIVE, 2)).admitted
    alive._is_held = lambda column: False
    alive.refresh()
    assert here.next(START) is not None


def test_a_bound_that_is_lifted_lets_everybody_go() -> None:
    one = gate()
    for number in range(4):
        one.enter(START, BATCH, number)
    one.configure(Admission(inflight_max=2))
    assert one.next(START) is not None
    assert one.next(START) is None
    one.configure(Admission())
    assert [one.next(START) is not None for _ in range(3)] == [True, True, False]


def test_retry_after_follows_the_pace_of_departures() -> None:
    one = gate(queue_max=20, queue_timeout_s=60.0)
    for number in range(21):
        ticket(one.enter(START, INTERACTIVE, number))
    now = START
    for _ in range(40):
        now += 1.0
        one.leave(now)
        assert one.next(now) is not None
        ticket(one.enter(now, INTERACTIVE, 0))
    answer = one.enter(now, INTERACTIVE, 0)
    assert isinstance(answer, ApiError)
    assert 18 <= answer.retry_after_s <= 20  # 20 wait, one goes a second
    assert (one.timeout().status, one.timeout().code) == (503, "queue_timeout")


@pytest.mark.parametrize(
    ("asked", "tier", "best", "priority"),
    [
        (None, None, INTERACTIVE, INTERACTIVE),
        (None, "flex", INTERACTIVE, BATCH),
        (None, "auto", INTERACTIVE, INTERACTIVE),
        (b"interactive", "flex", INTERACTIVE, INTERACTIVE),
        (b"batch", None, INTERACTIVE, BATCH),
        (b"interactive", None, BATCH, BATCH),
        (None, None, BATCH, BATCH),
    ],
)
def test_the_class_of_a_request(asked: bytes | None, tier: object, best: int, priority: int) -> None:
    assert priority_of(asked, tier, best) == priority


def test_a_class_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ApiError) as error:
        priority_of(b"shadow", None, INTERACTIVE)
    assert (error.value.status, error.value.code) == (400, "invalid_priority")
