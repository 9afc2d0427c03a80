"""The sampler: what it adds up, across hours, gaps, failures and restarts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable

import pytest

from monitoring.cpu import CpuReader
from monitoring.devices import DeviceReading, DeviceUnavailableError, ProcessReading
from monitoring.gpu_owners import GpuUse
from monitoring.sampler import Sampler, Sums
from registry.entries import HOUR_S, CpuSeconds, HeldSeconds, MemorySeconds, SmSeconds

HOUR = 1_700_000_000 // HOUR_S * HOUR_S
ENGINE = {42: "assistant@v1"}


class Script:
    """A device that reads from a list (the tests' own Reader, not a stand-in for one of ours) and its clock."""

    kind = "gpu"

    def __init__(self, *steps: tuple[float, dict | Exception]) -> None:
        self.steps = list(steps)
        self.now = 0.0
        self.process: ProcessReading | None = ProcessReading(42, HOUR - 1000.0, 5_000, cpu_s=10.0)
        self.children: dict[int, int] = {}

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


class Table:
    """The processes of a script, in the place of the system's."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.looks: list[float] = []

    def read(self, pids: Iterable[int], at: float) -> dict[int, ProcessReading]:
        self.looks.append(at)
        return dict.fromkeys(pids, self.script.process) if self.script.process else {}

    def owners(self, pids: Iterable[int], at: float) -> dict[int, int]:
        family = {42: 42} | self.script.children
        return {pid: family[pid] for pid in pids if pid in family}


def sampler(script: Script, engines: dict[int, str] | None = None, **more) -> Sampler:
    running = ENGINE if engines is None else engines
    return Sampler(script, lambda: running, clock=script.clock, processes=Table(script), **more)


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
    anew.process = ProcessReading(42, HOUR + 60.0, 5_000, cpu_s=0.5)
    assert run(anew, sampler(anew)).held == ()


def test_held_time_goes_on_across_a_restart_under_engines_that_stayed() -> None:
    script = Script((HOUR + 10.0, {}))
    assert sum(row.held_s for row in run(script, sampler(script, resume_at=HOUR + 3.0)).held) == 7.0
    fresh = Script((HOUR + 10.0, {}))
    fresh.process = ProcessReading(42, HOUR + 9.0, 5_000, cpu_s=0.5)
    assert run(fresh, sampler(fresh, resume_at=HOUR + 3.0)).held == ()


def test_cpu_seconds_are_deltas_and_a_new_engine_counts_from_its_start() -> None:
    script = Script((HOUR + 1.0, {}), (HOUR + 2.0, {}), (HOUR + 3.0, {}))
    made = sampler(script)
    made.sample_once()
    assert made.peek().cpu == ()  # it ran before we watched
    script.process = ProcessReading(42, HOUR - 1000.0, 5_000, cpu_s=10.75)
    made.sample_once()
    script.process = ProcessReading(42, HOUR + 2.5, 6_000, cpu_s=0.5)  # the same pid, another process
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


def test_sm_time_is_an_engines_and_its_childrens_and_is_split_at_the_hour() -> None:
    mine = ProcessReading(42, memory_bytes=9_000, utilisation=0.1, sm_s=0.2)
    child = ProcessReading(43, memory_bytes=1_000, utilisation=0.5, sm_s=1.0)
    stranger = ProcessReading(99, memory_bytes=7_000, utilisation=0.3, sm_s=0.6)
    script = Script((HOUR - 1.0, {}), (HOUR + 1.0, {"processes": (mine, child, stranger)}))
    script.children = {43: 42}
    made = sampler(script)
    sums = run(script, made)
    assert sums.sm == (
        SmSeconds(HOUR - HOUR_S, "GPU-1", "assistant@v1", pytest.approx(0.6)),
        SmSeconds(HOUR, "GPU-1", "assistant@v1", pytest.approx(0.6)),
    )
    assert sums.memory == (
        MemorySeconds(HOUR - HOUR_S, "GPU-1", "assistant@v1", 10_000.0),
        MemorySeconds(HOUR, "GPU-1", "assistant@v1", 10_000.0),
    )
    assert made.status().use == {("GPU-1", "assistant@v1"): GpuUse(0.6, 10_000)}
    assert made.engine_memory() == {"assistant@v1": 10_000}
    assert (made.device_of(42), made.device_of(99)) == ("GPU-1", None)


def test_processes_that_are_none_of_ours_are_said_to_be() -> None:
    script = Script((HOUR + 1.0, {"processes": (ProcessReading(99, memory_bytes=7_000, sm_s=0.6),)}))
    made = sampler(script)
    assert run(script, made).sm == ()
    assert "container" in made.latest()[0].absent["process_owner"]


def test_a_counter_that_goes_back_is_marked_and_its_interval_is_not_metered() -> None:
    energies = (100.0, 160.0, 7.0, 57.0)  # wrapped, or the driver was loaded anew
    script = Script(*((HOUR + second, {"energy_j": joules}) for second, joules in enumerate(energies, 1)))
    made = sampler(script)
    assert run(script, made).held == (HeldSeconds(HOUR, "GPU-1", 3.0, 110.0, 2.0),)
    assert made.status().counter_resets == {("GPU-1", "energy"): 1}


def test_energy_of_time_in_which_the_gpu_was_lost_is_not_metered() -> None:
    lost = {"absent": {"device": "GPU is lost"}}
    script = Script(
        (HOUR + 1.0, {"energy_j": 100.0}), (HOUR + 2.0, lost), (HOUR + 3.0, lost), (HOUR + 4.0, {"energy_j": 900.0})
    )
    made = sampler(script)
    for _ in range(3):
        made.sample_once()
    status = made.status()
    assert (status.failures, status.last_at, status.failing) == (2, HOUR + 1.0, "GPU-1: GPU is lost")
    made.sample_once()
    assert made.peek().held == (HeldSeconds(HOUR, "GPU-1", 3.0, 0.0, 0.0),)
    status = made.status()
    assert (status.gaps, status.gap_s, status.failing, status.last_at) == (1, 2.0, "", HOUR + 4.0)


def test_hours_are_cut_where_a_price_changes() -> None:
    script = Script((HOUR + 1.0, {}), (HOUR + 11.0, {}))
    made = sampler(script, interval_s=10.0)
    made.cuts = (HOUR + 4,)
    assert run(script, made).held == (HeldSeconds(HOUR, "GPU-1", 3.0), HeldSeconds(HOUR + 4, "GPU-1", 7.0))


def test_between_two_looks_at_the_system_only_the_gpu_is_read() -> None:
    script = Script(*((HOUR + 1.0 + tenth / 10, {"power_w": 100.0}) for tenth in range(31)))
    table = Table(script)
    made = Sampler(script, lambda: ENGINE, interval_s=0.1, clock=script.clock, processes=table)
    sums = run(script, made)
    assert sum(row.held_s for row in sums.held) == pytest.approx(3.0)
    assert sum(row.energy_j for row in sums.held) == pytest.approx(300.0)
    assert len(table.looks) == 4
    assert made.status().gaps == 0


def test_a_driver_that_hangs_keeps_nobody_waiting() -> None:
    entered, released = threading.Event(), threading.Event()

    class Hangs(Script):
        closed = False

        def read(self, at: float, pids: Iterable[int] = ()) -> list[DeviceReading]:
            entered.set()
            released.wait(30)
            return []

        def close(self) -> None:
            self.closed = True

    driver = Hangs((HOUR + 1.0, {}))
    made = sampler(driver)
    made.start()
    assert entered.wait(30)
    began = time.monotonic()
    made.stop(timeout_s=0.1)
    assert time.monotonic() - began < 20  # the driver hangs for longer
    assert not driver.closed  # it would hang there too
    released.set()


def test_a_real_thread_on_this_machines_cpu() -> None:
    made = Sampler(CpuReader(), lambda: {os.getpid(): "assistant@v1"}, interval_s=0.05)
    made.start()
    deadline = time.monotonic() + 30

    def cpu_s() -> float:
        return sum(row.cpu_s for row in made.peek().cpu)

    while (made.status().samples < 4 or cpu_s() <= 0.02) and time.monotonic() < deadline:
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
