"""Kept answers: what they are keyed by, that they are bounded, and that a run with them asks nothing twice."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from eval_support import write_suite

from eval import cache, loaders, performance, runner
from eval.cache import ResponseCache
from eval.results import RunStore, Subject
from eval.scorers import Tools
from eval.stream import Completion
from eval.suite import Case, Message, Suite

FakeEngines = Callable[..., Any]
PINNED = Subject(ref="m@v1", model="m@v1", url="http://engine", digest="sha256:1", engine="llama.cpp")


def keys(suite: Suite, subject: Subject = PINNED, *, seed: int = 1, twin: bool = False, repeat: int = 0) -> str:
    run = runner.key_of(suite, subject, seed=seed, repeats=2, twin=twin)
    return cache.key_of(subject, run, suite.cases[0], repeat)


def changed(suite: Suite, **fields: Any) -> Suite:
    case: Case = msgspec.structs.replace(suite.cases[0], **fields)
    return msgspec.structs.replace(suite, cases=(case, *suite.cases[1:]))


def test_everything_that_may_change_an_answer_is_in_its_key(small_suite: Suite) -> None:
    replace = msgspec.structs.replace
    warm = replace(small_suite.sampling, temperature=0.5)
    different = [
        keys(small_suite),
        keys(small_suite, replace(PINNED, digest="sha256:2")),
        keys(small_suite, seed=2),
        keys(small_suite, repeat=1),
        keys(small_suite, twin=True),
        keys(replace(small_suite, sampling=warm)),
        keys(changed(small_suite, messages=(Message("user", "Another question"),))),
        keys(changed(small_suite, max_tokens=7)),
        keys(changed(small_suite, then=("And now?",))),
        keys(changed(small_suite, request={"tool_choice": "auto"})),
        keys(changed(small_suite, chat=False)),
    ]
    assert len(set(different)) == len(different)


def test_what_cannot_change_an_answer_is_not(small_suite: Suite) -> None:
    replace = msgspec.structs.replace
    elsewhere = replace(PINNED, url="http://other", ref="m@champion")
    others = changed(small_suite, id="renamed", slice="x", weight=3.0, target="another")
    assert keys(small_suite) == keys(small_suite, elsewhere) == keys(replace(others, name="another suite"))


@pytest.mark.parametrize("unsure", [{"digest": ""}, {"engine": "external"}, {"engine": "hosted"}])
def test_nothing_is_kept_of_what_may_change_unseen(small_suite: Suite, unsure: dict[str, str]) -> None:
    assert keys(small_suite, msgspec.structs.replace(PINNED, **unsure)) == ""


def test_answers_outlive_the_process_and_the_oldest_go_first(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "answers.sqlite"
    with ResponseCache(path, bytes_max=5_000) as kept:
        for number in range(20):
            kept.put(f"k{number:02d}", Completion(text="x" * 500, latency_s=0.5, ttft_s=0.1))
            kept.flush()
            assert kept.get("k00") is not None, "used all along"
    with ResponseCache(path, bytes_max=5_000) as kept:
        held = [number for number in range(20) if kept.get(f"k{number:02d}")]
        assert held[0] == 0
        assert held[1:] == list(range(20 - len(held) + 1, 20))
        assert 3 <= len(held) <= 8
        found = kept.get("k19")
    assert found is not None
    assert (found.text, found.ttft_s) == ("x" * 500, 0.1)
    with ResponseCache(path, reading=False) as anew:
        assert anew.get("k19") is None


def test_a_damaged_file_is_an_empty_cache(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"no database " * 100)
    with ResponseCache(path) as kept:
        kept.put("k", Completion(text="a"))
        kept.flush()
        assert kept.get("k") is not None


def test_another_run_and_another_suite_ask_only_what_is_new(tmp_path: Path, fake_engine: FakeEngines) -> None:
    engine = fake_engine()
    subject = msgspec.structs.replace(PINNED, url=engine.url, model="m")

    def run(suite: Suite, name: str, *, use: bool = True) -> runner.Tally:
        key = runner.key_of(suite, subject, seed=0, repeats=1)
        folder = RunStore(tmp_path / name).open(suite, subject, key, fresh=False, now=time.time())
        with ResponseCache(tmp_path / "answers.sqlite") as kept:
            plan = runner.Plan(suite, subject, key, folder, concurrency=3, cache=kept if use else None)
            tally = runner.Tally(plan.total)
            runner.execute(plan, tally, tools=Tools())
        samples = folder.samples().values()
        assert sum(sample.cached for sample in samples) == tally.cached
        assert performance.measure(samples).n == plan.total - tally.cached
        return tally

    first = loaders.load(str(write_suite(tmp_path / "a")), tmp_path)
    larger = loaders.load(str(write_suite(tmp_path / "b", cases=15, name="larger", scorer="exact")), tmp_path)
    whole = run(first, "runs-1")
    again = run(first, "runs-2")
    assert (whole.cached, again.cached, engine.stats()["seen"]) == (0, 12, 12)
    assert whole.mean == again.mean
    assert (run(larger, "runs-3").cached, engine.stats()["seen"]) == (12, 15)
    assert (run(first, "runs-4", use=False).cached, engine.stats()["seen"]) == (0, 27)


def test_an_answer_by_another_version_is_not_kept(tmp_path: Path, fake_engine: FakeEngines) -> None:
    suite = loaders.load(str(write_suite(tmp_path / "a", cases=2)), tmp_path)
    stream = b'data: {"choices": [{"delta": {"content": "t0"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nx-modelyard-version: m@v2\r\ncontent-length: %d\r\n\r\n" % len(stream)
    engine = fake_engine("--raw", (head + stream).hex())
    subject = msgspec.structs.replace(PINNED, url=engine.url)
    key = runner.key_of(suite, subject, seed=0, repeats=1)
    folder = RunStore(tmp_path / "runs").open(suite, subject, key, fresh=False, now=time.time())
    with ResponseCache(tmp_path / "answers.sqlite") as kept:
        plan = runner.Plan(suite, subject, key, folder, concurrency=1, cache=kept)
        tally = runner.Tally(plan.total)
        runner.execute(plan, tally, tools=Tools())
        assert (tally.failed, folder.finished) == (2, False)
        assert kept.get(cache.key_of(subject, key, suite.cases[0], 0)) is None
