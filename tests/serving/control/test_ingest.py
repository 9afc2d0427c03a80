"""Every record is counted exactly once, whatever is killed when: real SQLite, real files, real processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from segment_process import record
from sqlalchemy import Engine

from monitoring.devices import DeviceReading
from monitoring.observe import COMPLETION_TOKENS, REQUESTS
from monitoring.sampler import Sampler
from monitoring.settle import SETTLED
from registry.database import connect
from registry.entries import CounterKey
from registry.errors import DatabaseError
from registry.ledger import Ledger, LedgerTx
from registry.usage import FRAME, MAGIC, RequestRecord, frame
from serving.control import segments
from serving.control.ingest import Ingest, Retention, Writer
from serving.router.protocol import Stats

HERE = Path(__file__).parent
DONE = CounterKey(REQUESTS, ("m", "v1", "/v1/chat/completions", "completed"))
TOKENS = CounterKey(COMPLETION_TOKENS, ("m", "v1", "engine"))
NOW = 1_000_000.0


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    engine = connect(tmp_path / "registry.db")
    yield Ledger(engine)
    engine.dispose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "requests"
    path.mkdir()
    return path


def write(path: Path, *records: RequestRecord, tail: bytes = b"") -> None:
    path.write_bytes(MAGIC + b"".join(frame(one) for one in records) + tail)


def ingest(folder: Path, ledger: Ledger, **options: object) -> Ingest:
    return Ingest(folder, ledger, device_of=lambda replica: "cpu", **options)  # type: ignore[arg-type]


def stats(segment: str, flushed: int, oldest: float) -> Stats:
    return Stats(NOW, {}, oldest, flushed, segment, 0, 0, 0)


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[2])}
    argv = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def counted(database: Path) -> float:
    engine = connect(database)
    try:
        return Ledger(engine).counters().get(DONE, 0)
    finally:
        engine.dispose()


def test_an_ingest_killed_again_and_again_counts_every_record_once(folder: Path, tmp_path: Path) -> None:
    rng = random.Random(20)
    database = tmp_path / "registry.db"
    writers = [run("segment_process.py", folder, worker, 1500, seed) for seed, worker in enumerate(("w0", "w1"))]
    try:
        kills = 0
        while kills < 4 or not counted(database):
            reader = run("ingest_process.py", database, folder)
            assert reader.stdout is not None
            reader.stdout.readline()
            time.sleep(rng.random() * 0.25 * (1 + kills // 4))  # however slow the machine, something is counted
            end(reader)
            kills += 1
            assert kills < 60
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "done\n"
    finally:
        for writer in writers:
            end(writer)
    engine = connect(database)
    ledger = Ledger(engine)
    before = ledger.counters().get(DONE, 0)
    last = ingest(folder, ledger)
    last.step([], time.time(), settle_now=True)
    counters = ledger.counters()
    assert 0 < before <= 3000
    assert counters[DONE] == 3000
    assert counters[TOKENS] == 6000
    assert len(ledger.sealed()) == 4
    assert ledger.intervals() == []
    busy = sum(row.busy_share_s for row in ledger.cost_seconds())
    inflight = sum(row.inflight_s for row in ledger.cost_seconds())
    assert inflight == pytest.approx(3000 * 0.010, rel=1e-3)
    assert 0 < busy < inflight
    assert last.step([], time.time(), settle_now=True).records == 0
    engine.dispose()


def test_a_torn_record_waits_for_the_rest_while_its_worker_lives_and_is_left_when_it_is_dead(
    folder: Path, ledger: Ledger
) -> None:
    path = folder / "w0-1000000000.seg"
    torn = frame(record(1, 5.0))
    write(path, record(0, 5.0), tail=torn[:20])
    reader = ingest(folder, ledger)
    alive = [Writer("w0", 1.0, None)]
    assert reader.step(alive, NOW).records == 1
    assert ledger.sealed() == set()
    with path.open("ab") as file:
        file.write(torn[20:])
    assert reader.step(alive, NOW).records == 1
    with path.open("ab") as file:
        file.write(torn[:20])
    assert reader.step([], NOW).records == 0
    assert ledger.sealed() == {path.name}
    assert ledger.counters()[DONE] == 2
    assert reader.problems == []


def test_a_damaged_segment_is_set_aside_with_what_came_before_and_blocks_no_other(folder: Path, ledger: Ledger) -> None:
    frames = [frame(record(index, 5.0)) for index in range(3)]
    broken = bytearray(frames[1])
    broken[FRAME.size + 3] ^= 0xFF
    (folder / "w0-1000000000.seg").write_bytes(MAGIC + frames[0] + bytes(broken) + frames[2])
    (folder / "w0-1000000001.seg").write_bytes(b"not a segment at all")
    (folder / "w0-1000000002.seg").write_bytes(MAGIC + frames[0] + bytes(64) + frames[1])
    (folder / "notes.txt").write_text("not ours")
    write(folder / "w1-1000000000.seg", record(7, 5.0, "w1"))
    reader = ingest(folder, ledger)
    report = reader.step([Writer("w0", 0.5, None)], NOW)
    assert report.records == 3
    assert sorted(problem.segment for problem in report.problems) == [f"w0-100000000{n}.seg" for n in range(3)]
    assert reader.step([], NOW).problems == []
    assert ledger.counters()[DONE] == 3


def test_a_segment_is_sealed_when_its_worker_went_on_to_another(folder: Path, ledger: Ledger) -> None:
    write(folder / "w0-1000000000.seg", record(0, 5.0))
    write(folder / "w0-2000000000.seg", record(1, 5.0))
    reader = ingest(folder, ledger)
    reader.step([Writer("w0", 1.0, stats("w0-2000000000.seg", 7, NOW))], NOW)
    assert ledger.sealed() == {"w0-1000000000.seg"}


def test_a_segment_of_a_worker_that_started_after_we_looked_is_not_sealed(folder: Path, ledger: Ledger) -> None:
    write(folder / f"w0-{int(NOW * 1e9)}.seg", record(0, NOW))
    ingest(folder, ledger).step([], NOW + 1)
    assert ledger.sealed() == set()


def test_the_watermark_waits_for_running_requests_and_for_what_is_not_read_yet(folder: Path, ledger: Ledger) -> None:
    path = folder / f"w0-{int((NOW - 99) * 1e9)}.seg"
    write(path, record(0, NOW - 50))
    size = path.stat().st_size
    reader = ingest(folder, ledger)
    watermark = reader.step([Writer("w0", NOW - 100, None)], NOW, settle_now=True).watermark
    assert watermark == NOW - 100
    ahead = Writer("w0", NOW - 100, stats(path.name, size + 1, NOW - 10))
    assert reader.step([ahead], NOW, settle_now=True).watermark == NOW - 100
    caught_up = Writer("w0", NOW - 100, stats(path.name, size, NOW - 10))
    assert reader.step([caught_up], NOW, settle_now=True).watermark == NOW - 10
    assert ledger.cursor(SETTLED) == NOW - 10
    assert ledger.intervals() == []
    silent = Writer("w0", NOW - 100, None)
    assert reader.step([silent], NOW + 5, settle_now=True).watermark == NOW - 10
    assert reader.step([], NOW + 5, settle_now=True).watermark == NOW + 5


def test_the_newest_requests_are_found_in_the_segments_but_none_that_is_not_counted_yet(
    folder: Path, ledger: Ledger
) -> None:
    write(folder / "w0-1.seg", *[record(i, NOW - 90 + i, "a") for i in range(5)])
    write(folder / "w1-2.seg", *[record(i, NOW - 50 + i, "b") for i in range(5)])
    counting = ingest(folder, ledger)
    counting.step([], NOW)
    with (folder / "w1-2.seg").open("ab") as late:
        late.write(frame(record(0, NOW, "late")))

    def names(wanted: str, count: int) -> list[str]:
        return [one.request_id for one in counting.newest(lambda one: one.request_id.startswith(wanted), count)]

    assert names("", 3) == ["b-4", "b-3", "b-2"]
    assert names("", 7)[-2:] == ["a-4", "a-3"]
    assert names("a", 2) == ["a-4", "a-3"]
    assert names("late", 1) == []
    assert segments.newest(folder, ledger.offsets(), lambda one: True, 100, bytes_max=1)[-1].request_id == "b-0"


def test_the_recent_window_is_refilled_without_counting_again(folder: Path, ledger: Ledger) -> None:
    now = time.time()
    write(folder / "w0-1000000000.seg", record(0, now - 500), record(1, now - 5), record(2, now - 1))
    ingest(folder, ledger).step([], now)
    again = ingest(folder, ledger)
    assert [one.request_id for one in again.recent(now - 60)] == ["w0-1", "w0-2"]
    assert again.step([], now).records == 0
    assert ledger.counters()[DONE] == 3


def test_old_and_many_segments_are_deleted_and_never_counted_again(folder: Path, ledger: Ledger) -> None:
    for index in range(4):
        write(folder / f"w0-100000000{index}.seg", *(record(n, 5.0) for n in range(10)))
        os.utime(folder / f"w0-100000000{index}.seg", (NOW - 100 + index, NOW - 100 + index))
    size = (folder / "w0-1000000000.seg").stat().st_size
    reader = ingest(folder, ledger, retention=Retention(age_s=99.5, bytes_max=size * 2))
    reader.step([], NOW)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["w0-1000000002.seg", "w0-1000000003.seg"]
    assert set(ledger.offsets()) == set(left)
    assert ledger.counters()[DONE] == 40
    assert ingest(folder, ledger).step([], NOW).records == 0


def test_more_than_one_look_takes_is_read_in_pieces(
    folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "READ_BYTES_MAX", 500)
    write(folder / "w0-1000000000.seg", *(record(n, 5.0) for n in range(50)))
    seen: list[RequestRecord] = []
    reader = ingest(folder, ledger, on_records=seen.extend)
    assert reader.step([], NOW).records == 50
    assert [one.request_id for one in seen] == [f"w0-{n}" for n in range(50)]
    assert ledger.sealed() == {"w0-1000000000.seg"}


def test_two_readers_on_one_ledger_do_not_count_twice(folder: Path, ledger: Ledger) -> None:
    path = folder / "w0-1000000000.seg"
    write(path, record(0, 5.0))
    alive = [Writer("w0", 1.0, None)]
    one, other = ingest(folder, ledger), ingest(folder, ledger)
    one.step(alive, NOW)
    with pytest.raises(Exception, match="counted up to byte"):
        other.step(alive, NOW)
    assert other.step(alive, NOW).records == 0
    assert ledger.counters()[DONE] == 1


def test_a_segment_begun_after_the_clock_was_set_back_is_read_on(folder: Path, ledger: Ledger) -> None:
    began = NOW - 3600.0
    path = folder / f"w0-{int(began * 1e9)}.seg"
    write(path, record(0, began))
    reader = ingest(folder, ledger)
    alive = [Writer("w0", NOW, stats(path.name, path.stat().st_size, began))]
    assert reader.step(alive, began + 60).records == 1
    assert ledger.sealed() == set()
    with path.open("ab") as file:
        file.write(frame(record(1, began)))
    assert reader.step(alive, began + 61).records == 1


class Device:
    """One device that is read when the clock says; the tests' own Reader."""

    kind: Literal["gpu", "cpu"] = "gpu"

    def __init__(self) -> None:
        self.now = NOW

    def read(self, at: float, pids: Iterable[int] = ()) -> list[DeviceReading]:
        return [DeviceReading(kind="gpu", device="gpu0", at=at)]

    def close(self) -> None:
        """Nothing to close."""

    def held(self, sampler: Sampler, start: float, seconds: int) -> None:
        """Let the engine hold the device for so long, by a clock that says `start` now."""
        for second in range(seconds + 1):
            self.now = start + second
            sampler.sample_once()


def metered(device: Device) -> Sampler:
    return Sampler(device, lambda: {os.getpid(): "m@v1"}, clock=lambda: device.now)


def held_s(ledger: Ledger) -> float:
    return sum(row.held_s for row in ledger.held_seconds())


def test_what_devices_were_held_for_is_counted_while_the_clock_is_set_back(folder: Path, ledger: Ledger) -> None:
    device = Device()
    meter = metered(device)
    reader = ingest(folder, ledger, meter=meter)
    device.held(meter, NOW, 10)
    reader.step([], device.now)
    assert held_s(ledger) == 10
    device.held(meter, NOW - 500, 20)
    reader.step([], device.now)
    assert held_s(ledger) == 30
    device.held(meter, device.now, 10)
    reader.step([], device.now)
    assert held_s(ledger) == 40


class Shaky(Ledger):
    """A ledger whose next transaction ends in an error, before or after it was kept."""

    breaks = ""

    @contextmanager
    def transaction(self) -> Iterator[LedgerTx]:
        breaks, self.breaks = self.breaks, ""
        with super().transaction() as tx:
            yield tx
            if breaks == "before":
                raise DatabaseError("the disk is full")
        if breaks == "after":
            raise DatabaseError("the connection was lost")


@pytest.mark.parametrize("breaks", ["before", "after"])
def test_what_devices_were_held_for_is_counted_once_though_a_transaction_fails(
    folder: Path, tmp_path: Path, breaks: str
) -> None:
    engine = connect(tmp_path / "registry.db")
    device, ledger = Device(), Shaky(engine)
    meter = metered(device)
    reader = ingest(folder, ledger, meter=meter)
    device.held(meter, NOW, 10)
    ledger.breaks = breaks
    with pytest.raises(DatabaseError):
        reader.step([], device.now, settle_now=True)
    device.held(meter, device.now, 5)
    reader.step([], device.now, settle_now=True)
    assert held_s(ledger) == 15
    engine.dispose()


class Halting(Ledger):
    """A ledger whose first transaction begins only when it is let go."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.halted, self.go_on = threading.Event(), threading.Event()

    @contextmanager
    def transaction(self) -> Iterator[LedgerTx]:
        if not self.halted.is_set():
            self.halted.set()
            self.go_on.wait(30)
        with super().transaction() as tx:
            yield tx


def test_a_step_that_begins_while_another_runs_counts_nothing_twice(folder: Path, tmp_path: Path) -> None:
    engine = connect(tmp_path / "registry.db")
    ledger = Halting(engine)
    write(folder / "w0-1000000000.seg", record(0, 5.0))
    reader = ingest(folder, ledger)
    steps = [threading.Thread(target=reader.step, args=([Writer("w0", 1.0, None)], NOW)) for _ in range(2)]
    steps[0].start()
    assert ledger.halted.wait(30)
    steps[1].start()
    time.sleep(0.3)
    ledger.go_on.set()
    for step in steps:
        step.join(30)
    assert ledger.counters()[DONE] == 1
    engine.dispose()
