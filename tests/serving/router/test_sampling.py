"""Sampling in a real worker: what is handed on, what never is, and what a kill leaves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines.fixtures import FakeEngine
from router_harness import PATIENCE_S, RouterProcess, model, running_router, until, version

from registry.capture import Captured, Entry, FeedbackGiven, unpack
from serving.router.sampling import BACKLOG_FILES_MAX, WAITING_BYTES_MAX, Spool, place_of
from serving.router.split import BUCKETS
from serving.router.table import Cache, Samples

Start = Callable[..., FakeEngine]
ALL = Samples(share=BUCKETS)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[RouterProcess]:
    (tmp_path / "spool").mkdir()
    with running_router(tmp_path, options=["--samples", str(tmp_path / "spool")]) as process:
        yield process


def publish(router: RouterProcess, engine: FakeEngine, samples: Samples = ALL, **options: Any) -> None:
    router.publish(model([version("v1", [engine.port])], {"v1": BUCKETS}, samples=samples, **options))


def spooled(router: RouterProcess, count: int = 0, wait_s: float = PATIENCE_S) -> list[Entry]:
    """What the spool holds, once there are `count` entries."""
    limit = time.monotonic() + wait_s
    while True:
        found: list[Entry] = []
        for path in sorted((router.folder / "spool").glob("w0-*.smp")):
            entries, damage = unpack(path.read_bytes())
            assert (damage, path.stat().st_mode & 0o777) == ("", 0o600)
            found += entries
        if len(found) >= count or time.monotonic() > limit:
            assert len(found) == count or not count
            return found
        time.sleep(0.02)


def test_a_sample_is_what_the_client_sent_and_got(router: RouterProcess, fake_engine: Start) -> None:
    publish(router, fake_engine("--events", "4"))
    plain, stream = router.chat(), router.chat(stream=True)
    one, two = spooled(router, 2)
    assert isinstance(one, Captured)
    assert isinstance(two, Captured)
    assert (one.body, one.answer, one.content_type) == (plain.request.content, plain.content, "application/json")
    assert (two.body, two.answer, two.content_type) == (stream.request.content, stream.content, "text/event-stream")
    assert not any((one.input_cut, one.output_cut, two.input_cut, two.output_cut))
    records = router.records(2)
    assert [one.record, two.record] == records


def test_what_is_sampled_is_decided_by_the_id_alone(router: RouterProcess, fake_engine: Start) -> None:
    publish(router, fake_engine("--events", "1"), Samples(share=4000))
    names = [f"r{number}" for number in range(40)]
    for name in names:
        router.chat(headers={"x-request-id": name})
    wanted = {name for name in names if place_of(name, b"5a17") < 4000}
    assert 8 < len(wanted) < 24
    found = spooled(router, len(wanted))
    assert {entry.record.request_id for entry in found if isinstance(entry, Captured)} == wanted


def test_errors_tests_and_other_models_are_no_samples(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "1", "--context-tokens", "5")
    publish(router, engine)
    assert router.chat(messages=[{"role": "user", "content": "a b c d e f g"}]).status_code == 400
    assert router.chat(model="nobody").status_code == 404
    assert router.chat(model="assistant@v1").status_code == 200
    engine.behave(status=500)
    assert router.chat().status_code >= 500
    router.records(4)
    publish(router, engine, Samples())
    engine.behave(status=200)
    assert router.chat().status_code == 200
    router.records(5)
    time.sleep(0.1)
    assert spooled(router) == []
    assert router.control.stats().samples_taken == 0


def test_large_ones_are_cut_and_say_so(router: RouterProcess, fake_engine: Start) -> None:
    publish(router, fake_engine("--events", "40", "--word", "x" * 100), Samples(share=BUCKETS, bytes_max=2048))
    answer = router.chat(stream=True)
    assert answer.content.count(b"xxx") > 10
    router.chat(messages=[{"role": "user", "content": "y" * 3000}])
    one, two = spooled(router, 2)
    assert isinstance(one, Captured)
    assert isinstance(two, Captured)
    assert (len(one.body) + len(one.answer), one.input_cut, one.output_cut) == (2048, False, True)
    assert answer.content.startswith(one.answer)
    assert (two.body, two.input_cut, two.output_cut, len(two.answer)) == (b"", True, True, 2048)


def test_a_kept_answer_and_a_sample_do_not_get_in_each_others_way(router: RouterProcess, fake_engine: Start) -> None:
    engine = fake_engine("--events", "300")
    publish(router, engine, Samples(share=BUCKETS, bytes_max=1024), cache=Cache(bytes_max=1_000_000))
    first = router.chat(temperature=0)
    (one,) = spooled(router, 1)
    assert isinstance(one, Captured)
    assert one.output_cut
    engine.kill()
    again = router.chat(temperature=0)
    assert (again.headers["x-modelyard-degraded"], again.content) == ("cache", first.content)
    assert len(spooled(router)) == 1, "an answer from the cache is no sample"


def test_a_stream_that_another_replica_finished_is_one_whole_sample(router: RouterProcess, fake_engine: Start) -> None:
    cut, whole = fake_engine("--events", "8", "--cut-after-events", "3"), fake_engine("--events", "8")
    ready = version("v1", [cut.port, whole.port])
    router.publish(model([type(ready)(**{**_fields(ready), "prefill": True})], {"v1": BUCKETS}, samples=ALL))
    answers = [router.chat(stream=True)]
    while not cut.stats()["seen"]:  # until the failing replica was the one chosen
        answers.append(router.chat(stream=True))
    found = spooled(router, len(answers))
    assert [entry.answer for entry in found if isinstance(entry, Captured)] == [answer.content for answer in answers]
    assert [record.continuations for record in router.records(len(answers))] == [0] * (len(answers) - 1) + [1]


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        (b"{", None, 400),
        (b"[]", None, 400),
        (b'{"score": 1}', None, 400),
        (b'{"request_id": "r", "score": 2}', "score", 400),
        (b'{"request_id": "r", "score": "great"}', "score", 400),
        (b'{"request_id": "r", "score": true}', "score", 400),
        (b'{"request_id": "no spaces", "score": 1}', "request_id", 400),
        (b'{"request_id": "r", "score": 1, "label": "two words"}', "label", 400),
        (b'{"request_id": "r", "score": 1, "comment": "%b"}' % (b"x" * 2049), "comment", 400),
        (b'{"request_id": "r", "score": 1, "stars": 5}', None, 400),
        (b'{"request_id": "r", "score": 1, "comment": "%b"}' % (b"x" * 70_000), None, 413),
    ],
)
def test_feedback_that_cannot_be_is_refused_in_openais_words(
    router: RouterProcess, body: bytes, param: str | None, status: int
) -> None:
    router.publish()
    answer = router.client.post("/v1/feedback", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert error["code"] in ("invalid_feedback", "invalid_json", "request_too_large")


def test_feedback_is_handed_on(router: RouterProcess) -> None:
    router.publish()
    body = {"request_id": "r-1", "score": "down", "label": "wrong", "comment": "no", "target": "yes"}
    answer = router.client.post("/v1/feedback", json=body)
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    (given,) = spooled(router, 1)
    assert isinstance(given, FeedbackGiven)
    assert (given.request_id, given.score, given.label, given.comment, given.target) == (
        "r-1",
        -1,
        "wrong",
        "no",
        "yes",
    )
    assert router.client.get("/v1/feedback").headers["allow"] == "POST"
    assert router.control.stats().samples_taken == 1


def test_without_a_spool_feedback_is_refused_and_requests_go_on(tmp_path: Path, fake_engine: Start) -> None:
    with running_router(tmp_path) as router:
        publish(router, fake_engine())
        assert router.chat().status_code == 200
        answer = router.client.post("/v1/feedback", json={"request_id": "r", "score": 1})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_a_killed_worker_loses_nothing_older_than_100_ms(router: RouterProcess, fake_engine: Start) -> None:
    """100 ms in which the worker ran: it took the last request but one that much later, and went on to the last."""
    publish(router, fake_engine("--events", "1"))
    asked_at: list[float] = []
    answered: list[tuple[float, str]] = []

    def ask() -> None:
        while True:
            try:
                asked_at.append(time.monotonic())
                name = router.chat().headers["x-request-id"]
                answered.append((time.monotonic(), name))
            except Exception:
                return

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.8)
    until(lambda: len(answered) > 20)
    router.process.send_signal(signal.SIGKILL)
    thread.join(PATIENCE_S)
    ran_at = asked_at[len(answered) - 2]
    found = [entry.record.request_id for entry in spooled(router) if isinstance(entry, Captured)]
    assert len(found) == len(set(found))
    older = {name for at, name in answered if at < ran_at - 0.1}
    assert older
    assert older <= set(found)


class Clock:
    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        self.ns += 1
        return self.ns


def given(number: int = 0) -> FeedbackGiven:
    return FeedbackGiven(f"r{number}", 1.0, 1.0)


def test_a_spool_takes_no_more_than_its_bounds(tmp_path: Path) -> None:
    clock = Clock()
    spool = Spool(tmp_path, "w0", now_ns=clock, call_later=lambda delay, call: None)
    assert not spool.add(given(), WAITING_BYTES_MAX)
    assert spool.add(given(), WAITING_BYTES_MAX // 2)
    assert not spool.add(given(), WAITING_BYTES_MAX // 2)
    assert (spool.taken, spool.lost) == (1, 2)
    spool.flush()
    for number in range(BACKLOG_FILES_MAX):
        spool.add(given(number), 0)
        spool.flush()
    assert len(list(tmp_path.iterdir())) == BACKLOG_FILES_MAX
    assert not spool.add(given(), 0), "nobody takes the files in"
    for path in tmp_path.iterdir():
        path.unlink()
    clock.ns += 3_000_000_000
    assert spool.add(given(), 0)


def test_a_disk_that_refuses_costs_samples_and_nothing_else(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "gone", "w0", now_ns=Clock(), call_later=lambda delay, call: None)
    assert spool.add(given(), 0)
    spool.flush()
    assert spool.lost == 1
