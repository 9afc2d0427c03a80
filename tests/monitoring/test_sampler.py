"""The sampler: what it adds up, across hours, gaps, failures and restarts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import pytest

from monitoring.cpu import CpuReader
from monitoring.devices import DeviceReading, DeviceUnavailableError, ProcessReading
from monitoring.sampler import Sampler, Sums, split_hours
from registry.entries import HOUR_S, CpuSeconds, HeldSeconds

HOUR = 1_700_000_000 // HOUR_S * HOUR_S
ENGINE = {42: "assistant@v1"}


class Script:
    """A device that reads from a list (the tests' own Reader, not a stand-in for one of ours) and its clock."""

    kind = "gpu"

    def __init__(self, *steps: tuple[float, dict | Exception]) -> None:
        self.steps = list(steps)
        self.now = 0.0
        self.process: ProcessReading | None = ProcessReading(42, HOUR - 1000.0, 5_000, None, 10.0)

    def clock(self) -> float:
        self.now = self.steps[0][0]
        return self.now

    def read(self, at: float, pids: Iterable[int] = ()) -> list[DeviceReading]:
        _, answer = self.steps.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [DeviceReading(kind="gpu", device="GPU-1", at=at, **answer)]

    def close(self) -> None:
        self.steps.clear()


def sampler(script: Script, engines: dict[int, str] | None = None, **more) -> Sampler:
    running = ENGINE if engines is None else engines
    return Sampler(script, lambda: running, clock=script.clock, read_process=lambda _: script.process, **more)


def run(script: Script, made: Sampler) -> Sums:
    for _ in range(len(script.steps)):
        made.sample_once()
    return made.peek()


def test_held_seconds_and_energy_are_split_at_the_hour() -> None:
    script = Script((HOUR - 1.0, {"energy_j": 100.0}), (HOUR + 1.0, {"energy_j": 300.0}))
    sums = run(script, sampler(script))
    assert sums.held == (
        HeldSeconds(HOUR - HOUR_S, "GPU-1", 1.0, 100.0, 1.0),
        HeldSeconds(HOUR, "GPU-1", 1.0, 100.0, 1.0),
    )
    assert sums.until == HOUR + 1.0


def test_power_is_integrated_where_there_is_no_energy_counter() -> None:
    script = Script((HOUR + 1.0, {"power_w": 100.0}), (HOUR + 3.0, {"power_w": 200.0}), (HOUR + 4.0, {}))
    (held,) = run(script, sampler(script)).held
    assert (held.held_s, held.energy_j, held.metered_s) == (3.0, 300.0, 2.0)


def test_a_device_without_a_running_engine_is_not_held() -> None:
    script = Script((HOUR + 1.0, {}), (HOUR + 2.0, {}))
    assert run(script, sampler(script, {})).held == ()


def test_a_gap_counts_as_held_only_where_an_engine_lived_through_it() -> None:
    through = Script((HOUR + 1.0, {}), (HOUR + 61.0, {}))
    made = sampler(through)
    assert sum(row.held_s for row in run(through, made).held) == 60.0
    assert (made.status().gaps, made.status().gap_s) == (1, 60.0)
    anew = Script((HOUR + 1.0, {}), (HOUR + 61.0, {}))
    anew.process = ProcessReading(42, HOUR + 60.0, 5_000, None, 0.5)
    assert run(anew, sampler(anew)).held == ()


def test_held_time_goes_on_across_a_restart_under_engines_that_stayed() -> None:
    script = Script((HOUR + 10.0, {}))
    assert sum(row.held_s for row in run(script, sampler(script, resume_at=HOUR + 3.0)).held) == 7.0
    fresh = Script((HOUR + 10.0, {}))
    fresh.process = ProcessReading(42, HOUR + 9.0, 5_000, None, 0.5)
    assert run(fresh, sampler(fresh, resume_at=HOUR + 3.0)).held == ()


def test_cpu_seconds_are_deltas_and_a_new_engine_counts_from_its_start() -> None:
    script = Script((HOUR + 1.0, {}), (HOUR + 2.0, {}), (HOUR + 3.0, {}))
    made = sampler(script)
    made.sample_once()
    assert made.peek().cpu == ()  # it ran before we watched
    script.process = ProcessReading(42, HOUR - 1000.0, 5_000, None, 10.75)
    made.sample_once()
    script.process = ProcessReading(42, HOUR + 2.5, 6_000, None, 0.5)  # the same pid, another process
    made.sample_once()
    assert made.peek().cpu == (CpuSeconds(HOUR, "cpu", "assistant@v1", 1.25),)
    assert made.engine_memory() == {"assistant@v1": 6_000}


def test_what_is_settled_is_gone_and_what_came_since_stays() -> None:
    script = Script((HOUR + 1.0, {}), (HOUR + 2.0, {}), (HOUR + 3.0, {}))
    made = sampler(script)
    made.sample_once()
    made.sample_once()
    written = made.peek()
    made.sample_once()
    made.settled(written)
    assert made.peek().held == (HeldSeconds(HOUR, "GPU-1", 1.0),)
    made.settled(made.peek())
    assert made.peek() == Sums((), (), HOUR + 3.0)


def test_nothing_stops_it_and_every_failure_is_named() -> None:
    script = Script(
        (HOUR + 1.0, {}),
        (HOUR + 2.0, DeviceUnavailableError("the driver left")),
        (HOUR + 3.0, ZeroDivisionError("surprise")),
        (HOUR + 4.0, {}),
    )
    made = sampler(script)
    assert sum(row.held_s for row in run(script, made).held) == 3.0
    status = made.status()
    assert (status.samples, status.failures, status.last_at) == (4, 2, HOUR + 4.0)
    assert status.last_error == "ZeroDivisionError: surprise"


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    script = Script((HOUR + 5.0, {}), (HOUR + 3.0, {}), (HOUR + 4.0, {}))
    assert sum(row.held_s for row in run(script, sampler(script)).held) == 1.0


def test_gpu_memory_of_an_engine_is_what_the_gpu_says() -> None:
    script = Script((HOUR + 1.0, {"processes": (ProcessReading(42, memory_bytes=9_000),)}))
    made = sampler(script)
    made.sample_once()
    assert made.engine_memory() == {"assistant@v1": 9_000}


def test_a_real_thread_on_this_machines_cpu() -> None:
    made = Sampler(CpuReader(), lambda: {os.getpid(): "assistant@v1"}, interval_s=0.05)
    made.start()
    deadline = time.monotonic() + 20
    while made.status().samples < 4 and time.monotonic() < deadline:
        sum(range(100_000))
    made.stop()
    sums = made.peek()
    assert made.kind == "cpu"
    assert sum(row.held_s for row in sums.held) > 0.1
    assert sum(row.cpu_s for row in sums.cpu) > 0.02
    assert {row.device for row in (*sums.held, *sums.cpu)} == {"cpu"}
    status = made.status()
    assert status.failures == 0
    assert status.own_cpu_s / status.samples < 0.05  # a reading costs milliseconds


def test_hours_of_a_span() -> None:
    assert list(split_hours(HOUR - 1.5, HOUR + HOUR_S + 2.0)) == [
        (HOUR - HOUR_S, 1.5),
        (HOUR, pytest.approx(HOUR_S)),
        (HOUR + HOUR_S, 2.0),
    ]
    assert list(split_hours(HOUR + 1.0, HOUR + 1.0)) == []
