"""The runner against real engine processes: nothing lost, nothing run twice, failures told apart."""

import collections
import dataclasses
import resource
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from eval_support import write_suite

from eval import loaders, runner, scoring
from eval.endpoint import Endpoint, resolve
from eval.errors import RequestRefusedError, RunError, ServerGoneError
from eval.results import Journal, Run, RunStore, Sample, Subject
from eval.scorers import Tools
from eval.suite import Suite

FakeEngines = Callable[..., Any]


def planned(suite: Suite, url: str, root: Path, *, fresh: bool = False, repeats: int | None = None) -> runner.Plan:
    subject = resolve(Endpoint(url), "fake")
    key = runner.key_of(suite, subject, seed=5, repeats=repeats)
    run = RunStore(root).open(suite, subject, key, fresh=fresh, now=time.time())
    return runner.Plan(suite, subject, key, run, concurrency=3)


def execute(plan: runner.Plan) -> runner.Tally:
    tally = runner.Tally(plan.total)
    runner.execute(plan, tally, tools=Tools())
    return tally


def asked(engine: Any) -> collections.Counter[str]:
    """Prompt -> how often the engine was asked it."""
    requests = [msgspec.json.decode(one["body"]) for one in engine.stats()["requests"]]
    return collections.Counter(request["messages"][-1]["content"] for request in requests)


def test_each_case_is_asked_once_per_repeat_and_scored(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    engine = fake_engine("--events", "3")
    plan = planned(small_suite, engine.url, tmp_path / "runs", repeats=2)
    tally = execute(plan)
    assert (tally.done, tally.failed, tally.mean) == (24, 0, 0.5)
    assert set(asked(engine).values()) == {2}
    samples = plan.run.samples()
    assert len(samples) == 24
    one = samples["case-000", 0]
    assert (one.output.split(), one.score, one.completion_tokens, one.finish_reason) == (
        ["t0", "t1", "t2"],
        1.0,
        3,
        "stop",
    )
    assert one.ttft_s is not None
    assert 0 < one.ttft_s <= one.latency_s
    bodies = [msgspec.json.decode(request["body"]) for request in engine.stats()["requests"]]
    assert {body["temperature"] for body in bodies} == {0.0}
    assert {body["seed"] for body in bodies} == {5, 6}
    assert all(body["stream"] for body in bodies)
    assert all(dict(one["headers"])["x-modelyard-priority"] == "batch" for one in engine.stats()["requests"])


def test_a_finished_run_is_reused_and_fresh_runs_anew(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    engine = fake_engine()
    plan = planned(small_suite, engine.url, tmp_path / "runs")
    execute(plan)
    again = planned(small_suite, engine.url, tmp_path / "runs")
    tally = execute(again)
    assert (again.run, tally.kept, tally.mean) == (plan.run, 12, 0.5)
    assert engine.stats()["seen"] == 12
    fresh = planned(small_suite, engine.url, tmp_path / "runs", fresh=True)
    execute(fresh)
    assert fresh.run.name == f"{plan.run.name}.2"
    assert engine.stats()["seen"] == 24
    assert planned(small_suite, engine.url, tmp_path / "runs").run == fresh.run
    assert not plan.run.journal.exists()


def test_a_torn_line_is_cut_and_only_what_is_missing_is_asked(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    engine = fake_engine()
    plan = planned(small_suite, engine.url, tmp_path / "runs")
    journal = Journal(plan.run.journal)
    for case in small_suite.cases[:5]:
        journal.append(msgspec.structs.replace(scoring.blank(case, 0), output="t0", score=1.0))
    journal.close()
    with plan.run.journal.open("ab") as file:
        file.write(b'{"case": "case-005", "rep')
    tally = execute(plan)
    assert (tally.kept, tally.done) == (5, 12)
    assert sum(asked(engine).values()) == 7
    assert len(plan.run.frame()) == 12


def test_a_damaged_journal_is_not_guessed_at(small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines) -> None:
    plan = planned(small_suite, fake_engine().url, tmp_path / "runs")
    plan.run.journal.write_bytes(b"garbage\n{}\n")
    with pytest.raises(RunError, match=r"line 1 is damaged.*--fresh"):
        execute(plan)


@pytest.mark.parametrize("status", [429, 503])
def test_passing_refusals_are_retried(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines, status: int
) -> None:
    engine = fake_engine("--status", str(status), "--status-times", "4")
    plan = planned(small_suite, engine.url, tmp_path / "runs")
    assert execute(plan).failed == 0
    assert engine.stats()["seen"] == 16
    assert sum(sample.attempts - 1 for sample in plan.run.samples().values()) == 4


def test_a_refusal_of_one_request_is_a_final_result(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    engine = fake_engine("--status", "400", "--status-times", "2")
    plan = planned(small_suite, engine.url, tmp_path / "runs")
    assert execute(plan).failed == 2
    assert plan.run.finished
    assert engine.stats()["seen"] == 12
    failed = [sample for sample in plan.run.samples().values() if sample.error]
    assert len(failed) == 2
    assert all(sample.score is None and sample.error.startswith("400") for sample in failed)


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_of_every_request_ends_the_run(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines, status: int
) -> None:
    engine = fake_engine("--status", str(status))
    with pytest.raises(RequestRefusedError, match=str(status)):
        execute(planned(small_suite, engine.url, tmp_path / "runs"))
    assert engine.stats()["seen"] <= 3


def test_a_cut_stream_never_counts_as_an_answer(small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines) -> None:
    engine = fake_engine("--events", "5", "--cut-after-events", "2")
    plan = planned(small_suite.limited(2), engine.url, tmp_path / "runs")
    tally = execute(plan)
    assert (tally.failed, plan.run.finished) == (2, False)
    engine.behave(cut_after_events=-1)
    tally = execute(planned(small_suite.limited(2), engine.url, tmp_path / "runs"))
    assert (tally.kept, tally.failed) == (0, 0)
    assert plan.run.finished
    assert all(len(sample.output.split()) == 5 for sample in plan.run.samples().values())


def test_a_server_that_dies_ends_the_run_and_the_rest_follows_later(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    engine = fake_engine("--gap-s", "0.01")
    plan = planned(small_suite, engine.url, tmp_path / "runs")
    tally = runner.Tally(plan.total, on_change=lambda tally: engine.kill() if tally.done == 5 else None)
    with pytest.raises(ServerGoneError, match="the same command goes on"):
        runner.execute(plan, tally, tools=Tools())
    kept = sum(sample.final for sample in plan.run.samples().values())
    assert 5 <= kept < 12
    second = fake_engine(port=engine.port)
    tally = execute(planned(small_suite, engine.url, tmp_path / "runs"))
    assert (tally.kept, tally.failed, plan.run.finished) == (kept, 0, True)
    assert second.stats()["seen"] == 12 - kept


def test_two_processes_do_not_write_one_run(small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines) -> None:
    plan = planned(small_suite, fake_engine().url, tmp_path / "runs")
    with plan.run.lock(), pytest.raises(RunError, match="another process is writing"):
        execute(plan)


def test_processes_that_begin_one_run_at_once_share_it(small_suite: Suite, tmp_path: Path) -> None:
    subject = Subject(ref="fake", model="fake", url="http://engine")
    key = runner.key_of(small_suite, subject, seed=5, repeats=None)

    def begin(_: int) -> str:
        return RunStore(tmp_path / "runs").open(small_suite, subject, key, fresh=False, now=1.0).name

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(begin, range(8)))) == 1
        shutil.rmtree(tmp_path / "runs")


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    engine = fake_engine()
    plan = planned(small_suite, engine.url, tmp_path / "runs")
    late = _FinishedAtSecondLook(plan.run.folder)
    execute(plan)
    before = plan.run.parquet.stat().st_ino
    tally = execute(dataclasses.replace(plan, run=late))
    assert (tally.kept, engine.stats()["seen"]) == (12, 12)
    assert (plan.run.parquet.stat().st_ino, plan.run.journal.exists()) == (before, False)


class _FinishedAtSecondLook(Run):
    """A run as a process sees it that looked just before another one finished it."""

    looks: ClassVar[list[bool]] = []

    @property
    def finished(self) -> bool:
        self.looks.append(True)
        return len(self.looks) > 1 and self.parquet.exists()


def test_fresh_never_takes_a_folder_that_is_there(small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines) -> None:
    engine = fake_engine()
    runs = [planned(small_suite.limited(1), engine.url, tmp_path / "runs", fresh=True) for _ in range(3)]
    execute(runs[2])
    shutil.rmtree(runs[1].run.folder)
    fourth = planned(small_suite.limited(1), engine.url, tmp_path / "runs", fresh=True)
    assert fourth.run.name.endswith(".4")
    assert not fourth.run.finished
    assert planned(small_suite.limited(1), engine.url, tmp_path / "runs").run == fourth.run


def test_a_full_disk_is_told_in_a_sentence_and_leaves_whole_lines(
    small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    engine = fake_engine()
    plan = planned(small_suite, engine.url, tmp_path / "runs")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(RunError, match=r"cannot be written \(File too large\): make room"):
            execute(plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = len(plan.run.samples())
    assert 0 < kept < 12
    assert plan.run.journal.read_bytes().endswith(b"\n")
    assert execute(planned(small_suite, engine.url, tmp_path / "runs")).kept == kept
    plan.run.parquet.unlink()
    plan.run.parquet.with_suffix(".tmp").mkdir()
    with pytest.raises(RunError, match=r"samples\.parquet cannot be written"):
        execute(planned(small_suite, engine.url, tmp_path / "runs"))


def test_a_pattern_that_needs_forever_is_stopped_and_named(tmp_path: Path, fake_engine: FakeEngines) -> None:
    scorer = {"name": "regex", "pattern": r"^(\w+\s?)+\|$"}
    suite = loaders.load(str(write_suite(tmp_path / "slow", cases=1, scorer=scorer)), tmp_path / "cache")
    engine = fake_engine("--events", "20")
    plan = planned(suite, engine.url, tmp_path / "runs")
    began = time.monotonic()
    assert execute(plan).failed == 1
    assert time.monotonic() - began < 60  # what the pattern needs doubles with every word
    (sample,) = plan.run.samples().values()
    assert "the scorer 'regex' was stopped after 2 s" in sample.error
    assert plan.run.finished


def test_samples_survive_parquet_unchanged(small_suite: Suite, tmp_path: Path, fake_engine: FakeEngines) -> None:
    plan = planned(small_suite, fake_engine().url, tmp_path / "runs")
    journal = Journal(plan.run.journal)
    written = [
        Sample(
            case=case.id, repeat=0, scorer="contains", prompt="p\n\N{SNOWMAN}", prompt_digest="d", target='"x"',
            target_digest="e", output="", score=None if index % 2 else 0.25, error="400: no" if index % 2 else "",
            ttft_s=None if index % 3 else 0.5,
        )
        for index, case in enumerate(small_suite.cases)
    ]  # fmt: skip
    for sample in written:
        journal.append(sample)
    journal.close()
    before = plan.run.samples()
    Run(plan.run.folder).compact(1.0)
    assert plan.run.samples() == before == {sample.id: sample for sample in written}
    assert plan.run.info().finished_at == 1.0


def test_a_part_of_a_name_is_the_latest_plain_run(small_suite: Suite, tmp_path: Path) -> None:
    subject = Subject(ref="m@v1", model="m@v1", url="http://127.0.0.1:1")
    store = RunStore(tmp_path)

    def begin(at: float, **of: Any) -> Run:
        key = runner.key_of(small_suite, subject, repeats=None, **of)
        return store.open(small_suite, subject, key, fresh=True, now=at)

    first = begin(1.0, seed=5)
    assert store.get("m@v1") == first
    begin(3.0, seed=5, twin=True)
    assert store.get("m@v1") == first, "an A/A comparison's second run is asked for by its own name"
    again = begin(2.0, seed=5)
    assert store.get("m@v1") == again
    assert store.get(first.name) == first
    begin(4.0, seed=6)
    with pytest.raises(RunError, match="fits several runs"):
        store.get("m@v1")


def test_a_scorer_that_only_waits_is_stopped_too_and_other_peoples_timers_go_on() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        began = time.monotonic()
        with pytest.raises(scoring._TooLongError), scoring._at_most(0.01):
            time.sleep(60)
        assert time.monotonic() - began < 30
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
