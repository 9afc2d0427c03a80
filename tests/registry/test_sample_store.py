"""The store of samples and feedback: what is found, what is bounded, and that a file is taken in once."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.errors import DatabaseError
from registry.sample_store import PENDING_MAX, SampleStore
from registry.samples import Feedback, Pending, Query, Retention, TrafficSample, Turn


def sample(number: int, **changes: Any) -> TrafficSample:
    values: dict[str, Any] = {
        "request_id": f"r{number}",
        "model": "m",
        "version": "v1",
        "started_at": float(number),
        "endpoint": "/v1/chat/completions",
        "messages": (Turn("user", f"question {number}"),),
        "output": f"answer {number}",
        "tool_calls": ({"name": "f", "arguments": "{}"},),
        "request": {"temperature": 0},
        "features": {"input_characters": 10.0, "output_finish": "stop"},
    }
    return TrafficSample(**(values | changes))


def said(number: int, score: float, at: float = 1.0, **changes: Any) -> Feedback:
    values = {"request_id": f"r{number}", "model": "m", "version": "v1", "started_at": float(number)}
    return Feedback(**(values | {"at": at, "score": score} | changes))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    opened = SampleStore.open(tmp_path / "samples.db")
    yield opened
    opened.close()


def fill(store: SampleStore, *samples: TrafficSample) -> None:
    with store.transaction() as tx:
        tx.append(samples)


def ids(store: SampleStore, **query: Any) -> list[str]:
    return [one.request_id for one in store.query(Query(**query))]


def test_a_sample_comes_back_as_it_went_in(store: SampleStore) -> None:
    fill(store, sample(1), sample(2, messages=None, output=None, tool_calls=(), request={}))
    two, one = store.query(Query())
    assert one == sample(1)
    assert (two.messages, two.output, two.prompt) == (None, None, None)
    assert one.prompt == "question 1"
    bare = store.query(Query(texts=False))[1]
    assert (bare.messages, bare.output, bare.tool_calls, bare.request) == (None, None, (), {})
    assert bare.features == one.features


def test_samples_are_found_by_model_version_time_and_feedback(store: SampleStore) -> None:
    fill(store, *(sample(n, version=f"v{n % 2}") for n in range(6)), sample(9, model="other"))
    with store.transaction() as tx:
        tx.give(said(1, -1.0, comment="no"))
        tx.give(said(2, 0.5))
        tx.give(said(3, 0.0))
    assert ids(store, model="m") == ["r5", "r4", "r3", "r2", "r1", "r0"]
    assert ids(store, model="m", version="v1", newest_first=False) == ["r1", "r3", "r5"]
    assert ids(store, model="m", since=2.0, until=4.0) == ["r3", "r2"]
    assert ids(store, model="m", limit=2) == ["r5", "r4"]
    assert ids(store, feedback="negative") == ["r1"]
    assert ids(store, feedback="positive") == ["r2"]
    assert ids(store, feedback="any") == ["r3", "r2", "r1"]
    assert ids(store, model="m", feedback="none") == ["r5", "r4", "r0"]
    assert store.count(Query(model="m", limit=1)) == 6
    (negative,) = store.query(Query(feedback="negative"))
    assert (negative.feedback, negative.comment, negative.feedback_at) == (-1.0, "no", 1.0)


def test_the_latest_feedback_counts_whatever_comes_last(store: SampleStore) -> None:
    fill(store, sample(1))
    with store.transaction() as tx:
        assert tx.give(said(1, 1.0, at=5.0))
        assert not tx.give(said(1, -1.0, at=4.0))
        assert tx.give(said(1, -0.5, at=6.0))
    assert [one.score for one in store.feedback("m")] == [-0.5]
    assert store.query(Query())[0].feedback == -0.5


def test_a_transaction_that_fails_leaves_nothing(store: SampleStore) -> None:
    def fail() -> None:
        with store.transaction() as tx:
            tx.append([sample(1)])
            tx.take(["w0-1.smp"])
            tx.add("samples", "m", "v1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (store.query(Query()), store.taken(), store.counts("samples")) == ([], set(), {})


def test_names_of_the_spool_and_totals_are_kept(tmp_path: Path) -> None:
    store = SampleStore.open(tmp_path / "samples.db")
    for _ in range(2):
        with store.transaction() as tx:
            tx.take(["a", "b"])
            tx.add("feedback", "m", "v1", "positive")
    store.close()
    store = SampleStore.open(tmp_path / "samples.db")
    assert store.taken() == {"a", "b"}
    assert store.counts("feedback") == {("m", "v1", "positive"): 2.0}
    with store.transaction() as tx:
        tx.forget(["a"])
    assert store.taken() == {"b"}
    store.close()


def test_feedback_that_waits_has_no_text_on_the_disk(store: SampleStore, tmp_path: Path) -> None:
    with store.transaction() as tx:
        number = tx.wait(Pending(request_id="r1", at=1.0, score=1.0, comment="xylograph", target="xylograph"))
    ((found, one),) = store.pending()
    assert (found, one.comment, one.target) == (number, None, None)
    assert not any(b"xylograph" in path.read_bytes() for path in tmp_path.iterdir())
    with store.transaction() as tx:
        for later in range(PENDING_MAX):
            tx.wait(Pending(request_id=f"x{later}", at=2.0, score=1.0))
    waiting = store.pending()
    assert (len(waiting), waiting[0][1].request_id) == (PENDING_MAX, "x0")


def test_age_count_and_size_are_bounded_by_model(store: SampleStore) -> None:
    fill(store, *(sample(n) for n in range(10)), *(sample(n, model="big") for n in range(10)))
    rules = {"m": Retention(age_s=6.0, count_max=3)}
    size = store.sizes()["big"][1]
    rules["big"] = Retention(age_s=1e9, bytes_max=size // 2)
    assert store.prune(10.0, rules, Retention()) > 0
    assert ids(store, model="m") == ["r9", "r8", "r7"]
    assert ids(store, model="big") == [f"r{n}" for n in range(9, 9 - len(ids(store, model="big")), -1)]
    assert 0 < store.sizes()["big"][1] <= size // 2
    assert store.prune(1e12, {}, Retention(age_s=5.0)) == 8
    assert store.sizes() == {}


def test_what_is_deleted_is_in_no_file(store: SampleStore, tmp_path: Path) -> None:
    fill(store, *(sample(n, output="xylograph " * 50) for n in range(50)))
    assert any(b"xylograph" in path.read_bytes() for path in tmp_path.iterdir())
    store.prune(1e12, {}, Retention())
    assert not any(b"xylograph" in path.read_bytes() for path in tmp_path.iterdir())


def test_only_its_owner_can_read_it(store: SampleStore, tmp_path: Path) -> None:
    fill(store, sample(1))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_several_threads_and_processes_use_it_at_once(store: SampleStore, tmp_path: Path) -> None:
    def write(part: int) -> None:
        for number in range(20):
            fill(store, sample(part * 100 + number))
            store.query(Query(limit=5))

    threads = [threading.Thread(target=write, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_count, (tmp_path / "samples.db",)) <= 60
    for thread in threads:
        thread.join()
    assert store.count(Query()) == 60


def _count(path: Path) -> int:
    store = SampleStore.open(path)
    try:
        return store.count(Query())
    finally:
        store.close()


def test_a_newer_store_and_a_file_that_is_none_are_refused_with_a_remedy(tmp_path: Path) -> None:
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(DatabaseError, match="newer release"):
        SampleStore.open(tmp_path / "newer.db")
    (tmp_path / "none.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(DatabaseError, match="move the file away"):
        SampleStore.open(tmp_path / "none.db")
