"""The ledger on a real SQLite file: totals, and exactly-once under kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import ConflictError
from registry.ledger import (
    CostSeconds,
    CounterKey,
    CpuSeconds,
    HeldSeconds,
    HistogramDelta,
    HistogramKey,
    Interval,
    Ledger,
)
from registry.store import Registry

REQUESTS = CounterKey("requests", ("assistant", 'a "quoted", label', "ü"))
WAITS = HistogramKey("waits", ("assistant", "v1"), "seconds")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "registry.db")
    yield opened
    opened.close()


@pytest.fixture
def ledger(registry: Registry) -> Ledger:
    return Ledger(registry.engine)


def test_counters_and_histograms_add_up_and_survive_reopening(ledger: Ledger, tmp_path: Path) -> None:
    for _ in range(3):
        with ledger.transaction() as tx:
            tx.add_counters({REQUESTS: 2.0, CounterKey("other"): 0.5})
            tx.add_histograms({WAITS: HistogramDelta([1, 0, 2], 4.5)})
            tx.add_counters({})
            tx.add_histograms({})
    with ledger.transaction() as tx:
        tx.add_histograms({HistogramKey("waits", ("assistant", "v1"), "other"): HistogramDelta([1], 1.0)})
    reopened = Registry.open(tmp_path / "registry.db")
    again = Ledger(reopened.engine)
    assert again.counters() == {REQUESTS: 6.0, CounterKey("other"): 1.5}
    assert again.histograms()[WAITS] == HistogramDelta([3, 0, 6], 13.5)
    assert again.histograms()[WAITS].count == 9
    assert len(again.histograms()) == 2
    reopened.close()


def test_what_contradicts_itself_is_refused_and_undone(ledger: Ledger) -> None:
    def falls() -> None:
        with ledger.transaction() as tx:
            tx.add_counters({CounterKey("kept"): 1.0})
            tx.add_counters({REQUESTS: -1.0})

    with pytest.raises(ValueError, match="cannot fall"):
        falls()

    def other_buckets() -> None:
        with ledger.transaction() as tx:
            tx.add_histograms({WAITS: HistogramDelta([1, 2], 1.0)})
            tx.add_histograms({WAITS: HistogramDelta([1, 2, 3], 1.0)})

    with pytest.raises(ValueError, match="buckets"):
        other_buckets()
    assert ledger.counters() == {}
    assert ledger.histograms() == {}


def test_a_segment_is_counted_by_one_reader(ledger: Ledger) -> None:
    def advance(*args: int, **fields: int | bool) -> None:
        with ledger.transaction() as tx:
            tx.advance("w0-1.seg", *args, **fields)  # type: ignore[arg-type]

    advance(100, expected=0)
    for offset, expected in ((50, None), (200, 50), (100, 0)):
        with pytest.raises(ConflictError, match="counted up to byte 100"):
            advance(offset, **({} if expected is None else {"expected": expected}))
    advance(100)
    advance(200, expected=100, sealed=True)
    assert ledger.offsets() == {"w0-1.seg": 200}
    assert ledger.sealed() == {"w0-1.seg"}
    with ledger.transaction() as tx:
        tx.forget(["w0-1.seg", "unknown"])
    assert ledger.offsets() == {}


def test_intervals_wait_until_they_are_replaced(ledger: Ledger) -> None:
    late = Interval("cpu", "assistant@v1", "completed", 5.0, 6.0)
    early = Interval("cpu", "assistant@v2", "failed", 1.0, 9.0)
    with ledger.transaction() as tx:
        tx.add_intervals([late, early, early])
        tx.add_intervals([])
        assert tx.intervals() == [early, early, late]
        tx.set_cursor("settled", 4.0)
        assert tx.cursor("settled") == 4.0
    with ledger.transaction() as tx:
        tx.replace_intervals([late])
        tx.set_cursor("settled", 2.0)
    assert ledger.intervals() == [late]
    assert (ledger.cursor("settled"), ledger.cursor("other")) == (2.0, None)


def test_seconds_add_up_by_key_and_are_read_by_overlap(ledger: Ledger) -> None:
    cost = CostSeconds(3600, "cpu", "assistant@v1", "completed", 1.5, 3.0)
    held = HeldSeconds(3600, "cpu", 10.0, 50.0, 9.0)
    cpu = CpuSeconds(3600, "cpu", "assistant@v1", 2.5)
    later = CostSeconds(7200, "cpu", "assistant@v1", "completed", 1.0, 1.0)
    for _ in range(2):
        with ledger.transaction() as tx:
            tx.add_cost_seconds([cost, later])
            tx.add_held_seconds([held])
            tx.add_cpu_seconds([cpu])
    doubled = CostSeconds(3600, "cpu", "assistant@v1", "completed", 3.0, 6.0)
    assert ledger.cost_seconds() == [doubled, CostSeconds(7200, "cpu", "assistant@v1", "completed", 2.0, 2.0)]
    assert ledger.held_seconds() == [HeldSeconds(3600, "cpu", 20.0, 100.0, 18.0)]
    assert ledger.cpu_seconds() == [CpuSeconds(3600, "cpu", "assistant@v1", 5.0)]
    for since, until, hours in (
        (3600, 7200, [3600]),
        (7199.9, None, [3600, 7200]),
        (7200, None, [7200]),
        (None, 3600, []),
        (None, 3600.1, [3600]),
        (10800, None, []),
    ):
        assert [row.hour for row in ledger.cost_seconds(since, until)] == hours


def test_threads_lose_no_increment(ledger: Ledger) -> None:
    def work() -> None:
        for _ in range(20):
            with ledger.transaction() as tx:
                tx.add_counters({REQUESTS: 1.0})
                tx.add_histograms({WAITS: HistogramDelta([1], 1.0)})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.counters() == {REQUESTS: 80.0}
    assert ledger.histograms() == {WAITS: HistogramDelta([80], 80.0)}


def test_a_batch_of_thousands_is_one_quick_transaction(ledger: Ledger) -> None:
    started = time.process_time()
    with ledger.transaction() as tx:
        tx.advance("w0-1.seg", 1)
        tx.add_counters({CounterKey("c", (str(i),)): 1.0 for i in range(1000)})
        tx.add_histograms({HistogramKey("h", (str(i),), "b"): HistogramDelta([1] * 20, 1.0) for i in range(200)})
        tx.add_intervals([Interval("cpu", "assistant@v1", "completed", i, i + 1) for i in range(5000)])
    assert time.process_time() - started < 2
    assert len(ledger.intervals()) == 5000


INGEST = """
import sys
from registry.ledger import CounterKey, HistogramDelta, HistogramKey, Interval, Ledger
from registry.store import Registry
ledger = Ledger(Registry.open(sys.argv[1]).engine)
while True:
    at = ledger.offsets().get("s", 0)
    with ledger.transaction() as tx:
        tx.add_counters({CounterKey("c"): 1.0})
        tx.add_histograms({HistogramKey("h", (), "b"): HistogramDelta([1], 1.0)})
        tx.add_intervals([Interval("cpu", "a@v", "completed", at, at + 1)])
        tx.advance("s", at + 1, expected=at)
    print("counted", flush=True)
"""


def test_a_killed_ingester_counts_nothing_twice_and_loses_nothing(ledger: Ledger, tmp_path: Path) -> None:
    database = str(tmp_path / "registry.db")
    for pause_s in (0.05, 0.11, 0.17):
        with subprocess.Popen([sys.executable, "-c", INGEST, database], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"counted\n"
            time.sleep(pause_s)
            os.kill(process.pid, signal.SIGKILL)
    counted = ledger.offsets()["s"]
    assert counted > 0
    assert ledger.counters() == {CounterKey("c"): float(counted)}
    assert ledger.histograms() == {HistogramKey("h", (), "b"): HistogramDelta([counted], float(counted))}
    assert [interval.start for interval in ledger.intervals()] == [float(i) for i in range(counted)]
