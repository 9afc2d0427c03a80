"""The spool is taken in once, whoever is killed when; and what cannot be read holds up nothing."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from components import ROOT
from segment_process import record

from registry.capture import SPOOL_MAGIC, Captured, Entry, FeedbackGiven, pack
from registry.config import SamplesConfig
from registry.sample_store import SampleStore
from registry.samples import Query
from serving.control import feedback as joining
from serving.control.samples import STALE_S, Samples

TEXT = SamplesConfig(rate=1.0, store="text")


def captured(index: int, prompt: str = "hello", **changes: Any) -> Captured:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()
    answer = json.dumps({"choices": [{"message": {"content": f"answer {index}"}}]}).encode()
    return Captured(record(index, time.time() - 1000 + index, **changes), body, answer, "application/json")


def spool(folder: Path, number: int, *entries: Entry) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"w0-{number}.smp"
    path.write_bytes(b"".join([SPOOL_MAGIC, *map(pack, entries)]))
    return path


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Bench:
    """One control plane's samples, without a yard."""

    def __init__(self, folder: Path, config: SamplesConfig = TEXT) -> None:
        self.clock = Clock()
        self.spool = folder / "spool"
        self.spool.mkdir(exist_ok=True)
        self.store = SampleStore.open(folder / "samples.db")
        self.samples = Samples(self.spool, self.store, models=lambda: {"m": config}, clock=self.clock)

    def ids(self) -> list[str]:
        return sorted(one.request_id for one in self.store.query(Query()))


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def test_killed_at_any_time_it_takes_every_sample_in_once(tmp_path: Path) -> None:
    folder, database = tmp_path / "spool", tmp_path / "samples.db"
    rng = random.Random(4)
    total = 400
    for number in range(total // 4):
        spool(folder, number, *(captured(number * 4 + part) for part in range(4)))
    kills = 0
    command = [sys.executable, str(Path(__file__).with_name("samples_process.py")), str(database), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    while any(folder.iterdir()) or kills < 3:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.random() * 0.05 * (1 + kills))  # however slow the machine, some get to the end
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills += 1
        assert kills < 60
    store = SampleStore.open(database)
    found = [one.request_id for one in store.query(Query(limit=10_000))]
    assert (len(found), len(set(found))) == (total, total)
    assert store.counts("samples") == {("m", "v1", ""): float(total)}
    store.close()


def test_a_file_that_is_taken_in_and_still_there_is_deleted_and_not_read_again(bench: Bench) -> None:
    path = spool(bench.spool, 1, captured(1))
    with bench.store.transaction() as tx:
        tx.take([path.name])
    Samples(bench.spool, bench.store, models=lambda: {"m": TEXT}).step()
    assert (bench.ids(), list(bench.spool.iterdir()), bench.store.taken()) == ([], [], set())


def test_a_damaged_file_gives_what_stands_before_the_damage(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    path = spool(bench.spool, 1, captured(1), captured(2, prompt="xylograph"))
    path.write_bytes(path.read_bytes()[:-5])
    (bench.spool / "w0-2.smp").write_bytes(b"nonsense")
    with caplog.at_level(logging.INFO):
        bench.samples.step()
    assert bench.ids() == ["w0-1"]
    assert list(bench.spool.iterdir()) == []
    assert "torn" in caplog.text
    assert "xylograph" not in caplog.text


def test_bytes_that_nobody_can_read_hold_up_nobody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    deep: Any = "xylograph"
    for _ in range(900):
        deep = {"a": deep}
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "tools": [deep]}).encode()
    hostile = Captured(record(1, time.time()), body, b"\xff\xfe", "application/json")
    with caplog.at_level(logging.INFO):
        spool(bench.spool, 1, hostile, captured(2))
        bench.samples.step()
    assert "w0-2" in bench.ids()
    assert "xylograph" not in caplog.text
    assert list(bench.spool.iterdir()) == []


def test_what_a_killed_worker_left_half_written_is_deleted_after_a_while(bench: Bench) -> None:
    left = bench.spool / ".w0-1.smp"
    left.write_bytes(b"half")
    bench.samples.step()
    assert left.exists()
    bench.clock.now += STALE_S + 1
    bench.samples.step()
    assert not left.exists()


def test_a_sample_taken_under_another_configuration_is_not_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SamplesConfig(rate=1.0, store="none"))
    spool(bench.spool, 1, captured(1))
    bench.samples.step()
    assert (bench.ids(), list(bench.spool.iterdir())) == ([], [])
    bench.store.close()


def test_of_a_request_that_is_not_to_be_stored_nothing_is(bench: Bench) -> None:
    private = captured(1)
    private.body = private.body.replace(b'{"model"', b'{"store": false, "model"')
    spool(bench.spool, 1, private, captured(2))
    bench.samples.step()
    assert bench.ids() == ["w0-2"]


def said(request_id: str, score: float = 1.0, at: float | None = None, key: str = "", **texts: str) -> FeedbackGiven:
    return FeedbackGiven(request_id, time.time() if at is None else at, score, key_id=key, **texts)


def test_feedback_waits_for_its_request_and_then_no_longer(bench: Bench) -> None:
    spool(bench.spool, 1, said("w0-1", comment="early"), said("nobody"))
    bench.samples.step()
    assert bench.store.feedback() == []
    bench.samples.collect([record(1, time.time())])
    bench.samples.step()
    (one,) = bench.store.feedback()
    assert (one.request_id, one.comment, one.version) == ("w0-1", "early", "v1")
    assert len(bench.store.pending()) == 1
    bench.clock.now += joining.WAIT_S + 1
    bench.samples.step()
    assert bench.store.pending() == []
    assert bench.store.counts("feedback_ignored") == {("", "", "unknown_request"): 1.0}


def test_feedback_that_waits_survives_a_restart_without_its_text(bench: Bench) -> None:
    spool(bench.spool, 1, said("w0-1", score=-1.0, comment="early"))
    bench.samples.step()
    again = Samples(bench.spool, bench.store, models=lambda: {"m": TEXT})
    again.collect([record(1, time.time())])
    again.step()
    (one,) = bench.store.feedback()
    assert (one.score, one.comment) == (-1.0, None)


def test_clients_that_chose_the_same_id_do_not_judge_each_other(bench: Bench) -> None:
    bench.samples.collect([record(1, time.time(), key_id="a"), record(1, time.time(), key_id="b")])
    spool(bench.spool, 1, captured(1, key_id="a"), captured(1, key_id="b"), said("w0-1", -1.0, key="b"))
    spool(bench.spool, 2, said("w0-1", 1.0, key="c"))
    bench.samples.step()
    assert {one.key: one.feedback for one in bench.store.query(Query())} == {"a": None, "b": -1.0}
    assert bench.store.counts("feedback_ignored") == {("", "", "other_key"): 1.0}
